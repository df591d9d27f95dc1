//! MPT: pre-norm blocks without biases, linear biases instead of positions, clipped queries, keys
//! and values. Paper: MosaicML, 2023; arXiv:2108.12409. Reference: transformers
//! `models/mpt/modeling_mpt.py`.

use lowrank_autograd::ops::{Activation, AttentionShape};

use super::{Architecture, Parts};
use crate::{
    Builder, Config, NormShape, Result, Task,
    blocks::causal_decoder::{
        Alibi, CausalAttention, CausalBlock, CausalDecoder, FeedForward, Fused, Positions,
        Projections, Residual, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "mpt",
    class: "Mpt",
    prefixes: &["transformer"],
    paper: "https://www.databricks.com/blog/mpt-7b",
    build,
    ..Architecture::DECODER
};

/// Other names of the fields that say how large the model is.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("num_attention_heads", "n_heads"),
    ("num_hidden_layers", "n_layers"),
];

/// Fields that the original model has and transformers' doesn't heed, and what they must be.
/// (`expansion_ratio` is another one: the MLP is four times as wide here whatever it says.)
fn check(c: &Config, attention: &Config) -> Result<()> {
    for (c, key, must_be) in [
        (c, "no_bias", true),
        (attention, "alibi", true),
        (attention, "prefix_lm", false),
        (attention, "qk_ln", false),
        (attention, "attn_uses_sequence_id", false),
    ] {
        if c.switch_or(key, must_be)? != must_be {
            return Err(c.not_implemented(key, &must_be.to_string()));
        }
    }
    for (c, key, must_be) in [(c, "embedding_fraction", 1.0), (attention, "alibi_bias_max", 8.0)] {
        if c.number_or(key, must_be)? != must_be {
            return Err(c.not_implemented(key, &must_be.to_string()));
        }
    }
    if c.get("logit_scale").is_some() {
        return Err(c.not_implemented("logit_scale", "null"));
    }
    if !matches!(attention.word("attn_type")?, None | Some("multihead_attention")) {
        return Err(attention.not_implemented("attn_type", "multihead_attention"));
    }
    let norm = c.word("norm_type")?;
    if !matches!(norm, None | Some("low_precision_layernorm" | "layernorm")) {
        return Err(c.not_implemented("norm_type", "low_precision_layernorm, layernorm"));
    }
    Ok(())
}

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (c, base) = (&c.with_aliases(ALIASES), b.base());
    let empty = Config::parse(c.file().to_owned(), "{}")?;
    let attention = c.object("attn_config")?.unwrap_or(empty);
    check(c, &attention)?;
    let hidden = c.size("hidden_size")?;
    let norm = NormShape::layer(hidden, c.epsilon_or("layer_norm_epsilon", 1e-5)?);
    let norm = NormShape { bias: false, ..norm };
    let embedding = base.embedding("wte", c.size("vocab_size")?, hidden)?;
    let blocks =
        base.list("blocks", c.size("num_hidden_layers")?, |_, b| block(c, &attention, norm, b))?;
    let positions = Positions::Alibi(Alibi::new(c.size("num_attention_heads")?));
    let last = base.norm("norm_f", norm)?;
    let network = CausalDecoder::new(embedding, positions, blocks, Some(last));
    let names = DecoderHeads { token_classifier: "classifier", ..DecoderHeads::GENERIC };
    with_decoder_head(task, c, network, names, b)
}

fn block(c: &Config, attn: &Config, norm: NormShape, b: &Builder) -> Result<CausalBlock> {
    let hidden = norm.dim;
    let p = attn.probability_or("attn_pdrop", 0.0)?;
    let residual =
        |name, at| -> Result<Residual> { Ok(Residual::pre(b.norm(name, norm)?, b.dropout(at, p))) };
    let first = residual("norm_1", "resid_attn_dropout")?;
    let first = (first, attention(c, attn, hidden, &b.at("attn"))?);
    let second = residual("norm_2", "ffn.dropout")?;
    let (layers, widths) = (["ffn.up_proj", "ffn.down_proj"], [hidden, 4 * hidden]);
    let mlp = FeedForward::linear(layers, widths, false, Activation::Gelu, b)?;
    Ok(CausalBlock::sequential(first, (second, mlp)))
}

fn attention(c: &Config, attn: &Config, hidden: usize, b: &Builder) -> Result<CausalAttention> {
    let clip = match attn.number("clip_qkv")? {
        Some(limit) if limit < 0.0 => return Err(attn.wrong("clip_qkv", "a number from 0 on")),
        limit => limit.filter(|limit| *limit != 0.0).map(|limit| limit as f32),
    };
    let qkv = Fused::new(b.linear("Wqkv", hidden, 3 * hidden, false)?, 1);
    let qkv = Projections::Fused(Fused { clip, ..qkv });
    let output = b.linear("out_proj", hidden, hidden, false)?;
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let scale = attn.number("softmax_scale")?.map_or(shape.scale, |scale| scale as f32);
    let dropout = b.dropout("dropout", attn.probability_or("attn_pdrop", 0.0)?);
    Ok(CausalAttention::new(qkv, output, AttentionShape { scale, ..shape }, dropout))
}
