//! T5's relative positions: distances fall into buckets, exact ones up close and logarithmic ones
//! further away, and each bucket adds a number to the scores of each head. Paper: arXiv:1910.10683,
//! section 2.1. Reference: transformers `models/t5/modeling_t5.py`, `_relative_position_bucket`.

use std::sync::Arc;

use lowrank_autograd::{Result, Value};
use lowrank_peft::{Pass, layers::Embedding};

use crate::{Builder, Config, Sequences};

/// How distances fall into buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// Their number.
    num_buckets: usize,
    /// Distances from here on share the last bucket.
    max_distance: usize,
    /// Whether keys after the query have buckets of their own.
    bidirectional: bool,
}

impl Buckets {
    /// Reads `relative_attention_num_buckets` and `relative_attention_max_distance`.
    ///
    /// # Errors
    /// When a field is wrong.
    pub fn from_config(c: &Config, bidirectional: bool) -> crate::Result<Self> {
        let (buckets, distance) =
            ("relative_attention_num_buckets", "relative_attention_max_distance");
        let found = Self {
            num_buckets: c.size_or(buckets, 32)?,
            max_distance: c.size_or(distance, 128)?,
            bidirectional,
        };
        if found.num_buckets < 4 {
            return Err(c.wrong(buckets, "at least 4"));
        }
        // The decoder's exact buckets reach further, so its half of them bounds both.
        if found.max_distance <= found.num_buckets / 2 {
            return Err(c.wrong(distance, format!("above {}", found.num_buckets / 2)));
        }
        Ok(found)
    }

    /// The bucket of a key `distance` places after its query.
    fn of(&self, distance: i64) -> u32 {
        let (count, first) = match (self.bidirectional, distance > 0) {
            (true, true) => (self.num_buckets / 2, self.num_buckets / 2),
            (true, false) => (self.num_buckets / 2, 0),
            (false, _) => (self.num_buckets, 0),
        };
        let away = match self.bidirectional {
            true => distance.unsigned_abs() as usize,
            false => distance.min(0).unsigned_abs() as usize,
        };
        let exact = count / 2;
        if away < exact {
            return (first + away) as u32;
        }
        // In f32, as the reference has it: where a bucket begins hangs on the last bit.
        let ratio = (self.max_distance as f64 / exact as f64).ln() as f32;
        let share = (away as f32 / exact as f32).ln() / ratio;
        let log = exact + (share * (count - exact) as f32) as usize;
        (first + log.min(count - 1)) as u32
    }
}

/// The table of a stack of blocks.
#[derive(Clone, Debug)]
pub struct RelativePositions {
    relative_attention_bias: Embedding,
    buckets: Buckets,
}

impl RelativePositions {
    /// The table `relative_attention_bias` at `b`.
    ///
    /// # Errors
    /// When it is missing or misshapen.
    pub fn build(buckets: Buckets, heads: usize, b: &Builder) -> crate::Result<Self> {
        let name = "relative_attention_bias";
        Ok(Self {
            relative_attention_bias: b.embedding(name, buckets.num_buckets, heads)?,
            buckets,
        })
    }

    /// What is added to the scores by distance, `[2L-1, heads]` for sequences that reach up to `L`
    /// tokens, earlier ones in a cache included: row `i` belongs to distance `i - (L-1)`.
    ///
    /// # Errors
    /// Those of the look-up.
    pub fn forward(&self, sequences: &Sequences, pass: &Pass) -> Result<Value> {
        let furthest = sequences.positions.iter().max().map_or(0, |&last| i64::from(last));
        let ids: Arc<[u32]> = (-furthest..=furthest).map(|d| self.buckets.of(d)).collect();
        self.relative_attention_bias.forward(&ids, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distances at which a bucket begins, looking back.
    fn starts(buckets: Buckets) -> Vec<i64> {
        let begins = |d: &i64| *d == 0 || buckets.of(-d) != buckets.of(1 - d);
        (0..400).filter(begins).collect()
    }

    #[test] // numbers of transformers 5.24, `T5Attention._relative_position_bucket`
    fn buckets_begin_where_transformers_begins_them() {
        let both = Buckets { num_buckets: 32, max_distance: 128, bidirectional: true };
        assert_eq!(starts(both), [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        assert_eq!([1, 2, 9, 500, -500].map(|d| both.of(d)), [17, 18, 24, 31, 15]);
        let back = Buckets { bidirectional: false, ..both };
        let far = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];
        assert_eq!(starts(back), (0..16).chain(far).collect::<Vec<_>>());
        assert_eq!([1, 2, 9, 500, -500].map(|d| back.of(d)), [0, 0, 0, 0, 31]);
    }
}
