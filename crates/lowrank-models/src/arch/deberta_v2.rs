//! DeBERTa versions 2 and 3: distances on a logarithmic scale under a norm, their projections those
//! of the contents, and a convolution beside the first block.
//! Papers: arXiv:2006.03654, arXiv:2111.09543. Reference: transformers
//! `models/deberta_v2/modeling_deberta_v2.py`.

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
    model_type: "deberta-v2",
    class: "DebertaV2",
    prefixes: &["deberta"],
    paper: "arXiv:2006.03654",
    build,
    ..Architecture::ENCODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let s = shape(c)?;
    let encoder = DisentangledEncoder::build(&s, c, &b.base(), |b| attention(&s, c, b))?;
    let head = disentangled_head(task, c, &s.encoder, encoder.table(), b)?;
    Ok((Arc::new(encoder), head))
}

fn shape(c: &Config) -> Result<DisentangledShape> {
    let s = DisentangledShape::from_config(c, true)?;
    let dim = s.encoder.attention.head_dim;
    if c.size_or("attention_head_size", dim)? != dim {
        return Err(c.wrong("attention_head_size", format!("{dim}, a head's share of the width")));
    }
    let norm = c.word("norm_rel_ebd")?.unwrap_or("none").to_lowercase();
    let has_conv = c.number_or("conv_kernel_size", 0.0)? > 0.0;
    Ok(DisentangledShape {
        norm_relative: norm.split('|').any(|word| word.trim() == "layer_norm"),
        conv_kernel_size: has_conv.then(|| c.size("conv_kernel_size")).transpose()?,
        ..s
    })
}

fn attention(s: &DisentangledShape, c: &Config, b: &Builder) -> Result<DisentangledAttention> {
    let (hidden, own) = (s.encoder.hidden_size, b.at("self"));
    let terms = PositionTerms::from_config(c)?;
    let square = |name| own.linear(name, hidden, hidden, true);
    let [query, key, value] = [square("query_proj")?, square("key_proj")?, square("value_proj")?];
    let shared = c.switch_or("share_att_key", false)?;
    let for_distances = |on: bool, of_contents: &_, name| match (on && s.relative.is_some(), shared)
    {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(Clone::clone(of_contents))),
        (true, false) => square(name).map(Some),
    };
    let position_keys = for_distances(terms.content_to_position, &key, "pos_key_proj")?;
    let position_queries = for_distances(terms.position_to_content, &query, "pos_query_proj")?;
    let [position_dropout, dropout] = DisentangledAttention::dropouts(c, &own)?;
    Ok(DisentangledAttention {
        projections: Projections::Apart([query, key, value]),
        position_keys,
        position_queries,
        output: b.linear("output.dense", hidden, hidden, true)?,
        heads: s.encoder.attention.heads,
        scale: DisentangledAttention::scale(s.encoder.attention.head_dim, 1 + terms.known()),
        position_dropout,
        dropout,
    })
}
