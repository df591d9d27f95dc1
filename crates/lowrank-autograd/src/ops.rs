//! Differentiable operations, one file each: the formulas stand in the header, what is saved for
//! the backward pass is decided in one place, and a plain version stands in [`crate::reference`].

mod activation;
mod arithmetic;
mod attention;
mod balance;
mod cross_entropy;
mod disentangled;
mod dropout;
mod embedding;
mod grouped_linear;
mod jitter;
mod join_columns;
mod linear;
mod linear_cross_entropy;
mod loss;
mod mix_rows;
mod norm;
mod rotary;
mod route;
mod rows;

pub use activation::{Activation, activation, gated, gated_halves};
pub use arithmetic::{add, add_row, clip, mul, reshape, scale, shift, sum_all, widen};
pub use attention::{AttentionShape, KeyValues, Span, attention, attention_cached};
pub use balance::balance;
pub use cross_entropy::{ScoredTargets, cross_entropy, scored_cross_entropy};
pub use disentangled::{Distances, disentangled_attention};
pub use dropout::dropout;
pub use embedding::{LowRankRows, Rows, embedding};
pub(crate) use grouped_linear::expert_pieces;
pub use grouped_linear::{LowRankStack, Stack, grouped_linear};
pub use jitter::jitter;
pub use join_columns::join_columns;
pub use linear::{LowRank, Matrix, linear, logits};
pub use linear_cross_entropy::linear_cross_entropy;
pub use loss::{binary_cross_entropy, squared_error};
pub use mix_rows::mix_rows;
pub use norm::{layer_norm, rms_norm};
pub use rotary::{Angles, RotaryStyle, rotary, rotary_from};
pub use route::{Routing, Score, route};
pub use rows::{columns, concat_rows, select_rows};
