//! A batch as an objective reads it: packed inputs and what they should lead to.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{Key, RowKeys, random::philox};
use lowrank_models::{Input, Sequences};

/// Inputs and targets of one forward pass.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the model reads; the source, for encoder-decoders.
    pub input: Input,
    /// What the decoder of an encoder-decoder reads.
    pub decoder_input: Option<Input>,
    /// What should come out.
    pub targets: Targets,
    /// A stable number of each sequence's sample, on which its dropout depends.
    pub samples: Vec<u64>,
}

/// What a model is trained to say.
#[derive(Clone, Debug)]
pub enum Targets {
    /// A class for some tokens: the next token, a masked one, a tag.
    Tokens {
        /// Rows of the (decoder's) input whose logits count.
        rows: Arc<[usize]>,
        /// The class of each.
        classes: Arc<[u32]>,
    },
    /// One class for each sequence.
    Classes(Arc<[u32]>),
    /// Any number of classes for each sequence: `[sequences, classes]` of 0 and 1, f32.
    Flags(Tensor),
    /// Numbers for each sequence: `[sequences, numbers]`, f32.
    Numbers(Tensor),
    /// First and last token of the answer in each sequence; `None` doesn't count.
    Spans(Vec<[Option<usize>; 2]>),
}

impl Targets {
    /// What a mean of the loss is taken over.
    pub fn count(&self) -> usize {
        match self {
            Self::Tokens { rows, .. } => rows.len(),
            Self::Classes(classes) => classes.len(),
            Self::Flags(t) | Self::Numbers(t) => t.elem_count(),
            Self::Spans(spans) => spans.len(),
        }
    }
}

/// Tokens with a label, the label of each being the class that its logits should name. `shift`
/// pairs each token with its successor's label, as causal language models are trained.
pub fn token_targets(sequences: &Sequences, labels: &[Option<u32>], shift: bool) -> Targets {
    let (mut rows, mut classes) = (Vec::new(), Vec::new());
    for span in sequences.spans.iter() {
        let first = span.queries.start;
        for row in first..span.queries.end {
            let reader = if shift { row.checked_sub(1).filter(|r| *r >= first) } else { Some(row) };
            if let (Some(reader), Some(Some(class))) = (reader, labels.get(row)) {
                rows.push(reader);
                classes.push(*class);
            }
        }
    }
    Targets::Tokens { rows: rows.into(), classes: classes.into() }
}

impl Batch {
    /// The keys of the input's rows for dropout: a function of sample and position alone.
    pub fn row_keys(&self) -> RowKeys {
        row_keys(&self.samples, &self.input.sequences, 0)
    }

    /// The same for the decoder's rows.
    pub fn decoder_row_keys(&self) -> RowKeys {
        let none = Sequences::packed(&[]);
        let sequences = self.decoder_input.as_ref().map_or(&none, |input| &input.sequences);
        row_keys(&self.samples, sequences, 1)
    }

    /// The stream of a step's dropout.
    pub fn step_key(seed: u64, step: u64) -> Key {
        Key::new(seed).at("dropout").with(step)
    }
}

fn row_keys(samples: &[u64], sequences: &Sequences, side: u32) -> RowKeys {
    let of_sequence = |(&sample, &length): (&u64, &usize)| {
        (0..length as u32).map(move |place| {
            let key = [sample as u32, (sample >> 32) as u32];
            let [a, b, ..] = philox([place, side, 0, 0], key);
            u64::from(a) | u64::from(b) << 32
        })
    };
    samples.iter().zip(sequences.lengths()).flat_map(of_sequence).collect()
}
