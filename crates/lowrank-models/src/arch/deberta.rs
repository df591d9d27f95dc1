//! DeBERTa: an encoder whose attention weighs contents and distances apart.
//! Paper: arXiv:2006.03654. Reference: transformers `models/deberta/modeling_deberta.py`.

use std::sync::Arc;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Network as _, Result, Task,
    blocks::{
        disentangled_attention::{DisentangledAttention, PositionTerms, Projections},
        disentangled_encoder::{DisentangledEncoder, DisentangledShape, disentangled_head},
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "deberta",
    class: "Deberta",
    prefixes: &["deberta"],
    paper: "arXiv:2006.03654",
    build,
    ..Architecture::ENCODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.switch_or("talking_head", false)? {
        return Err(c.not_implemented("talking_head", "false"));
    }
    let s = DisentangledShape::from_config(c, false)?;
    let base = b.base();
    let encoder = DisentangledEncoder::build(&s, c, &base, |b| attention(&s, c, b))?;
    let head = disentangled_head(task, c, &s.encoder, encoder.table(), b)?;
    Ok((Arc::new(encoder), head))
}

fn attention(s: &DisentangledShape, c: &Config, b: &Builder) -> Result<DisentangledAttention> {
    let (hidden, own) = (s.encoder.hidden_size, b.at("self"));
    let terms = PositionTerms::from_config(c)?;
    let projections = Projections::Fused {
        in_proj: own.linear("in_proj", hidden, 3 * hidden, false)?,
        q_bias: own.parameter("q_bias", &[hidden])?,
        v_bias: own.parameter("v_bias", &[hidden])?,
    };
    let for_distances = |on: bool, name, bias| {
        let wanted = on && s.relative.is_some();
        wanted.then(|| own.linear(name, hidden, hidden, bias)).transpose()
    };
    let [position_dropout, dropout] = DisentangledAttention::dropouts(c, &own)?;
    Ok(DisentangledAttention {
        projections,
        position_keys: for_distances(terms.content_to_position, "pos_proj", false)?,
        position_queries: for_distances(terms.position_to_content, "pos_q_proj", true)?,
        output: b.linear("output.dense", hidden, hidden, true)?,
        heads: s.encoder.attention.heads,
        // Every entry of the list counts, known or not, with distances or without.
        scale: DisentangledAttention::scale(s.encoder.attention.head_dim, 1 + terms.entries),
        position_dropout,
        dropout,
    })
}
