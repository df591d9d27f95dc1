//! DeBERTa's attention: the score of two tokens is that of their contents and of each content with
//! the distance between them. Papers: arXiv:2006.03654, arXiv:2111.09543 (version 3). Reference:
//! transformers `models/deberta_v2/modeling_deberta_v2.py`, `DisentangledSelfAttention`.

use std::sync::Arc;

use lowrank_autograd::{
    Result, Value,
    ops::{self, Distances},
};
use lowrank_peft::{
    Pass,
    layers::{Bare, Embedding, Linear, Norm},
};

use crate::{Builder, Config, DropoutSite, Sequences};

/// Which terms a score has besides that of the contents.
#[derive(Clone, Copy, Debug)]
pub struct PositionTerms {
    /// `c2p`: queries meet distances.
    pub content_to_position: bool,
    /// `p2c`: keys meet distances.
    pub position_to_content: bool,
    /// Entries of the list, unknown ones included.
    pub entries: usize,
}

impl PositionTerms {
    /// Reads `pos_att_type`: a list, or words with `|` between them.
    ///
    /// # Errors
    /// When it is something else.
    pub fn from_config(c: &Config) -> crate::Result<Self> {
        let field = "pos_att_type";
        let text = c.get(field).filter(|value| value.is_string());
        let words: Vec<String> = match text {
            Some(_) => {
                let text = c.word(field)?.unwrap_or_default().to_lowercase();
                text.split('|').map(|word| word.trim().to_owned()).collect()
            }
            None => c.words(field)?.unwrap_or_default().into_iter().map(str::to_owned).collect(),
        };
        let has = |name: &str| words.iter().any(|word| word == name);
        Ok(Self {
            content_to_position: has("c2p"),
            position_to_content: has("p2c"),
            entries: words.len(),
        })
    }

    /// How many of the terms there are.
    pub fn known(self) -> usize {
        usize::from(self.content_to_position) + usize::from(self.position_to_content)
    }
}

/// Distances between tokens and the vectors that stand for them.
#[derive(Clone, Debug)]
pub struct RelativeEmbeddings {
    /// `[2·span, hidden_size]`
    pub table: Embedding,
    /// Over the table.
    pub norm: Option<Norm>,
    /// How distances fall onto its rows.
    pub reach: Reach,
}

/// How distances fall onto rows: each its own up to `span`, or beyond half of it on a logarithmic
/// scale.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Half the number of rows.
    pub span: usize,
    /// The distance that the last row on either side is for, on a logarithmic scale.
    pub furthest: Option<usize>,
}

impl Reach {
    /// Reads `max_relative_positions` and, where `buckets` are known, `position_buckets`.
    ///
    /// # Errors
    /// When a field is wrong.
    pub fn from_config(c: &Config, buckets: bool) -> crate::Result<Self> {
        let (most, count) = ("max_relative_positions", "position_buckets");
        let positive = |field| -> crate::Result<bool> { Ok(c.number_or(field, -1.0)? >= 1.0) };
        let own = if positive(most)? { most } else { "max_position_embeddings" };
        let furthest = c.size_or(own, 512)?;
        if !buckets || !positive(count)? {
            return Ok(Self { span: furthest, furthest: None });
        }
        let span = c.size(count)?;
        if span < 4 || furthest <= span / 2 + 1 {
            let must_be = format!("at least 4, and at most twice `{own}`, which is {furthest}");
            return Err(c.wrong(count, must_be));
        }
        Ok(Self { span, furthest: Some(furthest) })
    }

    /// The row of a distance: a query's place less its key's.
    fn row(self, distance: i64) -> u32 {
        let span = self.span as i64;
        (self.bucket(distance) + span).clamp(0, 2 * span - 1) as u32
    }

    fn bucket(self, distance: i64) -> i64 {
        let (middle, away) = (self.span / 2, distance.unsigned_abs() as usize);
        let Some(furthest) = self.furthest.filter(|_| away > middle) else { return distance };
        // In f32, as the reference has it: where a bucket begins hangs on the last bit.
        let ratio = ((furthest - 1) as f64 / middle as f64) as f32;
        let share = (away as f32 / middle as f32).ln() / ratio.ln();
        let log = (share * (middle - 1) as f32).ceil() as i64 + middle as i64;
        distance.signum() * log
    }
}

impl RelativeEmbeddings {
    /// The vectors, `[2·span, hidden_size]`; `pass` is one of as many rows.
    fn vectors(&self, pass: &Pass) -> Result<Value> {
        let rows = (0..2 * self.reach.span as u32).collect();
        let table = self.table.forward(&rows, pass)?;
        self.norm.as_ref().map_or(Ok(table.clone()), |norm| norm.forward(&table, pass))
    }

    /// The row of every distance in the longest sequence.
    fn rows(&self, sequences: &Sequences) -> Arc<[u32]> {
        let longest = sequences.spans.iter().map(|span| span.keys.len()).max();
        let furthest = longest.unwrap_or(1) as i64 - 1;
        (-furthest..=furthest).map(|distance| self.reach.row(distance)).collect()
    }
}

/// How queries, keys and values are made.
#[derive(Clone, Debug)]
pub enum Projections {
    /// By one layer, whose rows are those of `[head][query, key, value]`, with biases beside it.
    Fused {
        /// The layer.
        in_proj: Linear,
        /// Of the queries.
        q_bias: Bare,
        /// Of the values.
        v_bias: Bare,
    },
    /// By a layer each: queries, keys, values.
    Apart([Linear; 3]),
}

impl Projections {
    fn forward(&self, x: &Value, heads: usize, pass: &Pass) -> Result<[Value; 3]> {
        match self {
            Self::Fused { in_proj, q_bias, v_bias } => {
                let all = in_proj.forward(x, pass)?;
                let (n, width) = (x.dims()[0], all.dims()[1] / 3);
                let dim = width / heads;
                let by_head = ops::reshape(&all, &[n * heads, 3 * dim])?;
                let part = |i: usize| {
                    ops::reshape(&ops::columns(&by_head, i * dim..(i + 1) * dim)?, &[n, width])
                };
                let q = ops::add_row(&part(0)?, &q_bias.value(pass)?)?;
                Ok([q, part(1)?, ops::add_row(&part(2)?, &v_bias.value(pass)?)?])
            }
            Self::Apart([q, k, v]) => {
                Ok([q.forward(x, pass)?, k.forward(x, pass)?, v.forward(x, pass)?])
            }
        }
    }
}

/// Attention of a sequence to itself.
#[derive(Clone, Debug)]
pub struct DisentangledAttention {
    /// Queries, keys and values.
    pub projections: Projections,
    /// What queries meet of the distances.
    pub position_keys: Option<Linear>,
    /// What keys meet of them.
    pub position_queries: Option<Linear>,
    /// Back to the residual stream.
    pub output: Linear,
    /// Heads.
    pub heads: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// On the vectors of distances.
    pub position_dropout: DropoutSite,
    /// On the probabilities.
    pub dropout: DropoutSite,
}

impl DisentangledAttention {
    /// The factor of scores that are sums of so many terms.
    pub fn scale(head_dim: usize, terms: usize) -> f32 {
        ((head_dim * terms) as f32).sqrt().recip()
    }

    /// The dropouts at `b`, of vectors of distances and of probabilities.
    ///
    /// # Errors
    /// When a field is wrong.
    pub fn dropouts(c: &Config, b: &Builder) -> crate::Result<[DropoutSite; 2]> {
        let positions = c.probability_or("hidden_dropout_prob", 0.1)?;
        let probabilities = c.probability_or("attention_probs_dropout_prob", 0.1)?;
        Ok([b.dropout("pos_dropout", positions), b.dropout("dropout", probabilities)])
    }

    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(
        &self,
        x: &Value,
        relative: Option<&RelativeEmbeddings>,
        sequences: &Sequences,
        pass: &Pass,
    ) -> Result<Value> {
        let [q, k, v] = self.projections.forward(x, self.heads, pass)?;
        let distances = match relative {
            Some(relative) => self.distances(relative, sequences, pass)?,
            None => Distances::default(),
        };
        let (spans, mask) = (&sequences.spans, self.dropout.mask(pass));
        let qkv = [&q, &k, &v];
        let mixed =
            ops::disentangled_attention(qkv, &distances, self.heads, self.scale, spans, mask)?;
        self.output.forward(&mixed, pass)
    }

    fn distances(
        &self,
        relative: &RelativeEmbeddings,
        sequences: &Sequences,
        pass: &Pass,
    ) -> Result<Distances> {
        let pass = pass.for_table(2 * relative.reach.span);
        let vectors = self.position_dropout.forward(&relative.vectors(&pass)?, &pass)?;
        let met = |layer: &Option<Linear>| {
            layer.as_ref().map(|layer| layer.forward(&vectors, &pass)).transpose()
        };
        Ok(Distances {
            keys: met(&self.position_keys)?,
            queries: met(&self.position_queries)?,
            rows: relative.rows(sequences),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // numbers of transformers 5.24, `make_log_bucket_position`
    fn buckets_begin_where_transformers_begins_them() {
        let reach = Reach { span: 32, furthest: Some(512) };
        let begins = |d: &i64| *d == 0 || reach.bucket(*d) != reach.bucket(d - 1);
        let far = [17, 21, 26, 32, 41, 51, 64, 81, 102, 128, 162, 203, 256, 322, 406];
        let expected: Vec<i64> = (0..17).chain(far).collect();
        assert_eq!((0..512).filter(begins).collect::<Vec<_>>(), expected);
        let large = Reach { span: 256, furthest: Some(512) };
        assert_eq!([-5, -200, 39, 511, 700].map(|d| large.bucket(d)), [-5, -169, 39, 255, 284]);
        assert_eq!([-700, -200, 0, 700].map(|d| large.row(d)), [0, 87, 256, 511]);
        let plain = Reach { span: 4, furthest: None };
        assert_eq!([-9, -4, -1, 0, 3, 9].map(|d| plain.row(d)), [0, 0, 3, 4, 7, 7]);
    }
}
