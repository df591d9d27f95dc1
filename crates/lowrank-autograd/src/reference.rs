//! Plain versions of the fused operations, made of candle's own: what kernels are tested against,
//! and the words in which each formula is easiest to read.
