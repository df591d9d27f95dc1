//! Encoded rows into a batch, packed end to end.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use lowrank_data::{Example, IGNORE_INDEX, ImageProcessor, Labels, Picture, RowProblem};
use lowrank_models::{Input, Sequences};
use rayon::prelude::*;

use crate::{Batch, Error, Result, Targets, objectives::MaskedWords, token_targets};

/// How examples become batches for a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Collator {
    /// Whether a token's logits are for its successor (causal language models).
    pub shift: bool,
    /// What the decoder of an encoder-decoder begins with.
    pub decoder_start: Option<u32>,
    /// How the pictures of rows are prepared; they are read for each batch anew.
    pub pictures: Option<ImageProcessor>,
    /// What is hidden of rows whose words are to be guessed.
    pub masked_words: Option<MaskedWords>,
}

impl Collator {
    /// The same for an epoch of training.
    #[must_use]
    pub fn in_epoch(self, epoch: u64) -> Self {
        let masked_words = self.masked_words.map(|words| words.in_epoch(epoch));
        Self { masked_words, ..self }
    }

    /// A batch of examples and the stable numbers of their samples.
    ///
    /// # Errors
    /// When the examples' labels aren't all of one kind.
    pub fn batch(&self, examples: &[(u64, &Example)]) -> Result<Batch> {
        let Some(words) = &self.masked_words else { return self.pack(examples) };
        let hidden: Vec<(u64, Example)> =
            examples.iter().map(|(id, example)| (*id, words.hide(*id, example))).collect();
        self.pack(&hidden.iter().map(|(id, example)| (*id, example)).collect::<Vec<_>>())
    }

    fn pack(&self, examples: &[(u64, &Example)]) -> Result<Batch> {
        let rows: Vec<&[u32]> = examples.iter().map(|(_, e)| e.input_ids.as_slice()).collect();
        let mut input = Input::packed(&rows);
        if examples.iter().any(|(_, e)| e.token_type_ids.is_some()) {
            let zeros = |e: &Example| vec![0; e.input_ids.len()];
            let types = examples
                .iter()
                .flat_map(|(_, e)| e.token_type_ids.clone().unwrap_or_else(|| zeros(e)));
            input.token_types = Some(types.collect());
        }
        if examples.iter().any(|(_, e)| e.boxes.is_some()) {
            let zeros = |e: &Example| vec![[0; 4]; e.input_ids.len()];
            let boxes =
                examples.iter().flat_map(|(_, e)| e.boxes.clone().unwrap_or_else(|| zeros(e)));
            input.bbox = Some(boxes.collect());
        }
        input.images = self.pictures.map(|how| images(&how, examples)).transpose()?;
        let labels: Vec<&Labels> = examples.iter().map(|(_, e)| &e.labels).collect();
        let decoder_input = self.decoder_input(&labels)?;
        let read = decoder_input.as_ref().map_or(&input.sequences, |d| &d.sequences);
        let targets = self.targets(&labels, read)?;
        let samples = examples.iter().map(|(id, _)| *id).collect();
        Ok(Batch { input, decoder_input, targets, samples })
    }

    /// The targets shifted right, behind the start token.
    fn decoder_input(&self, labels: &[&Labels]) -> Result<Option<Input>> {
        let Some(start) = self.decoder_start else { return Ok(None) };
        let shifted = |labels: &&Labels| match labels {
            Labels::Target(ids) => {
                let before_last = ids.get(..ids.len().saturating_sub(1)).unwrap_or_default();
                Ok([&[start], before_last].concat())
            }
            _ => Err(mixed()),
        };
        let rows: Vec<Vec<u32>> = labels.iter().map(shifted).collect::<Result<_>>()?;
        Ok(Some(Input::packed(&rows)))
    }

    fn targets(&self, labels: &[&Labels], read: &Sequences) -> Result<Targets> {
        match labels.first() {
            Some(Labels::Tokens(_)) => {
                let of = |l: &&Labels| match l {
                    Labels::Tokens(ids) => Ok(ids.iter().map(|&id| trained(id)).collect()),
                    _ => Err(mixed()),
                };
                let rows: Vec<Vec<Option<u32>>> = labels.iter().map(of).collect::<Result<_>>()?;
                Ok(token_targets(read, &rows.concat(), self.shift))
            }
            Some(Labels::Target(_)) => {
                let of = |l: &&Labels| match l {
                    Labels::Target(ids) => Ok(ids.iter().copied().map(Some).collect()),
                    _ => Err(mixed()),
                };
                let rows: Vec<Vec<Option<u32>>> = labels.iter().map(of).collect::<Result<_>>()?;
                Ok(token_targets(read, &rows.concat(), false))
            }
            Some(Labels::Class(_)) => {
                let of = |l: &&Labels| match l {
                    Labels::Class(class) => u32::try_from(*class).map_err(|_| mixed()),
                    _ => Err(mixed()),
                };
                Ok(Targets::Classes(labels.iter().map(of).collect::<Result<_>>()?))
            }
            Some(Labels::Classes(first)) => {
                let of = |l: &&Labels| match l {
                    Labels::Classes(flags) => Ok(flags.clone()),
                    _ => Err(mixed()),
                };
                let flags: Vec<Vec<f32>> = labels.iter().map(of).collect::<Result<_>>()?;
                let shape = (labels.len(), first.len());
                Ok(Targets::Flags(Tensor::from_vec(flags.concat(), shape, &Device::Cpu)?))
            }
            Some(Labels::Value(_)) => {
                let of = |l: &&Labels| match l {
                    Labels::Value(value) => Ok(*value),
                    _ => Err(mixed()),
                };
                let values: Vec<f32> = labels.iter().map(of).collect::<Result<_>>()?;
                let shape = (labels.len(), 1);
                Ok(Targets::Numbers(Tensor::from_vec(values, shape, &Device::Cpu)?))
            }
            Some(Labels::Span { .. }) => {
                let of = |l: &&Labels| match l {
                    Labels::Span { start, end } => Ok([Some(*start), Some(*end)]),
                    _ => Err(mixed()),
                };
                Ok(Targets::Spans(labels.iter().map(of).collect::<Result<_>>()?))
            }
            Some(Labels::None) if labels.iter().any(|l| **l != Labels::None) => Err(mixed()),
            Some(Labels::None) | None => Ok(Targets::Classes(Arc::new([]))),
        }
    }
}

/// The pictures of examples, `[examples, 3, height, width]`.
fn images(how: &ImageProcessor, examples: &[(u64, &Example)]) -> Result<Tensor> {
    let read = |(_, example): &(u64, &Example)| -> Result<Picture> {
        let none = || RowProblem::Other { message: "the row has no picture".to_owned() };
        let picture = example.picture.as_ref().ok_or_else(none).and_then(|file| file.read(how));
        Ok(picture.map_err(|problem| problem.at(&example.source))?)
    };
    let pictures: Vec<Picture> = examples.par_iter().map(read).collect::<Result<_>>()?;
    let size = |picture: &Picture| (picture.height, picture.width);
    let (height, width) = pictures.first().map(size).unwrap_or_default();
    if let Some(other) = pictures.iter().find(|picture| size(picture) != (height, width)) {
        return Err(Error::Batch(format!(
            "pictures of {height} by {width} and of {} by {} pixels can't share a batch; let \
             preprocessor_config.json resize them (`do_resize`)",
            other.height, other.width
        )));
    }
    let pixels = pictures.iter().flat_map(|p| p.pixels.iter().copied()).collect();
    Ok(Tensor::from_vec(pixels, (pictures.len(), 3, height, width), &Device::Cpu)?)
}

fn trained(label: i32) -> Option<u32> {
    if label == IGNORE_INDEX { None } else { u32::try_from(label).ok() }
}

fn mixed() -> Error {
    Error::Batch("the rows of a batch have labels of different kinds".to_owned())
}
