//! ChatGLM2, ChatGLM3 and GLM-4 in the layout of their own code: GLM with names of its own and
//! queries, keys and values in one layer. ("2-d" positions are those of the first ChatGLM; here the
//! second half of each head doesn't turn.)
//! Paper: arXiv:2406.12793. Reference: `modeling_chatglm.py` beside the published weights; no code of
//! a model's folder is run.

use std::sync::Arc;

use lowrank_autograd::ops::{Activation, RotaryStyle};

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Head, NormShape, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::{BranchEnd, Decoder, DecoderLayer, DecoderNames, DecoderShape},
        mlp::{GatedMlp, MlpShape},
        rotary::Rotary,
    },
    task_heads::{Pick, SequenceHead, TokenHead},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "chatglm",
    class: "ChatGLM",
    causal_lm: "ForConditionalGeneration",
    prefixes: &["transformer"],
    tasks: &[Task::CausalLm, Task::SeqCls, Task::FeatureExtraction],
    paper: "arXiv:2406.12793",
    build,
    ..Architecture::DECODER
};

const NAMES: DecoderNames = DecoderNames {
    embedding: "embedding.word_embeddings",
    layers: "encoder.layers",
    norm: "encoder.final_layernorm",
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    check_switches(c)?;
    let (attention, mlp, shape) = (attention(c)?, mlp(c)?, decoder_shape(c)?);
    let dropout = c.probability_or("hidden_dropout", 0.0)?;
    let groups = if shares_keys(c)? { 1 } else { attention.heads };
    let layer = |_, b: &Builder| {
        let before_attention = b.norm("input_layernorm", shape.norm)?;
        let place = b.at("self_attention");
        let layers =
            [attention.qkv("query_key_value", &place)?, attention.output("dense", &place)?];
        let attention = SelfAttention::fused(&attention, groups, layers, &place);
        let norms = [before_attention, b.norm("post_attention_layernorm", shape.norm)?];
        let mlp = GatedMlp::fused(&mlp, ["dense_h_to_4h", "dense_4h_to_h"], &b.at("mlp"))?;
        let ends = ["attention_dropout", "mlp_dropout"];
        let ends = ends.map(|name| BranchEnd::dropout(b.dropout(name, dropout)));
        Ok(DecoderLayer::new(attention, mlp, norms).ending(ends))
    };
    let base = b.base();
    let decoder = Decoder::named(NAMES, &shape, &base, layer)?;
    // It follows from the config; their code saves it nevertheless.
    base.keep("rotary_pos_emb.inv_freq", attention.head_dim / 4)?;
    let hidden = attention.hidden_size;
    // Part of the base model, whatever its head.
    let output = base.linear("output_layer", hidden, shape.vocab_size, false)?;
    let head = match task {
        Task::SeqCls => Head::Sequences(SequenceHead {
            // The reference takes the last place of a batch, padding or not.
            pick: Pick::LastReal { pad: None },
            input_dropout: None,
            pooler: None,
            dropout: Some(b.dropout("dropout", c.probability_or("classifier_dropout", 0.0)?)),
            linear: b.head_linear("classifier_head", hidden, c.num_labels()?, true)?,
        }),
        Task::FeatureExtraction => Head::Features,
        _ => Head::Tokens(TokenHead::of(output)),
    };
    Ok((Arc::new(decoder), head))
}

/// An error for what the published models don't use.
fn check_switches(c: &Config) -> Result<()> {
    let switches = [
        // The first ChatGLM's, which has little in common with its successors.
        ("position_encoding_2d", false, false),
        ("post_layer_norm", true, true),
        ("apply_residual_connection_post_layernorm", false, false),
    ];
    for (key, default, known) in switches {
        if c.switch_or(key, default)? != known {
            return Err(c.not_implemented(key, if known { "true" } else { "false" }));
        }
    }
    for key in ["pre_seq_len", "quantization_bit"] {
        if c.number_or(key, 0.0)? != 0.0 {
            return Err(c.not_implemented(key, "0"));
        }
    }
    Ok(())
}

/// Whether groups of heads have their keys and values in common, as in all published models.
fn shares_keys(c: &Config) -> Result<bool> {
    c.switch_or("multi_query_attention", false)
}

fn attention(c: &Config) -> Result<SelfAttentionShape> {
    let heads = c.size("num_attention_heads")?;
    let kv_heads = if shares_keys(c)? { c.size("multi_query_group_num")? } else { heads };
    if !heads.is_multiple_of(kv_heads) {
        return Err(c.wrong("multi_query_group_num", format!("a divisor of {heads} heads")));
    }
    let out_bias = c.switch_or("add_bias_linear", false)?;
    Ok(SelfAttentionShape {
        hidden_size: c.size("hidden_size")?,
        heads,
        kv_heads,
        head_dim: c.size_or("kv_channels", 128)?,
        qkv_bias: out_bias || c.switch_or("add_qkv_bias", false)?,
        out_bias,
        qk_norm: None,
        rotary: RotaryStyle::Pairs,
        // `apply_query_key_layer_scaling` divides and multiplies by the same number.
        scale: None,
        softcap: None,
        window: None,
        dropout: c.probability_or("attention_dropout", 0.0)?,
    })
}

fn mlp(c: &Config) -> Result<MlpShape> {
    Ok(MlpShape {
        hidden_size: c.size("hidden_size")?,
        intermediate_size: c.size("ffn_hidden_size")?,
        bias: c.switch_or("add_bias_linear", false)?,
        activation: Activation::Silu,
    })
}

fn decoder_shape(c: &Config) -> Result<DecoderShape> {
    let (hidden, eps) = (c.size("hidden_size")?, c.epsilon_or("layernorm_epsilon", 1e-5)?);
    Ok(DecoderShape {
        vocab_size: c.size("padded_vocab_size")?,
        padding: None,
        embedding_scale: None,
        layers: c.size("num_layers")?,
        norm: match c.switch_or("rmsnorm", true)? {
            true => NormShape::rms(hidden, eps),
            false => NormShape::layer(hidden, eps),
        },
        rotary: rotary(c)?,
    })
}

/// Positions of half a head, whose base `rope_ratio` stretches.
fn rotary(c: &Config) -> Result<Rotary> {
    let head_dim = c.size_or("kv_channels", 128)?;
    if !head_dim.is_multiple_of(4) {
        return Err(c.wrong("kv_channels", "a multiple of 4"));
    }
    let ratio = c.positive("rope_ratio")?.unwrap_or(1.0);
    let name = c.word("_name_or_path")?.unwrap_or_default();
    if ratio != 1.0 && name.contains("chatglm2") {
        // The code beside these weights divides positions by it.
        return Err(c.not_implemented("rope_ratio", "1 for ChatGLM2; any for its successors"));
    }
    Ok(Rotary::plain(10_000.0 * ratio, head_dim / 2))
}
