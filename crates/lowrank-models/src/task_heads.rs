//! Task heads: from hidden states to logits.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation, ScoredTargets},
};
use lowrank_peft::{
    Pass,
    layers::{Bare, Linear, Norm},
};

use crate::{Builder, Config, DropoutSite, Input, Network, Task};

/// The head of a model.
#[derive(Clone, Debug)]
pub enum Head {
    /// None: the hidden states are the result.
    Features,
    /// Logits for every token.
    Tokens(TokenHead),
    /// Logits for every sequence.
    Sequences(SequenceHead),
}

/// `linear(drop(transform(scale·h))) + offsets` of every token, capped where the model says so.
#[derive(Clone, Debug)]
pub struct TokenHead {
    /// Factor of the hidden states (T5 with tied embeddings).
    pub scale: Option<f32>,
    /// BERT's dense layer before the decoder.
    pub transform: Option<Transform>,
    /// Dropout before the last layer.
    pub dropout: Option<DropoutSite>,
    /// The last layer.
    pub linear: Linear,
    /// What is added to the logits besides (BART, DeBERTa).
    pub offsets: Option<Bare>,
    /// `c` of `c·tanh(logit/c)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// `norm(f(dense(h)))`.
#[derive(Clone, Debug)]
pub struct Transform {
    /// The dense layer.
    pub dense: Linear,
    /// `f`
    pub activation: Activation,
    /// The norm; none in poolers.
    pub norm: Option<Norm>,
}

impl Transform {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let x = ops::activation(&self.dense.forward(x, pass)?, self.activation)?;
        self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x, pass))
    }
}

/// `linear(drop(pooler(drop(h))))` of one token of each sequence.
#[derive(Clone, Debug)]
pub struct SequenceHead {
    /// Which token.
    pub pick: Pick,
    /// Dropout before the pooler.
    pub input_dropout: Option<DropoutSite>,
    /// BERT's pooler.
    pub pooler: Option<Transform>,
    /// Dropout before the last layer.
    pub dropout: Option<DropoutSite>,
    /// The last layer.
    pub linear: Linear,
}

/// Which token stands for its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The first.
    First,
    /// The last one that isn't the padding token.
    LastReal {
        /// `pad_token_id`
        pad: Option<u32>,
    },
    /// The last one that is this token (BART's end of the sequence).
    LastOf(u32),
}

impl Pick {
    /// The row of each sequence's token.
    ///
    /// # Errors
    /// When a sequence lacks the token that stands for it.
    pub fn rows(self, input: &Input) -> Result<Arc<[usize]>> {
        let id = |row: &usize| input.ids.get(*row).copied();
        let row = |(i, span): (usize, &ops::Span)| match self {
            Self::First => Ok(span.queries.start),
            Self::LastReal { pad } => {
                let last = span.queries.clone().rev().find(|row| pad.is_none() || id(row) != pad);
                Ok(last.unwrap_or(span.queries.start))
            }
            Self::LastOf(token) => {
                let last = span.queries.clone().rev().find(|row| id(row) == Some(token));
                last.ok_or_else(|| {
                    let what = format!("sequence {i} has no token {token} (`eos_token_id`)");
                    candle_core::Error::Msg(what).into()
                })
            }
        };
        input.sequences.spans.iter().enumerate().map(row).collect()
    }
}

impl Head {
    /// Logits from `hidden` `[tokens, hidden_size]`: `[tokens, classes]`, or `[sequences, classes]`
    /// for a [`Head::Sequences`]. `rows` limits a token head to those tokens.
    ///
    /// # Errors
    /// When the states don't fit.
    pub fn logits(
        &self,
        hidden: &Value,
        input: &Input,
        rows: Option<&Arc<[usize]>>,
        pass: &Pass,
    ) -> Result<Value> {
        match self {
            Self::Features => ops::widen(hidden),
            Self::Tokens(head) => match rows {
                Some(rows) => head.forward(&ops::select_rows(hidden, rows)?, &pass.for_rows(rows)),
                None => head.forward(hidden, pass),
            },
            Self::Sequences(head) => {
                let rows = head.pick.rows(input)?;
                let picked = ops::select_rows(hidden, &rows)?;
                head.forward(&picked, &pass.for_rows(&rows))
            }
        }
    }

    /// The cross-entropy of the classes of a [`Head::Tokens`]' tokens `rows`, summed, without the
    /// matrix of their logits where the last layer doesn't train. Another head's logits are scored
    /// as they are.
    ///
    /// # Errors
    /// When the states or classes don't fit.
    pub fn cross_entropy(
        &self,
        hidden: &Value,
        input: &Input,
        (rows, classes): (&Arc<[usize]>, &Arc<[u32]>),
        pass: &Pass,
    ) -> Result<ScoredTargets> {
        match self {
            Self::Tokens(head) => {
                let picked = ops::select_rows(hidden, rows)?;
                head.cross_entropy(&picked, classes, &pass.for_rows(rows))
            }
            _ => ops::scored_cross_entropy(&self.logits(hidden, input, Some(rows), pass)?, classes),
        }
    }
}

impl TokenHead {
    /// A head of one linear layer.
    pub fn of(linear: Linear) -> Self {
        let (scale, transform, dropout, offsets, softcap) = (None, None, None, None, None);
        Self { scale, transform, dropout, linear, offsets, softcap }
    }

    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let logits = self.linear.logits(&self.before_linear(x, pass)?, pass)?;
        let offsets = self.offsets.as_ref().map(|offsets| offsets.rows(pass)).transpose()?;
        let logits = offsets.map_or(Ok(logits.clone()), |o| ops::add_row(&logits, &o))?;
        let Some(cap) = self.softcap else { return Ok(logits) };
        ops::scale(&ops::activation(&ops::scale(&logits, cap.recip())?, Activation::Tanh)?, cap)
    }

    fn cross_entropy(&self, x: &Value, classes: &Arc<[u32]>, pass: &Pass) -> Result<ScoredTargets> {
        if !self.is_frozen(pass) {
            return ops::scored_cross_entropy(&self.forward(x, pass)?, classes);
        }
        let (x, weight) = (self.before_linear(x, pass)?, self.linear.weight().weight());
        let bias = self.frozen_bias()?;
        ops::linear_cross_entropy(&x, &weight, bias.as_ref(), self.softcap, classes)
    }

    /// Whether what makes the logits is base tensors alone in this pass.
    fn is_frozen(&self, pass: &Pass) -> bool {
        let offsets = self.offsets.as_ref().map(Bare::tensor);
        let tensors = || [self.linear.bias(), offsets].into_iter().flatten();
        let has_copy = |name: &str| {
            let weight = self.linear.weight().copy_of(name);
            weight.is_some() || tensors().any(|tensor| tensor.copy_of(name).is_some())
        };
        pass.adapters().iter().all(|name| self.linear.adapter(name).is_none() && !has_copy(name))
    }

    /// All that is added to the logits.
    fn frozen_bias(&self) -> Result<Option<Tensor>> {
        let own = self.linear.bias().map(|b| b.weight().to_f32()).transpose()?;
        let offsets = self.offsets.as_ref().map(|o| o.tensor().weight().to_f32()).transpose()?;
        let offsets = offsets.map(|offsets| offsets.flatten_all()).transpose()?;
        Ok(match (own, offsets) {
            (Some(own), Some(offsets)) => Some((own + offsets)?),
            (own, offsets) => own.or(offsets),
        })
    }

    fn before_linear(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let x = self.scale.map_or(Ok(x.clone()), |scale| ops::scale(x, scale))?;
        let x = self.transform.as_ref().map_or(Ok(x.clone()), |t| t.forward(&x, pass))?;
        self.dropout.map_or(Ok(x.clone()), |d| d.forward(&x, pass))
    }
}

impl SequenceHead {
    fn forward(&self, x: &Value, pass: &Pass) -> Result<Value> {
        let x = self.input_dropout.map_or(Ok(x.clone()), |d| d.forward(x, pass))?;
        let x = self.pooler.as_ref().map_or(Ok(x.clone()), |t| t.forward(&x, pass))?;
        let x = self.dropout.map_or(Ok(x.clone()), |d| d.forward(&x, pass))?;
        self.linear.logits(&x, pass)
    }
}

/// Where a decoder's head keeps things: transformers' `modeling_layers.py`, `Generic…`.
#[derive(Clone, Copy, Debug)]
pub struct DecoderHeads {
    /// Name of the token classifier.
    pub token_classifier: &'static str,
    /// Field with the dropout of the token classifier, and the default without it.
    pub token_dropout: (&'static str, f64),
    /// Whether `lm_head` has a bias.
    pub output_bias: bool,
    /// Whether `lm_head` reads the embedding's table where the config doesn't say.
    pub tied: bool,
}

impl DecoderHeads {
    /// As transformers' generic heads have it.
    pub const GENERIC: Self = Self {
        token_classifier: "score",
        token_dropout: ("hidden_dropout", 0.1),
        output_bias: false,
        tied: true,
    };
}

/// A decoder with its head for `task`, at the model's root `b`.
///
/// # Errors
/// As [`decoder_head`].
pub fn with_decoder_head(
    task: Task,
    c: &Config,
    network: impl Network + 'static,
    names: DecoderHeads,
    b: &Builder,
) -> crate::Result<(Arc<dyn Network>, Head)> {
    let head = decoder_head(task, c, &network, names, b)?;
    Ok((Arc::new(network), head))
}

/// The head of a decoder for `task`, at the model's root `b`.
///
/// # Errors
/// When the head's tensors are misshapen or a config field is wrong.
pub fn decoder_head(
    task: Task,
    c: &Config,
    network: &dyn Network,
    names: DecoderHeads,
    b: &Builder,
) -> crate::Result<Head> {
    let (rows, hidden) = match network.table().weight().weight().dims() {
        &[rows, hidden] => (rows, hidden),
        _ => (0, 0),
    };
    Ok(match task {
        Task::CausalLm | Task::Seq2SeqLm | Task::MaskedLm => {
            let bias = names.output_bias;
            let linear = match c.switch_or("tie_word_embeddings", names.tied)? {
                true => {
                    b.tied_linear("lm_head", network.table(), bias.then_some("lm_head.bias"))?
                }
                false => b.linear("lm_head", hidden, rows, bias)?,
            };
            Head::Tokens(TokenHead::of(linear))
        }
        Task::SeqCls => Head::Sequences(SequenceHead {
            pick: Pick::LastReal { pad: c.token_id("pad_token_id")? },
            input_dropout: None,
            pooler: None,
            dropout: None,
            linear: b.head_linear("score", hidden, c.num_labels()?, false)?,
        }),
        Task::TokenCls => {
            let (field, default) = names.token_dropout;
            let p = match c.number("classifier_dropout")? {
                Some(_) => c.probability_or("classifier_dropout", 0.0)?,
                None => c.probability_or(field, default)?,
            };
            let name = names.token_classifier;
            // transformers' generic head alone can do without.
            let bias = name != DecoderHeads::GENERIC.token_classifier
                || c.switch_or("token_classification_bias", true)?;
            Head::Tokens(TokenHead {
                dropout: Some(b.dropout("dropout", p)),
                ..TokenHead::of(b.head_linear(name, hidden, c.num_labels()?, bias)?)
            })
        }
        Task::QuestionAns => {
            Head::Tokens(TokenHead::of(b.head_linear("qa_outputs", hidden, 2, true)?))
        }
        Task::FeatureExtraction => Head::Features,
    })
}
