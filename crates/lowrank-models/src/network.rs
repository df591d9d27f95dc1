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
}

/// What a forward pass may lean on besides its input.
#[derive(Debug, Default)]
pub struct Context<'a> {
    /// Keys and values of earlier tokens; they are added to.
    pub cache: Option<&'a mut Cache>,
    /// The encoder's output, for the decoder of an encoder-decoder.
    pub encoded: Option<&'a Encoded>,
}

/// Keys and values of generation, by layer and sequence.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: Vec<Vec<KeyValues>>,
    /// Keys and values of the encoder's output, by layer, once computed.
    pub(crate) cross: Vec<Option<(Value, Value)>>,
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

    /// Keeps the sequences at these places, in this order, and drops the others.
    pub fn retain(&mut self, places: &[usize]) {
        for layer in &mut self.layers {
            let kept = places.iter().filter_map(|&p| layer.get_mut(p).map(std::mem::take));
            *layer = kept.collect();
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

/// The error of a decoder that was called without its encoder's output.
pub(crate) fn not_encoded() -> Error {
    candle_core::Error::Msg("the decoder was called without the encoder's output".into()).into()
}
