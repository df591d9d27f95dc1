//! BERT: post-norm blocks that read in both directions, learned positions, segments.
//! Paper: arXiv:1810.04805. Reference: transformers `models/bert/modeling_bert.py`.

use std::sync::Arc;

use lowrank_autograd::ops::Activation;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, DropoutSite, Head, Network, Result, Task,
    blocks::{
        encoder::{Encoder, EncoderShape},
        multi_head::divided_attention,
    },
    task_heads::{Pick, SequenceHead, TokenHead, Transform},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "bert",
    class: "Bert",
    prefixes: &["bert"],
    paper: "arXiv:1810.04805",
    build,
    ..Architecture::ENCODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.switch_or("is_decoder", false)? {
        return Err(c.not_implemented("is_decoder", "false"));
    }
    if !matches!(c.word("position_embedding_type")?, None | Some("absolute")) {
        return Err(c.not_implemented("position_embedding_type", "absolute"));
    }
    let shape = shape(c)?;
    let base = b.base();
    let encoder = Arc::new(Encoder::build(&shape, c, &base)?);
    let head = head(c, task, &shape, encoder.as_ref(), &base, b)?;
    Ok((encoder, head))
}

fn shape(c: &Config) -> Result<EncoderShape> {
    Ok(EncoderShape {
        hidden_size: c.size("hidden_size")?,
        num_hidden_layers: c.size("num_hidden_layers")?,
        attention: divided_attention(c, "hidden_size", "num_attention_heads")?,
        intermediate_size: c.size("intermediate_size")?,
        hidden_act: c.activation("hidden_act", "gelu")?,
        layer_norm_eps: c.epsilon_or("layer_norm_eps", 1e-12)?,
        hidden_dropout_prob: c.probability_or("hidden_dropout_prob", 0.1)?,
        attention_probs_dropout_prob: c.probability_or("attention_probs_dropout_prob", 0.1)?,
    })
}

fn head(
    c: &Config,
    task: Task,
    s: &EncoderShape,
    encoder: &Encoder,
    base: &Builder,
    b: &Builder,
) -> Result<Head> {
    let hidden = s.hidden_size;
    Ok(match task {
        Task::MaskedLm => {
            let b = b.at("cls.predictions");
            let transform = Transform {
                dense: b.head_linear("transform.dense", hidden, hidden, true)?,
                activation: s.hidden_act,
                norm: Some(b.head_layer_norm("transform.LayerNorm", hidden, s.layer_norm_eps)?),
            };
            let linear = match c.switch_or("tie_word_embeddings", true)? {
                true => b.tied_linear("decoder", encoder.table(), Some("bias"))?,
                false => b.head_linear("decoder", hidden, c.size("vocab_size")?, true)?,
            };
            Head::Tokens(TokenHead { transform: Some(transform), ..TokenHead::of(linear) })
        }
        Task::SeqCls => Head::Sequences(SequenceHead {
            pick: Pick::First,
            pooler: Some(pooler(hidden, base)?),
            dropout: Some(classifier_dropout(c, s, b)?),
            linear: b.head_linear("classifier", hidden, c.num_labels()?, true)?,
        }),
        Task::TokenCls => Head::Tokens(TokenHead {
            dropout: Some(classifier_dropout(c, s, b)?),
            ..TokenHead::of(b.head_linear("classifier", hidden, c.num_labels()?, true)?)
        }),
        Task::QuestionAns => {
            Head::Tokens(TokenHead::of(b.head_linear("qa_outputs", hidden, 2, true)?))
        }
        _ => {
            // The bare model has a pooler, though its hidden states do without.
            pooler(hidden, base)?;
            Head::Features
        }
    })
}

fn pooler(hidden: usize, base: &Builder) -> Result<Transform> {
    let dense = base.head_linear("pooler.dense", hidden, hidden, true)?;
    Ok(Transform { dense, activation: Activation::Tanh, norm: None })
}

fn classifier_dropout(c: &Config, s: &EncoderShape, b: &Builder) -> Result<DropoutSite> {
    let p = c.probability_or("classifier_dropout", f64::from(s.hidden_dropout_prob))?;
    Ok(b.dropout("dropout", p))
}
