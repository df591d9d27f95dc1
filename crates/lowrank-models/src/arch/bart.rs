//! BART: an encoder and a decoder that were trained to restore texts.
//! Paper: arXiv:1910.13461. Reference: transformers `models/bart/modeling_bart.py`.

use std::sync::Arc;

use lowrank_peft::layers::{Embedding, Linear};

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Head, Result, Task,
    blocks::{
        bart_stack::{BartStack, BartStackShape},
        encoder_decoder::{EncoderDecoder, Half, answer_head, rereading_classifier},
    },
    task_heads::TokenHead,
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "bart",
    tasks: &[
        Task::Seq2SeqLm,
        Task::CausalLm,
        Task::SeqCls,
        Task::QuestionAns,
        Task::FeatureExtraction,
    ],
    class: "Bart",
    prefixes: &["model"],
    pad_token_id: Some(1),
    decoder_start_token_id: Some(2),
    forced_eos_token_id: Some(2),
    // Those of encoder and decoder aren't tied either.
    unties_all: true,
    paper: "arXiv:1910.13461",
    build,
    ..Architecture::ENCODER_DECODER
};

/// Names that go before BART's own where a config has both.
const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "d_model"),
    ("num_hidden_layers", "encoder_layers"),
    ("num_attention_heads", "encoder_attention_heads"),
];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (c, base) = (&c.with_aliases(ALIASES), b.base());
    if task == Task::CausalLm {
        return decoder_alone(c, b);
    }
    let (d_model, vocab_size) = (c.size("hidden_size")?, c.size("vocab_size")?);
    let shared = base.padded_embedding("shared", vocab_size, d_model, c.padding_row()?)?;
    let stack = |name, is_decoder| {
        let shape = BartStackShape::from_config(c, is_decoder)?;
        let place = base.at(name);
        BartStack::build(&shape, c, place.tied_embedding("embed_tokens", &shared)?, &place)
    };
    let (encoder, decoder) = (stack("encoder", false)?, stack("decoder", true)?);
    let head = match task {
        Task::Seq2SeqLm => language_head(c, &shared, b)?,
        Task::SeqCls => rereading_classifier(c, 2, b)?,
        Task::QuestionAns => answer_head(c, b)?,
        _ => Head::Features,
    };
    // Classifiers and the bare model have no target of their own.
    let start = c.token_id("decoder_start_token_id")?;
    let start = start.ok_or_else(|| c.wrong("decoder_start_token_id", "a token id"))?;
    let rereads_after = Some(start);
    Ok((Arc::new(EncoderDecoder { shared, encoder, decoder, rereads_after }), head))
}

/// A language model of the decoder, whose attention to a source rests.
fn decoder_alone(c: &Config, b: &Builder) -> Result<Parts> {
    let (base, sizes) = (b.base(), (c.size("vocab_size")?, c.size("hidden_size")?));
    // A file of both halves has one table for all.
    let place = base.at_filed("decoder.embed_tokens", "shared");
    let table = place.padded_embedding("", sizes.0, sizes.1, c.padding_row()?)?;
    let shape = BartStackShape::from_config(c, true)?;
    let stack = BartStack::build(&shape, c, table.clone(), &base.at("decoder"))?;
    let head = Head::Tokens(TokenHead::of(output_layer(c, &table, b)?));
    Ok((Arc::new(Half { table, stack }), head))
}

fn language_head(c: &Config, shared: &Embedding, b: &Builder) -> Result<Head> {
    let offsets = Some(b.buffer_or_zeros("final_logits_bias", &[1, c.size("vocab_size")?])?);
    Ok(Head::Tokens(TokenHead { offsets, ..TokenHead::of(output_layer(c, shared, b)?) }))
}

fn output_layer(c: &Config, table: &Embedding, b: &Builder) -> Result<Linear> {
    match c.switch_or("tie_word_embeddings", true)? {
        true => b.tied_linear("lm_head", table, None),
        false => b.linear("lm_head", c.size("hidden_size")?, c.size("vocab_size")?, false),
    }
}
