//! What an architecture is to everything above it: ids in, hidden states out.

use lowrank_autograd::{Error, Result, Value, ops::KeyValues, recompute};
use lowrank_peft::{Pass, layers::Embedding};

use crate::{Input, Sequences};

/// A model without its task head. `forward` gives the states that heads read, `[tokens, hidden]`,
/// after the final norm.
pub trait Network: std::fmt::Debug + Send + Sync {
    /// Decoders and encoders: the hidden states of `input`. Encoder-decoders: those of the
    /// decoder, with `context.encoded` from [`Network::encode`].
    ///
    /// # Errors
    /// When the input doesn't fit (an id outside the vocabulary, a position beyond the table).
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value>;

    /// Whether something is added to the mean loss of tokens.
    fn has_penalty(&self) -> bool {
        false
    }

    /// [`Network::forward`], and what is added to the mean loss of tokens besides: a scalar.
    ///
    /// # Errors
    /// As [`Network::forward`].
    fn forward_with_penalty(&self, input: &Input, pass: &Pass) -> Result<(Value, Option<Value>)> {
        Ok((self.forward(input, Context::default(), pass)?, None))
    }

    /// The encoder's hidden states, for encoder-decoders.
    ///
    /// # Errors
    /// When the model has no encoder.
    fn encode(&self, input: &Input, pass: &Pass) -> Result<Encoded> {
        let _ = (input, pass);
        Err(candle_core::Error::Msg("this model has no encoder of its own".into()).into())
    }

    /// An empty cache for so many sequences; models that don't generate return one without layers.
    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(0, sequences)
    }

    /// The number of tokens up to which a cache is good for what follows: when a sequence first
    /// grows longer, its keys would be others and all of it has to be read again (Phi-3).
    fn cache_limit(&self) -> Option<usize> {
        None
    }

    /// The token embedding, which tied heads read.
    fn table(&self) -> &Embedding;
}

/// What an encoder made of its input.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `[tokens, hidden]`
    pub hidden: Value,
    /// Where the sequences lie.
    pub sequences: Sequences,
    /// The pass that made it: whatever reads `hidden` draws the dropout of these rows from it.
    pub pass: Pass,
}

/// What a forward pass may lean on besides its input.
#[derive(Debug, Default)]
pub struct Context<'a> {
    /// Keys and values of earlier tokens; they are added to.
    pub cache: Option<&'a mut Cache>,
    /// The encoder's output, for the decoder of an encoder-decoder.
    pub encoded: Option<&'a Encoded>,
}

impl<'a> Context<'a> {
    /// The encoder's output for a decoder that reads `target`.
    ///
    /// # Errors
    /// When there is none, or it has another number of sequences.
    pub(crate) fn source(&self, target: &Sequences) -> Result<&'a Encoded> {
        let Some(source) = self.encoded else {
            return Err(message("the decoder was called without the encoder's output".to_owned()));
        };
        let (sources, targets) = (source.sequences.len(), target.len());
        if sources != targets {
            return Err(message(format!("{targets} targets were given for {sources} sources")));
        }
        Ok(source)
    }
}

/// What a block of a decoder keeps of one generation: its own keys and values by sequence, and
/// those of the encoder's output once they are computed.
#[derive(Debug)]
pub struct BlockCache<'a> {
    /// Its own, by sequence.
    pub own: &'a mut [KeyValues],
    /// Of the encoder's output.
    pub cross: &'a mut Option<(Value, Value)>,
}

/// Keys and values of generation, by layer and sequence.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: Vec<Vec<KeyValues>>,
    /// Keys and values of the encoder's output, by layer, once computed.
    cross: Vec<Option<(Value, Value)>>,
}

impl Cache {
    /// An empty cache.
    pub fn new(layers: usize, sequences: usize) -> Self {
        let layer = vec![KeyValues::default(); sequences];
        Self { layers: vec![layer; layers], cross: vec![None; layers] }
    }

    /// The caches of a layer, one for each sequence.
    pub fn layer(&mut self, index: usize) -> &mut [KeyValues] {
        self.layers.get_mut(index).map(Vec::as_mut_slice).unwrap_or_default()
    }

    /// The caches of a layer that reads an encoder's output too.
    ///
    /// # Errors
    /// When the cache was made for a model with fewer layers.
    pub(crate) fn block(&mut self, index: usize) -> Result<BlockCache<'_>> {
        match (self.layers.get_mut(index), self.cross.get_mut(index)) {
            (Some(own), Some(cross)) => Ok(BlockCache { own, cross }),
            _ => Err(message(format!("the cache has no layer {index}"))),
        }
    }
}

/// Runs a block, keeping only its inputs if the pass asks for that.
///
/// # Errors
/// Whatever the block returns.
pub fn recompute_block<F>(pass: &Pass, inputs: &[&Value], block: F) -> Result<Value>
where
    F: Fn(&[Value]) -> Result<Value> + Send + 'static,
{
    if pass.checkpoints() {
        return recompute(inputs, block);
    }
    let inputs: Vec<Value> = inputs.iter().map(|v| (*v).clone()).collect();
    block(&inputs)
}

/// Runs the blocks of a model one after another: over a cache where there is one, otherwise by
/// [`recompute_block`]. `forward` runs one of them.
///
/// # Errors
/// Whatever a block returns.
pub(crate) fn run_blocks<B, F>(
    blocks: &[B],
    mut x: Value,
    sequences: &Sequences,
    mut cache: Option<&mut Cache>,
    pass: &Pass,
    forward: F,
) -> Result<Value>
where
    B: Clone + Send + 'static,
    F: Fn(&B, &Value, &Sequences, Option<&mut [KeyValues]>, &Pass) -> Result<Value>
        + Clone
        + Send
        + 'static,
{
    for (i, block) in blocks.iter().enumerate() {
        x = match cache.as_deref_mut() {
            Some(cache) => forward(block, &x, sequences, Some(cache.layer(i)), pass)?,
            None => {
                let (block, forward) = (block.clone(), forward.clone());
                let (sequences, own) = (sequences.clone(), pass.clone());
                recompute_block(pass, &[&x], move |x| {
                    forward(&block, &x[0], &sequences, None, &own)
                })?
            }
        };
    }
    Ok(x)
}

fn message(what: String) -> Error {
    candle_core::Error::Msg(what).into()
}
