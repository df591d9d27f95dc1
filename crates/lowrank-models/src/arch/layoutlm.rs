//! LayoutLM: BERT that also reads where each word stands on its page.
//! Paper: arXiv:1912.13318. Reference: transformers `models/layoutlm/modeling_layoutlm.py`.

use std::sync::Arc;

use super::{Architecture, Beside, Modality, Parts};
use crate::{
    Builder, Config, Network as _, Result, Task,
    blocks::{
        encoder::{Encoder, EncoderShape},
        encoder_embeddings::EncoderEmbeddings,
        encoder_heads::{bert_predictions, encoder_head, pooled_classifier, pooler},
        word_boxes::WordBoxes,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "layoutlm",
    modality: Modality::Multimodal,
    beside: Beside::Boxes,
    class: "LayoutLM",
    prefixes: &["layoutlm"],
    paper: "arXiv:1912.13318",
    build,
    ..Architecture::ENCODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let s = EncoderShape::from_config(c)?;
    let base = b.base();
    let place = base.at("embeddings");
    let mut embeddings = EncoderEmbeddings::build(&s, c, &place)?;
    embeddings.boxes = Some(WordBoxes::build(s.hidden_size, c, &place)?);
    let encoder = Encoder::build(&s, embeddings, &base)?;
    // Every head's base model has it.
    let pooler = pooler(s.hidden_size, &base)?;
    let dropout = s.hidden_dropout_prob;
    let masked = || bert_predictions(c, &s, encoder.table(), b);
    let sequence = || pooled_classifier(c, pooler, dropout, b);
    let head = encoder_head(task, c, (s.hidden_size, dropout), b, masked, sequence)?;
    Ok((Arc::new(encoder), head))
}
