//! An encoder that reads a source and a decoder that looks at it while it writes a target. Paper:
//! arXiv:1706.03762.

use lowrank_autograd::{Result, Value, ops::Activation};
use lowrank_peft::{Pass, layers::Embedding};

use super::encoder_heads::dense_classifier;
use crate::{
    BlockCache, Builder, Cache, Config, Context, Encoded, Head, Input, Network, Sequences,
    recompute_block,
    task_heads::{Pick, TokenHead},
};

/// Either half: embeddings, blocks and what ends them.
pub trait Stack: std::fmt::Debug + Send + Sync {
    /// Hidden states of `input`, `[n, hidden_size]`; a decoder reads the context.
    ///
    /// # Errors
    /// When the input doesn't fit.
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value>;

    /// Number of blocks.
    fn layers(&self) -> usize;
}

/// Both halves over one embedding.
#[derive(Debug)]
pub struct EncoderDecoder<S> {
    /// The table of both.
    pub shared: Embedding,
    /// Reads the source.
    pub encoder: S,
    /// Writes the target.
    pub decoder: S,
    /// What a decoder without a target begins with, to read the source once more, one token
    /// behind.
    pub rereads_after: Option<u32>,
}

impl<S: Stack> EncoderDecoder<S> {
    /// The source as a target, behind a token that begins it. Padding, where there is any, is read
    /// like the rest.
    fn reread(input: &Input, start: u32) -> Input {
        let mut ids = Vec::with_capacity(input.ids.len());
        for span in input.sequences.spans.iter() {
            let source = input.ids.get(span.queries.clone()).unwrap_or_default();
            ids.extend(std::iter::once(start).chain(source.iter().copied()).take(source.len()));
        }
        Input::new(ids.into(), Sequences::packed(input.sequences.lengths()))
    }
}

impl<S: Stack> Network for EncoderDecoder<S> {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        if let (None, Some(start)) = (context.encoded, self.rereads_after) {
            let (source, rows) = input.without_padding();
            let source = self.encode(&source, &pass.for_rows(&rows))?;
            let context = Context { encoded: Some(&source), cache: None };
            return self.decoder.forward(&Self::reread(input, start), context, pass);
        }
        context.source(&input.sequences)?;
        self.decoder.forward(input, context, pass)
    }

    fn encode(&self, input: &Input, pass: &Pass) -> Result<Encoded> {
        let hidden = self.encoder.forward(input, Context::default(), pass)?;
        Ok(Encoded { hidden, sequences: input.sequences.clone(), pass: pass.clone() })
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.decoder.layers(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.shared
    }
}

/// Either half alone: the encoder for tokens, or the decoder for a text without a source.
#[derive(Debug)]
pub struct Half<S> {
    /// Its table.
    pub table: Embedding,
    /// The half.
    pub stack: S,
}

impl<S: Stack> Network for Half<S> {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        self.stack.forward(input, context, pass)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.stack.layers(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.table
    }
}

/// What a block reads besides the hidden states.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// Added to the scores by distance, as in [`lowrank_autograd::ops::attention`].
    pub bias: Option<&'a Value>,
    /// The encoder's output, for a decoder.
    pub source: Option<&'a Encoded>,
    /// What is kept of earlier tokens.
    pub cache: Option<BlockCache<'a>>,
}

/// A block of either half.
pub trait StackBlock: Clone + Send + 'static {
    /// `x` `[n, hidden_size]` → the same.
    ///
    /// # Errors
    /// When the operands don't fit.
    fn forward(&self, x: &Value, b: Beside<'_>, s: &Sequences, pass: &Pass) -> Result<Value>;
}

/// Runs the blocks one after another, over a cache where there is one; without one each is run
/// again in the backward pass if the pass asks for it.
///
/// # Errors
/// Whatever a block returns.
pub fn run_stack<B: StackBlock>(
    blocks: &[B],
    mut x: Value,
    bias: Option<&Value>,
    sequences: &Sequences,
    mut context: Context<'_>,
    pass: &Pass,
) -> Result<Value> {
    for (i, block) in blocks.iter().enumerate() {
        let cache = context.cache.as_deref_mut().map(|cache| cache.block(i)).transpose()?;
        let (kept, source) = (cache.is_some(), context.encoded);
        let beside = Beside { bias, source, cache };
        x = match kept {
            true => block.forward(&x, beside, sequences, pass)?,
            false => recomputed(block, &x, beside, sequences, pass)?,
        };
    }
    Ok(x)
}

/// A block without a cache.
fn recomputed<B: StackBlock>(
    block: &B,
    x: &Value,
    Beside { bias, source, .. }: Beside<'_>,
    sequences: &Sequences,
    pass: &Pass,
) -> Result<Value> {
    // Everything that gradients flow to is an input of the block, or they would be lost.
    let inputs: Vec<&Value> =
        [x].into_iter().chain(bias).chain(source.map(|s| &s.hidden)).collect();
    let (block, sequences, own) = (block.clone(), sequences.clone(), pass.clone());
    let (has_bias, source) = (bias.is_some(), source.cloned());
    recompute_block(pass, &inputs, move |inputs| {
        let bias = inputs.get(1).filter(|_| has_bias);
        let hidden = inputs.get(1 + usize::from(has_bias)).cloned();
        let source = source.clone().zip(hidden);
        let source = source.map(|(source, hidden)| Encoded { hidden, ..source });
        let beside = Beside { bias, source: source.as_ref(), cache: None };
        block.forward(&inputs[0], beside, &sequences, &own)
    })
}

/// A classifier of what the decoder makes of a source's last end, at the model's root `b`; `eos` is
/// the end where the config doesn't say.
///
/// # Errors
/// When its tensors are misshapen or a config field wrong.
pub fn rereading_classifier(c: &Config, eos: u32, b: &Builder) -> crate::Result<Head> {
    let pick = Pick::LastOf(c.token_id("eos_token_id")?.unwrap_or(eos));
    let sizes = (c.size("hidden_size")?, c.probability_or("classifier_dropout", 0.0)?);
    let place = b.at("classification_head");
    Ok(Head::Sequences(dense_classifier(c, (pick, Activation::Tanh), sizes, &place)?))
}

/// The first and last token of an answer, at the model's root `b`.
///
/// # Errors
/// When its tensors are misshapen or a config field wrong.
pub fn answer_head(c: &Config, b: &Builder) -> crate::Result<Head> {
    Ok(Head::Tokens(TokenHead::of(b.head_linear("qa_outputs", c.size("hidden_size")?, 2, true)?)))
}
