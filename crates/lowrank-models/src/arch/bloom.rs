//! BLOOM: pre-norm blocks, linear biases instead of positions, a norm after the embedding.
//! Paper: arXiv:2211.05100. Reference: transformers `models/bloom/modeling_bloom.py`.

use lowrank_autograd::ops::Activation;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        causal_decoder::{
            Alibi, CausalAttention, CausalBlock, CausalDecoder, FeedForward, Fused, Positions,
            Projections, Residual, causal_shape,
        },
        pre_norm::PreNorm,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "bloom",
    class: "Bloom",
    prefixes: &["transformer"],
    paper: "arXiv:2211.05100",
    build,
    ..Architecture::DECODER
};

/// Other names of the fields that say how large the model is.
const ALIASES: &[(&str, &str)] = &[
    ("n_embed", "hidden_size"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (c, base) = (&c.with_aliases(ALIASES), b.base());
    // Sums up slices of a layer and leaves out its bias.
    if c.switch_or("slow_but_exact", false)? && c.size_or("pretraining_tp", 1)? > 1 {
        return Err(c.not_implemented("slow_but_exact", "false"));
    }
    let (hidden, heads) = (c.size("n_embed")?, c.size("num_attention_heads")?);
    let eps = c.epsilon_or("layer_norm_epsilon", 1e-5)?;
    let embedding = base.embedding("word_embeddings", c.size("vocab_size")?, hidden)?;
    let embedding_norm = base.layer_norm("word_embeddings_layernorm", hidden, eps)?;
    let blocks = base.list("h", c.size("num_hidden_layers")?, |_, b| block(c, hidden, eps, b))?;
    let norm = base.layer_norm("ln_f", hidden, eps)?;
    let network = CausalDecoder {
        embedding_norm: Some(embedding_norm),
        ..CausalDecoder::new(embedding, Positions::Alibi(Alibi::new(heads)), blocks, Some(norm))
    };
    let names = DecoderHeads {
        token_classifier: "classifier",
        token_dropout: ("hidden_dropout", 0.0),
        ..DecoderHeads::GENERIC
    };
    with_decoder_head(task, c, network, names, b)
}

fn block(c: &Config, hidden: usize, eps: f64, b: &Builder) -> Result<CausalBlock> {
    let normed = c.switch_or("apply_residual_connection_post_layernorm", false)?;
    let p = c.probability_or("hidden_dropout", 0.0)?;
    let residual = |norm, at| -> Result<Residual> {
        let (norm, dropout) = (b.layer_norm(norm, hidden, eps)?, b.dropout(at, p));
        let around = PreNorm { norm, dropout };
        Ok(if normed { Residual::Normed(around) } else { Residual::Pre(around) })
    };
    let first = residual("input_layernorm", "self_attention.dropout")?;
    let first = (first, attention(c, hidden, &b.at("self_attention"))?);
    let second = residual("post_attention_layernorm", "mlp.dropout")?;
    let (layers, widths) = (["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"], [hidden, 4 * hidden]);
    let mlp = FeedForward::linear(layers, widths, true, Activation::GeluTanh, b)?;
    Ok(CausalBlock::sequential(first, (second, mlp)))
}

fn attention(c: &Config, hidden: usize, b: &Builder) -> Result<CausalAttention> {
    let shape = causal_shape(c, "n_embed", "num_attention_heads")?;
    let qkv = b.linear("query_key_value", hidden, 3 * hidden, true)?;
    let qkv = Projections::Fused(Fused::new(qkv, shape.heads));
    let output = b.linear("dense", hidden, hidden, true)?;
    let dropout = b.dropout("attention_dropout", c.probability_or("attention_dropout", 0.0)?);
    Ok(CausalAttention::new(qkv, output, shape, dropout))
}
