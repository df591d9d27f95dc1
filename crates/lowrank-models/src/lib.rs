//! Hugging Face model folders as differentiable models: one file per architecture.
