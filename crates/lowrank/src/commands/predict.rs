//! `lowrank predict`: labels, tags or answers for the rows of a file.

mod answers;
mod classes;
mod rows;
mod tags;

use std::{io::Write as _, path::PathBuf};

use anyhow::{bail, ensure};
use lowrank_data::{Example, Tokenizer, WordBox};
use lowrank_models::{Input, LabelNames, PeftModel, ProblemType, Sequences, Task};
use lowrank_train::{missing, needless};
use serde_json::Value;

use super::inspect::task;
use crate::{model_source::ModelArgs, ui::Ui};

/// Classifies texts, tags words or answers questions, a row of the data after the other
///
/// The task is that of the adapter (`task_type`) or of the model (`architectures`), unless --task
/// says otherwise. Label names are those of label_names.json in the adapter's folder, or the
/// model's `id2label`. Rows need no labels; those they have are ignored.
#[derive(Debug, clap::Args)]
pub(crate) struct Predict {
    #[command(flatten)]
    model: ModelArgs,
    /// File of rows: json, jsonl, csv, tsv, parquet or txt
    #[arg(long, value_name = "FILE", required_unless_present = "dataset")]
    data: Option<PathBuf>,
    /// Folder of dataset_info.json
    #[arg(long, alias = "dataset_dir", value_name = "DIR", default_value = "data")]
    dataset_dir: PathBuf,
    /// Name in dataset_info.json
    #[arg(long, value_name = "NAME", conflicts_with = "data")]
    dataset: Option<String>,
    /// seq-cls, token-cls or question-ans
    #[arg(long, value_parser = task, value_name = "TASK")]
    task: Option<Task>,
    /// Rows at once; for questions, windows
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    /// Most tokens of a row; by default what model and tokenizer can take (questions: 384)
    #[arg(long, alias = "cutoff_len", value_name = "N")]
    cutoff_len: Option<usize>,
    /// Tokens that two windows of a long context share (question answering)
    #[arg(long, alias = "doc_stride", value_name = "N")]
    doc_stride: Option<usize>,
    /// Most tokens of an answer (question answering)
    #[arg(long, alias = "max_answer_length", value_name = "N", default_value_t = 30)]
    max_answer_length: usize,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
}

/// A model that predicts, and how rows are cut for it.
struct Predictor {
    model: PeftModel,
    tokenizer: Tokenizer,
    labels: LabelNames,
    batch_size: usize,
    cutoff_len: usize,
    ui: Ui,
}

/// What is said of a row: as JSON, and as a line of text.
struct Prediction {
    json: Value,
    text: String,
}

impl Predict {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        ensure!(self.batch_size > 0, "--batch-size is 0; it must be at least 1");
        let source = self.model.source()?;
        let task = self.task.map_or_else(|| source.default_task(), Ok)?;
        let samples = match task {
            Task::SeqCls | Task::TokenCls | Task::QuestionAns => self.samples(task)?,
            other => bail!(
                "the model is for the task `{}`; predict is for seq-cls, token-cls and \
                 question-ans (--task), generate for text",
                other.name()
            ),
        };
        let architecture = Some(source.config()?.1);
        for sample in &samples {
            let wrong = needless(architecture, sample).or_else(|| missing(architecture, sample));
            if let Some(problem) = wrong {
                return Err(problem.at(sample.at()).into());
            }
        }
        let model = source.open(task, ui)?;
        let tokenizer = source.tokenizer()?;
        let predictor = Predictor {
            labels: labels(&model, task)?,
            cutoff_len: self.cutoff(&model, &tokenizer)?,
            batch_size: self.batch_size,
            model,
            tokenizer,
            ui,
        };
        let mut out = ui.output();
        let mut print = |prediction: Prediction| -> anyhow::Result<()> {
            match self.json {
                true => writeln!(out, "{}", prediction.json)?,
                false => writeln!(out, "{}", ui.for_output(&prediction.text))?,
            }
            Ok(())
        };
        match task {
            Task::SeqCls => predictor.classes(&samples, &mut print)?,
            Task::TokenCls => predictor.tags(&samples, &mut print)?,
            _ => {
                let options = answers::Options::new(
                    self.cutoff_len.unwrap_or(predictor.cutoff_len.min(answers::WINDOW)),
                    self.doc_stride,
                    self.max_answer_length,
                )?;
                predictor.answers(&samples, options, &mut print)?;
            }
        }
        Ok(out.flush()?)
    }

    /// The model's table of positions and the tokenizer's own limit.
    fn cutoff(&self, model: &PeftModel, tokenizer: &Tokenizer) -> anyhow::Result<usize> {
        if let Some(tokens) = self.cutoff_len {
            ensure!(tokens > 0, "--cutoff-len is 0; it must be at least 1");
            return Ok(tokens);
        }
        let config = &model.model().config;
        let mut limits = vec![tokenizer.model_max_length()];
        for key in ["max_position_embeddings", "n_positions"] {
            limits.push(config.size_or_none(key)?);
        }
        Ok(limits.into_iter().flatten().min().unwrap_or(2048))
    }
}

/// Names for all classes of the head.
fn labels(model: &PeftModel, task: Task) -> anyhow::Result<LabelNames> {
    let config = &model.model().config;
    let count = if task == Task::QuestionAns { 2 } else { config.num_labels()? };
    let mut labels = LabelNames::of_config(config)?
        .unwrap_or(LabelNames { names: Vec::new(), problem_type: ProblemType::of(config)? });
    for id in labels.names.len()..count {
        labels.names.push(format!("LABEL_{id}"));
    }
    Ok(labels)
}

/// Examples end to end, as the model reads them.
fn input(examples: &[&Example]) -> Input {
    let lengths: Vec<usize> = examples.iter().map(|e| e.input_ids.len()).collect();
    let types: Option<Vec<&[u32]>> = examples.iter().map(|e| e.token_type_ids.as_deref()).collect();
    let ids = examples.iter().flat_map(|e| e.input_ids.iter().copied()).collect();
    let token_types = types.map(|types| types.concat().into());
    let boxes: Option<Vec<&[WordBox]>> = examples.iter().map(|e| e.boxes.as_deref()).collect();
    let bbox = boxes.map(|boxes| boxes.concat().into());
    Input { token_types, bbox, ..Input::new(ids, Sequences::packed(&lengths)) }
}

/// Shares that add up to 1, largest logit first in weight.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Index of the largest; of equal ones the first.
fn argmax(values: &[f32]) -> usize {
    let best = values.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
    best.map_or(0, |(i, _)| i)
}
