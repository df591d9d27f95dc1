//! Plain versions of the fused operations, made of candle's own: what kernels are tested against,
//! and the words in which each formula is easiest to read. Forward only, in the dtype of the first
//! operand, which may be f64.

mod activation;
mod attention;
mod disentangled;
mod dropout;
mod embedding;
mod experts;
mod linear;
mod loss;
mod norm;
mod rotary;

pub use activation::{activation, gated};
pub use attention::attention;
pub use disentangled::disentangled_attention;
pub use dropout::{dropout, dropout_factors, jitter};
pub use embedding::{LowRankRows, embedding};
pub use experts::{LowRankStack, balance, grouped_linear, mix_rows, route};
pub use linear::{LowRank, linear};
pub use loss::{binary_cross_entropy, cross_entropy, squared_error};
pub use norm::{layer_norm, rms_norm};
pub use rotary::rotary;
