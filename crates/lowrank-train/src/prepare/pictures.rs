//! The pictures of rows, for models that look at one.

use lowrank_data::{
    DataError, DataOptions, Example, ImageProcessor, PictureEncoder, RowProblem, Sample,
};
use lowrank_models::{Config, ImageTokens};

use crate::{Result, recipe::plan::Plan};

/// How a model's rows get their pictures.
pub(super) struct Pictures {
    pub(super) processor: ImageProcessor,
    encoder: PictureEncoder,
    tokens: usize,
}

impl Pictures {
    /// Those of a plan's model, if it looks at any.
    ///
    /// # Errors
    /// When the model's folder doesn't say how pictures are prepared.
    pub(super) fn of(plan: &Plan, config: Option<&Config>) -> Result<Option<Self>> {
        let Some(ImageTokens { id, count }) = config.map(ImageTokens::of).transpose()?.flatten()
        else {
            return Ok(None);
        };
        let (fewest, most) = (plan.data.image_min_pixels, plan.data.image_max_pixels);
        let processor =
            ImageProcessor::open(&plan.model.model_name_or_path)?.with_pixels(fewest, most);
        let encoder = PictureEncoder::new(processor, id, count);
        Ok(Some(Self { processor, encoder, tokens: count }))
    }

    /// Options by which a text leaves room for the picture before it.
    pub(super) fn leave_room(&self, options: &DataOptions) -> Result<DataOptions> {
        match options.cutoff_len.checked_sub(self.tokens).filter(|room| *room > 0) {
            Some(cutoff_len) => Ok(DataOptions { cutoff_len, ..options.clone() }),
            None => {
                let message = format!("has no room for a text beside a picture's {}", self.tokens);
                Err(DataError::Option { option: "cutoff_len", message }.into())
            }
        }
    }

    /// Encodes a row; `encode` is given its text.
    pub(super) fn encode(
        &self,
        sample: &Sample,
        encode: impl FnOnce(&Sample) -> Result<Vec<Example>, RowProblem>,
    ) -> Result<Vec<Example>, RowProblem> {
        self.encoder.encode(sample, encode)
    }
}
