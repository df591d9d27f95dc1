//! Falcon: attention and MLP beside each other, few key heads. Three layouts: one norm and one key
//! head (7b); two norms and some key heads (40b, 180b; 11b has one norm); pre-norm blocks with
//! linear biases (rw). Paper: arXiv:2311.16867. Reference: transformers
//! `models/falcon/modeling_falcon.py`, with its default attention.

use lowrank_autograd::ops::AttentionShape;
use lowrank_peft::layers::Norm;

use super::{Architecture, OtherType, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{
        CausalAttention, CausalBlock, CausalDecoder, FeedForward, Fused, Parallel, ParallelDropout,
        Positions, Projections, Residual, Rotary, RoundedAlibi, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "falcon",
    other_types: &[
        OtherType {
            model_type: "RefinedWeb",
            class: Some("RW"),
            fields: OLD_FIELDS,
            meant: &[("new_decoder_architecture", true)],
            ..OtherType::REMOTE
        },
        OtherType {
            model_type: "RefinedWebModel",
            class: Some("RW"),
            fields: OLD_FIELDS,
            meant: &[("multi_query", false), ("parallel_attn", false)],
            ..OtherType::REMOTE
        },
    ],
    class: "Falcon",
    prefixes: &["transformer"],
    paper: "arXiv:2311.16867",
    build,
    ..Architecture::DECODER
};

/// Names that the authors' own code had.
const OLD_FIELDS: &[(&str, &str)] = &[
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_head_kv", "num_kv_heads"),
];

/// What the fields say that tell the layouts apart.
#[derive(Clone, Debug)]
struct Layout {
    shape: AttentionShape,
    /// Groups of the fused layer.
    groups: usize,
    joint: Joint,
    alibi: bool,
}

/// How a block is joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joint {
    Sequential,
    OneNorm,
    TwoNorms,
}

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (c, base) = (&c.with_aliases(&[("n_embed", "hidden_size")]), b.base());
    if c.switch_or("apply_residual_connection_post_layernorm", false)? {
        return Err(c.not_implemented("apply_residual_connection_post_layernorm", "false"));
    }
    let (hidden, layout) = (c.size("n_embed")?, layout(c)?);
    let (heads, head_dim) = (layout.shape.heads, layout.shape.head_dim);
    let positions = match layout.alibi {
        true => Positions::RoundedAlibi(RoundedAlibi::new(heads, head_dim)),
        false => Positions::Rotary(Rotary::whole(c, head_dim)?),
    };
    let embedding = base.embedding("word_embeddings", c.size("vocab_size")?, hidden)?;
    let layers = c.size("num_hidden_layers")?;
    let blocks = base.list("h", layers, |_, b| block(c, &layout, hidden, b))?;
    let norm = norm("ln_f", c, &base)?;
    let network = CausalDecoder::new(embedding, positions, blocks, Some(norm));
    let names = DecoderHeads {
        token_classifier: "classifier",
        token_dropout: ("hidden_dropout", 0.0),
        ..DecoderHeads::GENERIC
    };
    with_decoder_head(task, c, network, names, b)
}

fn layout(c: &Config) -> Result<Layout> {
    let shape = causal_shape(c, "n_embed", "num_attention_heads")?;
    let new = c.switch_or("new_decoder_architecture", false)?;
    let kv_heads = c.size_or("num_kv_heads", shape.heads)?;
    let (kv_heads, groups) = match (new, c.switch_or("multi_query", true)?) {
        (true, _) if shape.heads.is_multiple_of(kv_heads) => (kv_heads, kv_heads),
        (false, true) => (1, 1),
        (false, false) if kv_heads == shape.heads => (kv_heads, kv_heads),
        (true, _) => {
            return Err(c.wrong("num_kv_heads", format!("a divisor of {} heads", shape.heads)));
        }
        (false, false) => {
            let must_be = format!("{}, as many as heads, without `multi_query`", shape.heads);
            return Err(c.wrong("num_kv_heads", must_be));
        }
    };
    let norms = c.size_or_none("num_ln_in_parallel_attn")?;
    let joint = match (new, c.switch_or("parallel_attn", true)?, norms) {
        (false, false, _) => Joint::Sequential,
        (true, true, None | Some(2)) => Joint::TwoNorms,
        (true, true, Some(1)) | (false, true, None | Some(1)) => Joint::OneNorm,
        (true, false, _) => {
            return Err(c.wrong("parallel_attn", "true with `new_decoder_architecture`"));
        }
        (new, true, _) => {
            let most = if new { "1 or 2" } else { "1 without `new_decoder_architecture`" };
            return Err(c.wrong("num_ln_in_parallel_attn", most));
        }
    };
    let shape = AttentionShape { kv_heads, ..shape };
    Ok(Layout { shape, groups, joint, alibi: c.switch_or("alibi", false)? })
}

fn norm(name: &str, c: &Config, b: &Builder) -> Result<Norm> {
    b.layer_norm(name, c.size("n_embed")?, c.epsilon_or("layer_norm_epsilon", 1e-5)?)
}

fn block(c: &Config, layout: &Layout, hidden: usize, b: &Builder) -> Result<CausalBlock> {
    let bias = c.switch_or("bias", false)?;
    let attention = attention(c, layout, hidden, &b.at("self_attention"))?;
    let layers = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
    let widths = [hidden, c.size_or("ffn_hidden_size", 4 * hidden)?];
    let mlp = FeedForward::linear(layers, widths, bias, c.activation("activation", "gelu")?, b)?;
    let dropout = b.dropout("dropout", c.probability_or("hidden_dropout", 0.0)?);
    let norm = |name| norm(name, c, b);
    let (norm, mlp_norm) = match layout.joint {
        Joint::OneNorm => (norm("input_layernorm")?, None),
        Joint::TwoNorms => (norm("ln_attn")?, Some(norm("ln_mlp")?)),
        Joint::Sequential => {
            let second = (Residual::pre(norm("post_attention_layernorm")?, dropout), mlp);
            // What the attention adds is dropped as its probabilities are.
            let first = b.dropout("attention", c.probability_or("attention_dropout", 0.0)?);
            let first = Residual::pre(norm("input_layernorm")?, first);
            return Ok(CausalBlock::sequential((first, attention), second));
        }
    };
    let wiring = Parallel { norm, mlp_norm, dropout: ParallelDropout::Sum(dropout) };
    Ok(CausalBlock::parallel(wiring, attention, mlp))
}

fn attention(c: &Config, layout: &Layout, hidden: usize, b: &Builder) -> Result<CausalAttention> {
    let (shape, bias) = (&layout.shape, c.switch_or("bias", false)?);
    let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    let qkv = b.linear("query_key_value", hidden, width, bias)?;
    let qkv = Projections::Fused(Fused::new(qkv, layout.groups));
    let output = b.linear("dense", hidden, hidden, bias)?;
    // Probabilities are dropped with linear biases only.
    let p = if layout.alibi { c.probability_or("attention_dropout", 0.0)? } else { 0.0 };
    let dropout = b.dropout("attention_dropout", p);
    Ok(CausalAttention::new(qkv, output, shape.clone(), dropout))
}
