//! Attention with linear biases: keys count less the further back they lie, in each head at a
//! slope of its own. Paper: arXiv:2108.12409.

use candle_core::{Device, Tensor};
use half::bf16;
use lowrank_autograd::{Result, Value};

use crate::Sequences;

/// The slopes of all heads.
#[derive(Clone, Debug, PartialEq)]
pub struct Alibi {
    slopes: Vec<f32>,
}

impl Alibi {
    /// `2^(-8i/n)` for `n` heads, `n` a power of 2; other numbers take what is left from the odd
    /// ones of twice the next lower power. References: transformers
    /// `models/bloom/modeling_bloom.py`, `_get_alibi_slopes`, and `models/mpt/modeling_mpt.py`,
    /// `build_mpt_alibi_tensor`, which says the same in other words.
    pub fn new(heads: usize) -> Self {
        let low = 1usize << heads.max(1).ilog2();
        let slope = |i: usize, of: usize| (-8.0 * i as f64 / of as f64).exp2() as f32;
        let first = (1..=low).map(|i| slope(i, low));
        let left = (1..).step_by(2).map(|i| slope(i, 2 * low));
        Self { slopes: first.chain(left).take(heads).collect() }
    }

    /// What is added to the scores of these sequences, as [`lowrank_autograd::ops::attention`]
    /// takes it: `[distances, heads]`.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn bias(&self, sequences: &Sequences) -> Result<Value> {
        let reach = sequences.extents.iter().copied().max().unwrap_or_default().max(1);
        let distances = (0..2 * reach - 1).map(|row| row as f32 - (reach - 1) as f32);
        let bias = distances.flat_map(|d| self.slopes.iter().map(move |slope| slope * d));
        let shape = (2 * reach - 1, self.slopes.len());
        Ok(Value::constant(Tensor::from_vec(bias.collect::<Vec<_>>(), shape, &Device::Cpu)?))
    }
}

/// The biases of Falcon, which transformers computes in bf16 from the place of the key: what they
/// come to isn't a function of the distance. Reference: `models/falcon/modeling_falcon.py`,
/// `build_alibi_tensor`.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundedAlibi {
    slopes: Vec<bf16>,
    /// Root of the width of a head, by which the biases are divided.
    divisor: f32,
}

impl RoundedAlibi {
    /// The biases of so many heads of that width.
    pub fn new(heads: usize, head_dim: usize) -> Self {
        let slopes = Alibi::new(heads).slopes.into_iter().map(bf16::from_f32).collect();
        Self { slopes, divisor: (head_dim as f32).sqrt() }
    }

    /// What each token adds to the scores of those that look at it, `[tokens, heads]`.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn of_keys(&self, sequences: &Sequences) -> Result<Tensor> {
        let places = sequences.places.iter().map(|&place| bf16::from_f32(place as f32));
        let bias = places.flat_map(|place| {
            self.slopes.iter().map(move |&slope| (slope * place).to_f32() / self.divisor)
        });
        let shape = (sequences.tokens(), self.slopes.len());
        Ok(Tensor::from_vec(bias.collect::<Vec<_>>(), shape, &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_of_eight_heads_are_those_of_the_paper() {
        let halves: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
        assert_eq!(Alibi::new(8).slopes, halves);
    }

    #[test] // as transformers 5.24 has them for BLOOM and for MPT
    fn other_numbers_of_heads_take_the_rest_from_between() {
        let slopes = [2, 4, 6, 8, 1, 3].map(|i| 0.5f32.powi(i));
        assert_eq!(Alibi::new(6).slopes, slopes);
    }

    #[test]
    fn keys_count_less_the_further_back_they_lie() -> Result<()> {
        let alibi = Alibi { slopes: vec![0.5, 0.25] };
        let bias = alibi.bias(&Sequences::packed(&[2, 1]))?;
        let expected = [[-0.5, -0.25], [0.0, 0.0], [0.5, 0.25]];
        assert_eq!(bias.data().to_vec2::<f32>()?, expected);
        Ok(())
    }

    #[test] // 2^-0.5 is 0.70703125 in bf16, and three times that 2.125
    fn products_of_slopes_and_places_are_rounded() -> Result<()> {
        let keys = RoundedAlibi::new(16, 4).of_keys(&Sequences::packed(&[4]))?;
        assert_eq!(keys.to_vec2::<f32>()?[3][0], 2.125 / 2.0);
        Ok(())
    }
}
