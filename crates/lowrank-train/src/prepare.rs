//! Data sets into encoded rows, for each task in its way.

mod beside;
mod pictures;

use lowrank_data::{
    Completion, DataOptions, Dataset, Encoder, Example, ImageProcessor, LabelSet, Labels,
    QuestionEncoder, QuestionOptions, Response, RowProblem, RowRef, Sample, TextEncoder, Tokenizer,
};
use lowrank_models::{Architecture, Config, Task};
use pictures::Pictures;
use rayon::prelude::*;

use crate::{Result, recipe::plan::Plan};

pub use beside::{missing, needless};

/// Encoded rows for training and evaluation.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// To train on.
    pub train: Vec<Example>,
    /// To evaluate on.
    pub eval: Vec<Example>,
    /// Classes, for the tasks that have them.
    pub labels: Option<LabelSet>,
    /// Rows that were left out because of `skip_bad_rows`.
    pub skipped: Vec<String>,
    /// How the rows' pictures are prepared, if the model looks at any.
    pub pictures: Option<ImageProcessor>,
}

/// Reads and encodes the data sets of a plan.
///
/// # Errors
/// When a data set or a row can't be used; the error names file, line and field.
pub fn rows(plan: &Plan, task: Task, options: &DataOptions, tokenizer: Tokenizer) -> Result<Rows> {
    let dataset = Dataset::open(options)?;
    let given = dataset.labels.clone();
    let mut skipped: Vec<String> = dataset.skipped.iter().map(describe).collect();
    let (train, mut eval) = dataset.split(options)?;
    if !plan.data.eval_dataset.is_empty() {
        let options = DataOptions { dataset: plan.data.eval_dataset.clone(), ..options.clone() };
        let dataset = Dataset::open(&options)?;
        skipped.extend(dataset.skipped.iter().map(describe));
        eval = dataset.samples;
    }
    // Classes that only held-out rows have must have an id as well.
    let all = || train.iter().chain(&eval).cloned().collect::<Vec<Sample>>();
    let labels = match task {
        Task::SeqCls => Some(LabelSet::infer(&all(), given.as_deref())?),
        Task::TokenCls => Some(LabelSet::of_tags(&all(), given.as_deref())),
        _ => None,
    };
    // Rows can be looked at beside a folder that holds nothing but a tokenizer.
    let path = plan.model.model_name_or_path.join("config.json");
    let config = path.is_file().then(|| Config::read(&path)).transpose()?;
    let architecture = config.as_ref().map(Architecture::of).transpose()?;
    for sample in train.iter().chain(&eval) {
        if let Some(problem) = needless(architecture, sample) {
            return Err(problem.at(sample.at()).into());
        }
    }
    let pictures = Pictures::of(plan, config.as_ref())?;
    let room = pictures.as_ref().map(|pictures| pictures.leave_room(options)).transpose()?;
    let inner = room.as_ref().unwrap_or(options);
    let encoder = RowEncoder::new(task, inner, plan.data.doc_stride, labels.clone(), tokenizer)?;
    let encode_row = |sample: &Sample| match (missing(architecture, sample), &pictures) {
        (Some(problem), _) => Err(problem),
        (None, None) => encoder.encode(sample),
        (None, Some(pictures)) => pictures.encode(sample, |text| encoder.encode(text)),
    };
    let mut encode = |samples: &[Sample]| -> Result<Vec<Example>> {
        let mut examples = Vec::with_capacity(samples.len());
        let encoded: Vec<_> = samples.par_iter().map(encode_row).collect();
        for (sample, encoded) in samples.iter().zip(encoded) {
            match encoded {
                Ok(found) => examples.extend(found),
                Err(problem) if options.skip_bad_rows => {
                    skipped.push(describe(&(sample.at().clone(), problem)));
                }
                Err(problem) => return Err(problem.at(sample.at()).into()),
            }
        }
        Ok(examples)
    };
    let (train, eval) = (encode(&train)?, encode(&eval)?);
    Ok(Rows { train, eval, labels, skipped, pictures: pictures.map(|p| p.processor) })
}

fn describe((at, problem): &(RowRef, RowProblem)) -> String {
    format!("{at}: {problem}")
}

/// The encoder of a task.
enum RowEncoder {
    Chat(Box<Encoder>),
    Pairs(TextEncoder),
    Masked(TextEncoder),
    Labelled(TextEncoder, LabelSet),
    Tagged(TextEncoder, LabelSet),
    Questions(QuestionEncoder),
}

impl RowEncoder {
    fn new(
        task: Task,
        options: &DataOptions,
        doc_stride: usize,
        labels: Option<LabelSet>,
        tokenizer: Tokenizer,
    ) -> Result<Self> {
        let texts = |tokenizer| TextEncoder::new(tokenizer, options.cutoff_len);
        Ok(match (task, labels) {
            (Task::SeqCls, Some(labels)) => Self::Labelled(texts(tokenizer), labels),
            (Task::TokenCls, Some(labels)) => Self::Tagged(texts(tokenizer), labels),
            (Task::MaskedLm, _) => Self::Masked(texts(tokenizer)),
            (Task::Seq2SeqLm, _) => Self::Pairs(texts(tokenizer)),
            (Task::QuestionAns, _) => {
                let options = QuestionOptions { max_length: options.cutoff_len, doc_stride };
                Self::Questions(QuestionEncoder::new(tokenizer, options))
            }
            _ => Self::Chat(Box::new(Encoder::new(tokenizer, options.clone())?)),
        })
    }

    fn encode(&self, sample: &Sample) -> Result<Vec<Example>, RowProblem> {
        let one = match self {
            Self::Chat(encoder) => match as_completion(sample, encoder) {
                Some(completion) => encoder.sft(&completion),
                None => encoder.sft(sample),
            },
            Self::Pairs(encoder) => encoder.seq2seq(sample),
            Self::Masked(encoder) => encoder.masked_words(sample),
            Self::Labelled(encoder, labels) => encoder.classification(sample, labels),
            Self::Tagged(encoder, labels) => encoder.tagging(sample, labels),
            Self::Questions(encoder) => {
                let windows = encoder.windows(sample)?;
                return Ok(windows.into_iter().map(|w| w.example).collect());
            }
        };
        let one = one?;
        if one.labels == Labels::None {
            let message = "the row has no label to learn from or to compare with".to_owned();
            return Err(RowProblem::Other { message });
        }
        Ok(vec![one])
    }
}

/// A question about a picture and its answer, where neither recipe nor model has a chat template:
/// nothing stands between them, as where transformers gives a model that sees its prompt.
fn as_completion(sample: &Sample, encoder: &Encoder) -> Option<Sample> {
    let Sample::Conversation(row) = sample else { return None };
    let plain = encoder.options().template.is_none()
        && encoder.tokenizer().chat_template(false).is_none()
        && row.system.is_empty();
    let ([question], Response::Answer(answer)) = (row.prompt.as_slice(), &row.response) else {
        return None;
    };
    (plain && !row.images.is_empty()).then(|| {
        Sample::Completion(Completion {
            at: row.at.clone(),
            prompt: question.content.clone(),
            completion: answer.content.clone(),
            images: row.images.clone(),
        })
    })
}
