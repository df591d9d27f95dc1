//! T5 and T5 v1.1: an encoder and a decoder with relative positions and one embedding for both.
//! Papers: arXiv:1910.10683, arXiv:2002.05202 (v1.1's gated feed-forward layers). Reference:
//! transformers `models/t5/modeling_t5.py`.

use std::sync::Arc;

use lowrank_autograd::{Result as ComputeResult, Value, ops::Activation};
use lowrank_peft::{Pass, layers::Embedding};

use super::{Architecture, Parts};
use crate::{
    Builder, Cache, Config, Context, Encoded, Head, Input, Network, Result, Task,
    blocks::{
        multi_head::full_attention,
        relative_position::Buckets,
        t5_stack::{Stack, StackShape},
    },
    task_heads::TokenHead,
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "t5",
    class: "T5",
    prefixes: &["transformer"],
    paper: "arXiv:1910.10683",
    build,
    ..Architecture::ENCODER_DECODER
};

#[derive(Debug)]
struct T5 {
    shared: Embedding,
    encoder: Stack,
    decoder: Stack,
}

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
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
    let shape = |is_decoder| shape(c, is_decoder, feed_forward_proj);
    let shared = b.embedding("shared", c.size("vocab_size")?, c.size("d_model")?)?;
    let encoder = Stack::build(&shape(false)?, &shared, &b.at("encoder"))?;
    let decoder = Stack::build(&shape(true)?, &shared, &b.at("decoder"))?;
    let head = match task {
        Task::Seq2SeqLm => Head::Tokens(TokenHead {
            scale,
            // v1.1 has a head of its own, which its files carry whatever they say about tying.
            ..TokenHead::of(b.tied_linear("lm_head", &shared, None)?)
        }),
        _ => Head::Features,
    };
    Ok((Arc::new(T5 { shared, encoder, decoder }), head))
}

/// The factor before a head that was trained tied: `d_model^-0.5`. transformers 5 writes what
/// older configs said by `tie_word_embeddings` as `scale_decoder_outputs`.
fn scale(c: &Config) -> Result<Option<f32>> {
    let tied = c.switch_or("tie_word_embeddings", true)?;
    let scaled = c.switch_or("scale_decoder_outputs", tied)?;
    let d_model = c.size("d_model")?;
    Ok(scaled.then(|| (d_model as f32).sqrt().recip()))
}

fn shape(c: &Config, is_decoder: bool, feed_forward_proj: &str) -> Result<StackShape> {
    let num_layers = c.size("num_layers")?;
    let (dense_act_fn, is_gated_act) = activation(c, feed_forward_proj)?;
    Ok(StackShape {
        d_model: c.size("d_model")?,
        d_ff: c.size("d_ff")?,
        num_layers: if is_decoder {
            c.size_or("num_decoder_layers", num_layers)?
        } else {
            num_layers
        },
        attention: full_attention(c.size("num_heads")?, c.size("d_kv")?),
        buckets: Buckets::from_config(c, !is_decoder)?,
        is_decoder,
        dense_act_fn,
        is_gated_act,
        dropout_rate: c.probability_or("dropout_rate", 0.1)?,
        layer_norm_epsilon: c.epsilon_or("layer_norm_epsilon", 1e-6)?,
    })
}

/// `relu`, or `gated-` and the name of an activation.
fn activation(c: &Config, default: &str) -> Result<(Activation, bool)> {
    let word = c.word("feed_forward_proj")?.unwrap_or(default);
    let (gated, name) = match word.strip_prefix("gated-") {
        // The name is older than the distinction: v1.1 was trained with the tanh approximation.
        Some("gelu") => (true, "gelu_new"),
        Some(name) => (true, name),
        None => (false, word),
    };
    let known = "relu, gelu, silu, gated-gelu, gated-silu";
    let activation = Activation::named(name);
    Ok((activation.ok_or_else(|| c.not_implemented("feed_forward_proj", known))?, gated))
}

impl Network for T5 {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> ComputeResult<Value> {
        let source = context.source(&input.sequences)?;
        self.decoder.forward(input, Some(source), context.cache, pass)
    }

    fn encode(&self, input: &Input, pass: &Pass) -> ComputeResult<Encoded> {
        let hidden = self.encoder.forward(input, None, None, pass)?;
        Ok(Encoded { hidden, sequences: input.sequences.clone(), pass: pass.clone() })
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.decoder.layers(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.shared
    }
}
