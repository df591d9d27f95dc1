//! BART: an encoder and a decoder that were trained to restore texts.
//! Paper: arXiv:1910.13461. Reference: transformers `models/bart/modeling_bart.py`.

use std::sync::Arc;

use lowrank_peft::layers::Embedding;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Head, Result, Task,
    blocks::{
        bart_stack::{BartStack, BartStackShape},
        encoder_decoder::{EncoderDecoder, answer_head, rereading_classifier},
    },
    task_heads::TokenHead,
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "bart",
    tasks: &[Task::Seq2SeqLm, Task::SeqCls, Task::QuestionAns, Task::FeatureExtraction],
    class: "Bart",
    prefixes: &["model"],
    paper: "arXiv:1910.13461",
    build,
    ..Architecture::ENCODER_DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let base = b.base();
    let (d_model, vocab_size) = (c.size("d_model")?, c.size("vocab_size")?);
    let shared = base.embedding("shared", vocab_size, d_model)?;
    let stack = |name, is_decoder| {
        let shape = BartStackShape::from_config(c, is_decoder)?;
        BartStack::build(&shape, c, &shared, &base.at(name))
    };
    let (encoder, decoder) = (stack("encoder", false)?, stack("decoder", true)?);
    let head = match task {
        Task::Seq2SeqLm => language_head(c, &shared, b)?,
        Task::SeqCls => rereading_classifier(c, 2, b)?,
        Task::QuestionAns => answer_head(c, b)?,
        _ => Head::Features,
    };
    // Classifiers and the bare model have no target of their own.
    let rereads_after = Some(c.token_id("decoder_start_token_id")?.unwrap_or(2));
    Ok((Arc::new(EncoderDecoder { shared, encoder, decoder, rereads_after }), head))
}

fn language_head(c: &Config, shared: &Embedding, b: &Builder) -> Result<Head> {
    let (d_model, vocab_size) = (c.size("d_model")?, c.size("vocab_size")?);
    let offsets = Some(b.buffer_or_zeros("final_logits_bias", &[1, vocab_size])?);
    let linear = match c.switch_or("tie_word_embeddings", true)? {
        true => b.tied_linear("lm_head", shared, None)?,
        false => b.linear("lm_head", d_model, vocab_size, false)?,
    };
    Ok(Head::Tokens(TokenHead { offsets, ..TokenHead::of(linear) }))
}
