//! T5 and T5 v1.1: an encoder and a decoder with relative positions and one embedding for both.
//! Papers: arXiv:1910.10683, arXiv:2002.05202 (v1.1's gated feed-forward layers). Reference:
//! transformers `models/t5/modeling_t5.py`.

use std::sync::Arc;

use lowrank_autograd::ops::Activation;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Head, Result, Task,
    blocks::{
        encoder_decoder::{EncoderDecoder, Half, answer_head, rereading_classifier},
        multi_head::full_attention,
        relative_position::Buckets,
        t5_stack::{Stack, StackShape},
    },
    task_heads::TokenHead,
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "t5",
    tasks: &[
        Task::Seq2SeqLm,
        Task::SeqCls,
        Task::TokenCls,
        Task::QuestionAns,
        Task::FeatureExtraction,
    ],
    class: "T5",
    prefixes: &["transformer"],
    paper: "arXiv:1910.10683",
    build,
    ..Architecture::ENCODER_DECODER
};

/// Names that go before T5's own where a config has both.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("num_hidden_layers", "num_layers"),
    ("num_attention_heads", "num_heads"),
    ("head_dim", "d_kv"),
];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_aliases(ALIASES);
    build_with(c, task, b, "relu", scale(c)?)
}

/// Both stacks and the head. `feed_forward_proj` is what a config without the field means, `scale`
/// the factor before the head.
pub(super) fn build_with(
    c: &Config,
    task: Task,
    b: &Builder,
    feed_forward_proj: &str,
    scale: Option<f32>,
) -> Result<Parts> {
    let c = &c.with_aliases(ALIASES);
    let shape = |is_decoder| shape(c, is_decoder, feed_forward_proj);
    let classifies = matches!(task, Task::SeqCls | Task::TokenCls);
    // The language model and the one that answers questions hold their halves themselves.
    let base = if classifies { b.base() } else { b.clone() };
    let shared = base.embedding("shared", c.size("vocab_size")?, c.size("hidden_size")?)?;
    let encoder = Stack::build(&shape(false)?, &shared, &base.at("encoder"))?;
    if task == Task::TokenCls {
        return Ok((Arc::new(Half { table: shared, stack: encoder }), token_head(c, b)?));
    }
    let decoder = Stack::build(&shape(true)?, &shared, &base.at("decoder"))?;
    let head = match task {
        Task::Seq2SeqLm => Head::Tokens(TokenHead {
            scale,
            // v1.1 has a head of its own, which its files carry whatever they say about tying.
            ..TokenHead::of(b.tied_linear("lm_head", &shared, None)?)
        }),
        Task::SeqCls => rereading_classifier(c, 1, b)?,
        Task::QuestionAns => answer_head(c, b)?,
        _ => Head::Features,
    };
    let rereads_after = match task {
        Task::SeqCls | Task::QuestionAns => Some(target_start(c)?),
        _ => None,
    };
    Ok((Arc::new(EncoderDecoder { shared, encoder, decoder, rereads_after }), head))
}

/// A label for each of the encoder's states.
fn token_head(c: &Config, b: &Builder) -> Result<Head> {
    let classifier = b.head_linear("classifier", c.size("hidden_size")?, c.num_labels()?, true)?;
    let dropout = b.dropout("dropout", c.probability_or("classifier_dropout", 0.0)?);
    Ok(Head::Tokens(TokenHead { dropout: Some(dropout), ..TokenHead::of(classifier) }))
}

/// What a target begins with.
fn target_start(c: &Config) -> Result<u32> {
    let start = c.token_id("decoder_start_token_id")?.or(c.token_id("pad_token_id")?);
    start.ok_or_else(|| c.wrong("decoder_start_token_id", "a token id"))
}

/// The factor before a head that was trained tied: `d_model^-0.5`. transformers 5 writes what
/// older configs said by `tie_word_embeddings` as `scale_decoder_outputs`.
fn scale(c: &Config) -> Result<Option<f32>> {
    let tied = c.switch_or("tie_word_embeddings", true)?;
    let scaled = c.switch_or("scale_decoder_outputs", tied)?;
    let d_model = c.size("hidden_size")?;
    Ok(scaled.then(|| (d_model as f32).sqrt().recip()))
}

fn shape(c: &Config, is_decoder: bool, feed_forward_proj: &str) -> Result<StackShape> {
    let num_layers = match c.size_or_none("num_decoder_layers")?.filter(|_| is_decoder) {
        Some(layers) => layers,
        None => c.size(if is_decoder { "num_layers" } else { "num_hidden_layers" })?,
    };
    let (dense_act_fn, is_gated_act) = activation(c, feed_forward_proj)?;
    Ok(StackShape {
        d_model: c.size("hidden_size")?,
        d_ff: c.size("d_ff")?,
        num_layers,
        attention: full_attention(c.size("num_attention_heads")?, c.size("head_dim")?),
        buckets: Buckets::from_config(c, !is_decoder)?,
        is_decoder,
        dense_act_fn,
        is_gated_act,
        dropout_rate: c.probability_or("dropout_rate", 0.1)?,
        layer_norm_epsilon: c.epsilon_or("layer_norm_epsilon", 1e-6)?,
    })
}

/// `relu`, or `gated-` and the name of an activation; what a config says of either part by itself
/// goes before that.
fn activation(c: &Config, default: &str) -> Result<(Activation, bool)> {
    let word = c.word("feed_forward_proj")?.unwrap_or(default);
    let (gated, name) = match word.strip_prefix("gated-") {
        // The name is older than the distinction: v1.1 was trained with the tanh approximation.
        Some("gelu") => (true, "gelu_new"),
        Some(name) => (true, name),
        None => (false, word),
    };
    let gated = c.switch_or("is_gated_act", gated)?;
    if c.get("dense_act_fn").is_some() {
        return Ok((c.activation("dense_act_fn", name)?, gated));
    }
    let known = "relu, gelu, silu, gated-gelu, gated-silu";
    let activation = Activation::named(name);
    Ok((activation.ok_or_else(|| c.not_implemented("feed_forward_proj", known))?, gated))
}
