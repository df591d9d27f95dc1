//! ELECTRA: BERT with embeddings of a width of their own, trained to tell real tokens from a
//! generator's. Paper: arXiv:2003.10555. Reference: transformers
//! `models/electra/modeling_electra.py`.

use std::sync::Arc;

use lowrank_autograd::ops::Activation;
use lowrank_peft::layers::Embedding;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Network as _, Result, Task,
    blocks::{
        encoder::{Encoder, EncoderShape},
        encoder_embeddings::EncoderEmbeddings,
        encoder_heads::{classifier_dropout, decoder, dense_classifier, encoder_head},
    },
    task_heads::{Pick, TokenHead, Transform},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "electra",
    class: "Electra",
    prefixes: &["electra"],
    paper: "arXiv:2003.10555",
    build,
    ..Architecture::ENCODER_OR_DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let embedding_size = c.size_or("embedding_size", 128)?;
    let s = EncoderShape { embedding_size, ..EncoderShape::either_way(task, c)? };
    let base = b.base();
    let embeddings = EncoderEmbeddings::build(&s, c, &base.at("embeddings"))?;
    let encoder = Encoder::build(&s, embeddings, &base)?;
    let sizes = (s.hidden_size, classifier_dropout(c, &s)?);
    let words = || words_head(c, &s, encoder.table(), b);
    let sequence =
        || dense_classifier(c, (Pick::First, Activation::Gelu), sizes, &b.at("classifier"));
    let head = encoder_head(task, c, sizes, b, words, sequence)?;
    Ok((Arc::new(encoder), head))
}

/// The generator's head: back to the embeddings' width, then their table.
fn words_head(c: &Config, s: &EncoderShape, table: &Embedding, b: &Builder) -> Result<TokenHead> {
    let predictions = b.at("generator_predictions");
    let (wide, narrow) = (s.hidden_size, s.embedding_size);
    // transformers' class has the norm before the layer.
    let norm = Some(predictions.head_layer_norm("LayerNorm", narrow, s.layer_norm_eps)?);
    let dense = predictions.head_linear("dense", wide, narrow, true)?;
    // Whatever `hidden_act` says.
    let transform = Transform { dense, activation: Activation::Gelu, norm };
    let names = ["generator_lm_head", "generator_lm_head.bias"];
    let linear = decoder(c, s, table, names, b)?;
    Ok(TokenHead { transform: Some(transform), ..TokenHead::of(linear) })
}
