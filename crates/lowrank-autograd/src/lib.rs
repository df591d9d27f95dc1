//! A small LoRA-aware tape over candle tensors, with its operations and kernels.
