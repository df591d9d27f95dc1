//! BERT: post-norm blocks that read in both directions, learned positions, segments.
//! Paper: arXiv:1810.04805. Reference: transformers `models/bert/modeling_bert.py`.

use std::sync::Arc;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Network as _, Result, Task,
    blocks::{
        encoder::{Encoder, EncoderShape},
        encoder_embeddings::EncoderEmbeddings,
        encoder_heads::{
            bert_predictions, classifier_dropout, encoder_head, pooled_classifier, pooler,
        },
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "bert",
    class: "Bert",
    causal_lm: "LMHeadModel",
    prefixes: &["bert"],
    paper: "arXiv:1810.04805",
    build,
    ..Architecture::ENCODER_OR_DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let s = EncoderShape::either_way(task, c)?;
    let base = b.base();
    let embeddings = EncoderEmbeddings::build(&s, c, &base.at("embeddings"))?;
    let encoder = Encoder::build(&s, embeddings, &base)?;
    if task == Task::FeatureExtraction {
        // The bare model has a pooler, though its hidden states do without.
        pooler(s.hidden_size, &base)?;
    }
    let dropout = classifier_dropout(c, &s)?;
    let words = || bert_predictions(c, &s, encoder.table(), b);
    let sequence = || pooled_classifier(c, pooler(s.hidden_size, &base)?, dropout, b);
    let head = encoder_head(task, c, (s.hidden_size, dropout), b, words, sequence)?;
    Ok((Arc::new(encoder), head))
}
