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
    /// When the model's folder doesn't say how pictures are prepared, or some of `samples` have
    /// pictures and the model sees none.
    pub(super) fn of<'a>(
        plan: &Plan,
        mut samples: impl Iterator<Item = &'a Sample>,
    ) -> Result<Option<Self>> {
        let folder = &plan.model.model_name_or_path;
        let path = folder.join("config.json");
        // Rows can be looked at beside a folder that holds nothing but a tokenizer.
        let config = path.is_file().then(|| Config::read(&path)).transpose()?;
        let tokens = config.as_ref().map(ImageTokens::of).transpose()?.flatten();
        let Some(ImageTokens { id, count }) = tokens else {
            return match samples.find(|sample| !sample.images().is_empty()) {
                None => Ok(None),
                Some(sample) => Err(sees_none(config.as_ref()).at(sample.at()).into()),
            };
        };
        let (fewest, most) = (plan.data.image_min_pixels, plan.data.image_max_pixels);
        let processor = ImageProcessor::open(folder)?.with_pixels(fewest, most);
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

fn sees_none(config: Option<&Config>) -> RowProblem {
    let model_type = config.and_then(|config| config.word("model_type").ok().flatten());
    let message = format!(
        "the row has pictures (`images`), but the model ({}) sees none; train one that does \
         (blip-2), or take `images` out of the data set's `columns`",
        model_type.unwrap_or("without a config.json")
    );
    RowProblem::Other { message }
}
