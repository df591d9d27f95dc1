//! RoBERTa: BERT whose positions count from the padding token on, with heads of its own.
//! Paper: arXiv:1907.11692. Reference: transformers `models/roberta/modeling_roberta.py`.

use std::sync::Arc;

use lowrank_autograd::ops::Activation;
use lowrank_peft::layers::Embedding;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Network as _, Result, Task,
    blocks::{
        encoder::{Encoder, EncoderShape},
        encoder_embeddings::EncoderEmbeddings,
        encoder_heads::{
            classifier_dropout, decoder, dense_classifier, encoder_head, pooler, transform,
        },
    },
    task_heads::{Pick, TokenHead},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "roberta",
    class: "Roberta",
    prefixes: &["roberta"],
    pad_token_id: Some(1),
    paper: "arXiv:1907.11692",
    build,
    ..Architecture::ENCODER_OR_DECODER
};

pub(super) fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let s = EncoderShape::either_way(task, c)?;
    let base = b.base();
    let embeddings = EncoderEmbeddings::build_after_padding(&s, c, &base.at("embeddings"))?;
    let encoder = Encoder::build(&s, embeddings, &base)?;
    if task == Task::FeatureExtraction {
        // The bare model has a pooler, though its hidden states do without.
        pooler(s.hidden_size, &base)?;
    }
    let sizes = (s.hidden_size, classifier_dropout(c, &s)?);
    let words = || words_head(c, &s, encoder.table(), &b.at("lm_head"));
    let sequence =
        || dense_classifier(c, (Pick::First, Activation::Tanh), sizes, &b.at("classifier"));
    let head = encoder_head(task, c, sizes, b, words, sequence)?;
    Ok((Arc::new(encoder), head))
}

fn words_head(c: &Config, s: &EncoderShape, table: &Embedding, b: &Builder) -> Result<TokenHead> {
    // Whatever `hidden_act` says.
    let transform = transform(s, Activation::Gelu, ["dense", "layer_norm"], b)?;
    let linear = decoder(c, s, table, ["decoder", "bias"], b)?;
    Ok(TokenHead { transform: Some(transform), ..TokenHead::of(linear) })
}
