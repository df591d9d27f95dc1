//! Rows with a picture. The tokens in whose places its vectors go stand before all others, the one
//! that begins texts included. Reference: transformers `models/blip_2/processing_blip_2.py`.

use super::{Example, IGNORE_INDEX, Labels};
use crate::error::RowProblem;
use crate::formats::{PLACEHOLDER, Sample};
use crate::images::{ImageProcessor, Picture, PictureSource};

/// A row's picture, known to be one when the row was encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPicture {
    /// Where it is.
    pub source: PictureSource,
    /// A hash of its bytes.
    pub digest: String,
}

/// Puts a row's picture before its text.
#[derive(Debug, Clone)]
pub struct PictureEncoder {
    processor: ImageProcessor,
    token: u32,
    tokens: usize,
}

impl PictureEncoder {
    /// Pictures are prepared by `processor` and stand in the places of so many of a token.
    #[must_use]
    pub fn new(processor: ImageProcessor, token: u32, tokens: usize) -> Self {
        Self { processor, token, tokens }
    }

    /// A sample with one picture, whose text `encode` takes without placeholders. The picture is
    /// read to see that it can be, and not kept.
    ///
    /// # Errors
    /// A sample without a picture or with several, one whose placeholders are fewer or more, a
    /// file that is no picture; and whatever `encode` finds.
    pub fn encode(
        &self,
        sample: &Sample,
        encode: impl FnOnce(&Sample) -> Result<Vec<Example>, RowProblem>,
    ) -> Result<Vec<Example>, RowProblem> {
        let [source] = sample.images() else {
            let found = sample.images().len();
            let message = format!("the model looks at one picture a row; the row has {found}");
            return Err(RowProblem::Other { message });
        };
        let mut examples = encode(&without_placeholder(sample)?)?;
        let (_, digest) = read(&self.processor, source)?;
        for example in &mut examples {
            example.input_ids.splice(0..0, std::iter::repeat_n(self.token, self.tokens));
            if let Labels::Tokens(labels) = &mut example.labels {
                labels.splice(0..0, std::iter::repeat_n(IGNORE_INDEX, self.tokens));
            }
            example.picture = Some(RowPicture { source: source.clone(), digest: digest.clone() });
        }
        Ok(examples)
    }
}

impl RowPicture {
    /// The picture, prepared.
    ///
    /// # Errors
    /// A file that isn't what it was when the row was encoded.
    pub fn read(&self, processor: &ImageProcessor) -> Result<Picture, RowProblem> {
        let (picture, digest) = read(processor, &self.source)?;
        if digest == self.digest {
            return Ok(picture);
        }
        Err(problem(&self.source, "the file has changed since the run began"))
    }
}

fn read(
    processor: &ImageProcessor,
    source: &PictureSource,
) -> Result<(Picture, String), RowProblem> {
    let bytes = source.bytes().map_err(|e| problem(source, e))?;
    let picture = processor.decode(&bytes).map_err(|e| problem(source, e))?;
    Ok((picture, blake3::hash(&bytes).to_hex().to_string()))
}

fn problem(source: &PictureSource, message: impl ToString) -> RowProblem {
    let (field, message) = ("images".to_owned(), message.to_string());
    RowProblem::Picture { field, picture: source.to_string(), message }
}

/// The sample with nothing where placeholders stand. A prompt and its completion, which no template
/// touches, need none.
fn without_placeholder(sample: &Sample) -> Result<Sample, RowProblem> {
    let mut sample = sample.clone();
    let (texts, may_lack): (Vec<&mut String>, _) = match &mut sample {
        Sample::Conversation(row) => {
            let answer = match &mut row.response {
                crate::Response::Answer(answer) => Some(answer),
                _ => None,
            };
            // What was written besides texts has placeholders in a shape of its own.
            row.original = None;
            let messages = row.prompt.iter_mut().chain(answer);
            (messages.map(|message| &mut message.content).collect(), row.only_answer)
        }
        Sample::Completion(row) => (vec![&mut row.prompt, &mut row.completion], true),
        _ => (Vec::new(), true),
    };
    let mut found = 0;
    for text in texts {
        found += text.matches(PLACEHOLDER).count();
        *text = removed(text);
    }
    if found == 1 || found == 0 && may_lack {
        return Ok(sample);
    }
    let message = format!("the texts have `{PLACEHOLDER}` {found} times for one picture");
    Err(RowProblem::Other { message })
}

/// The text without placeholders and the white space behind them, or before one at its end.
fn removed(text: &str) -> String {
    let mut parts = text.split(PLACEHOLDER);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        whole += part.trim_start();
        if part.trim_start().is_empty() {
            whole.truncate(whole.trim_end().len());
        }
    }
    whole
}
