//! What architectures are made of: each block once, for all of them.

pub mod alibi;
pub mod attention;
pub mod bart_stack;
pub mod causal_attention;
pub mod causal_decoder;
pub mod decoder;
pub mod encoder;
pub mod encoder_block;
pub mod encoder_decoder;
pub mod encoder_embeddings;
pub mod encoder_heads;
pub mod feed_forward;
pub mod head_norm;
pub mod layer_types;
pub mod mlp;
pub mod multi_head;
pub mod positions;
pub mod post_norm;
pub mod pre_norm;
pub mod projections;
pub mod relative_position;
pub mod residual;
pub mod rotary;
pub mod t5_stack;
pub mod word_boxes;
