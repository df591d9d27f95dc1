//! The heads that encoders share, and the parts that they make their own of. Reference:
//! transformers `models/bert/modeling_bert.py`, `models/roberta/modeling_roberta.py`.

use lowrank_autograd::ops::Activation;
use lowrank_peft::layers::{Embedding, Linear};

use super::encoder::EncoderShape;
use crate::{
    Builder, Config, Head, Result, Task,
    task_heads::{Pick, SequenceHead, TokenHead, Transform},
};

/// The head of an encoder for `task` at the model's root `b`: `words` and `sequence` are its own,
/// tokens and answers are the family's. `dropout` comes before the classifier of tokens.
///
/// # Errors
/// When a tensor is misshapen or a config field wrong.
pub fn encoder_head(
    task: Task,
    c: &Config,
    (hidden, dropout): (usize, f32),
    b: &Builder,
    words: impl FnOnce() -> Result<TokenHead>,
    sequence: impl FnOnce() -> Result<SequenceHead>,
) -> Result<Head> {
    Ok(match task {
        Task::MaskedLm | Task::CausalLm => Head::Tokens(words()?),
        Task::SeqCls => Head::Sequences(sequence()?),
        Task::TokenCls => Head::Tokens(TokenHead {
            dropout: Some(b.dropout("dropout", dropout)),
            ..TokenHead::of(b.head_linear("classifier", hidden, c.num_labels()?, true)?)
        }),
        Task::QuestionAns => {
            Head::Tokens(TokenHead::of(b.head_linear("qa_outputs", hidden, 2, true)?))
        }
        _ => Head::Features,
    })
}

/// `classifier_dropout`, or without it the dropout of the residual stream.
///
/// # Errors
/// When the field is wrong.
pub fn classifier_dropout(c: &Config, s: &EncoderShape) -> Result<f32> {
    c.probability_or("classifier_dropout", f64::from(s.hidden_dropout_prob))
}

/// BERT's masked language head at `cls.predictions`: a dense layer back to the words' width, and
/// the words' table.
///
/// # Errors
/// When a tensor is misshapen or a config field wrong.
pub fn bert_predictions(
    c: &Config,
    s: &EncoderShape,
    table: &Embedding,
    b: &Builder,
) -> Result<TokenHead> {
    let b = b.at("cls.predictions");
    let transform = transform(s, s.hidden_act, ["dense", "LayerNorm"], &b.at("transform"))?;
    let linear = decoder(c, s, table, ["decoder", "bias"], &b)?;
    Ok(TokenHead { transform: Some(transform), ..TokenHead::of(linear) })
}

/// What comes before the last layer of a masked language head: a dense layer from the blocks' width
/// to the embeddings', and a norm, of these names at `b`.
///
/// # Errors
/// When a tensor is misshapen.
pub fn transform(
    s: &EncoderShape,
    activation: Activation,
    [dense, norm]: [&str; 2],
    b: &Builder,
) -> Result<Transform> {
    Ok(Transform {
        dense: b.head_linear(dense, s.hidden_size, s.embedding_size, true)?,
        activation,
        norm: Some(b.head_layer_norm(norm, s.embedding_size, s.layer_norm_eps)?),
    })
}

/// The last layer of a masked language head: the words' table with a bias of its own, of these
/// names at `b`, or a layer by itself.
///
/// # Errors
/// When a tensor is misshapen or a config field wrong.
pub fn decoder(
    c: &Config,
    s: &EncoderShape,
    table: &Embedding,
    [layer, bias]: [&str; 2],
    b: &Builder,
) -> Result<Linear> {
    if c.switch_or("tie_word_embeddings", true)? {
        return b.tied_linear(layer, table, Some(bias));
    }
    let words = c.size("vocab_size")?;
    let linear = b.head_linear(layer, s.embedding_size, words, true)?;
    if bias != format!("{layer}.bias") {
        // transformers' class still has it, though nothing reads it then.
        b.keep_parameter(bias, words)?;
    }
    Ok(linear)
}

/// BERT's pooler, below the base model.
///
/// # Errors
/// When its tensors are misshapen.
pub fn pooler(hidden: usize, base: &Builder) -> Result<Transform> {
    let dense = base.head_linear("pooler.dense", hidden, hidden, true)?;
    Ok(Transform { dense, activation: Activation::Tanh, norm: None })
}

/// A classifier on the pooled first token, at the model's root `b`.
///
/// # Errors
/// When its tensors are misshapen or a config field wrong.
pub fn pooled_classifier(
    c: &Config,
    pooler: Transform,
    dropout: f32,
    b: &Builder,
) -> Result<SequenceHead> {
    let hidden = pooler.dense.weight().weight().dims().first().copied().unwrap_or_default();
    Ok(SequenceHead {
        pick: Pick::First,
        input_dropout: None,
        pooler: Some(pooler),
        dropout: Some(b.dropout("dropout", dropout)),
        linear: b.head_linear("classifier", hidden, c.num_labels()?, true)?,
    })
}

/// `out_proj(drop(f(dense(drop(h)))))` of one token, at `b`: fairseq's classification head.
///
/// # Errors
/// When its tensors are misshapen or a config field wrong.
pub fn dense_classifier(
    c: &Config,
    (pick, activation): (Pick, Activation),
    (hidden, dropout): (usize, f32),
    b: &Builder,
) -> Result<SequenceHead> {
    let dense = b.head_linear("dense", hidden, hidden, true)?;
    Ok(SequenceHead {
        pick,
        input_dropout: Some(b.dropout("dense.dropout", dropout)),
        pooler: Some(Transform { dense, activation, norm: None }),
        dropout: Some(b.dropout("out_proj.dropout", dropout)),
        linear: b.head_linear("out_proj", hidden, c.num_labels()?, true)?,
    })
}
