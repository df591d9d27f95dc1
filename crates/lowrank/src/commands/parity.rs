//! `lowrank parity`: computes a case whose answers transformers and PEFT have given, so that a
//! script can compare. Everything in f32, dropout off.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Gradients, Parameter};
use lowrank_models::{
    Family, GenerateOptions, Input, Model, OpenOptions, Padded, PeftModel, ProblemType, Sequences,
    Task, generate_after,
};
use lowrank_train::{
    Batch, Targets,
    objectives::{Objective as _, Passes, Sft, logits},
    optimizers::{AdamW, AdamWSettings},
    token_targets,
};

use crate::model_source::DeviceArgs;

/// Computes a parity case: logits, loss, gradients, three AdamW steps, merged logits, generation
#[derive(Debug, clap::Args)]
pub(crate) struct Parity {
    /// causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, question-ans or vision2seq
    #[arg(long)]
    task: String,
    /// Folder with config.json and *.safetensors
    #[arg(long)]
    model: PathBuf,
    /// PEFT adapter folder
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Inputs: `in.*` and `gen.*`
    #[arg(long)]
    case: PathBuf,
    /// Where the results go
    #[arg(long)]
    out: PathBuf,
    /// Settings of a training objective
    #[arg(long)]
    objective: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

/// The oracle's name for a text about an image.
const VISION: &str = "vision2seq";
/// Tokens that a case generates.
const NEW_TOKENS: usize = 12;
/// Steps of AdamW.
const STEPS: usize = 3;

impl Parity {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.objective.is_some() {
            bail!("--objective: objectives other than supervised training aren't implemented");
        }
        let task = self.task()?;
        let case = Case::read(&self.case)?;
        let options = OpenOptions {
            task,
            dtype: Some(DType::F32),
            device: Some(self.device.device.open()?),
            problem_type: case.problem_type(),
            ..OpenOptions::default()
        };
        let mut model = PeftModel::new(Model::open(&self.model, &options)?);
        if let Some(folder) = &self.adapter {
            model.load_adapter("default", folder)?;
            model.set_adapter(&["default"])?;
            model.set_trainable("default", true)?;
        }
        let results = compute(&mut model, &case, self.adapter.is_some())?;
        let bytes = lowrank_peft::serialize(&results)?;
        std::fs::write(&self.out, bytes).with_context(|| self.out.display().to_string())
    }

    /// The head; what a model that sees was made for is its architecture's default.
    fn task(&self) -> anyhow::Result<Option<Task>> {
        if self.task == VISION {
            return Ok(None);
        }
        let known: Vec<&str> = Task::ALL.iter().map(|(_, name)| *name).collect();
        let task = Task::named(&self.task).with_context(|| {
            format!("unknown task `{}`; known: {}, {VISION}", self.task, known.join(", "))
        })?;
        Ok(Some(task))
    }
}

fn compute(
    model: &mut PeftModel,
    case: &Case,
    with_adapter: bool,
) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let mut results = BTreeMap::new();
    let (whole, layout) = case.batch(model.model())?;
    let batch = if with_adapter { as_peft_reads(&whole, model.model()) } else { whole.clone() };
    let passes = Passes::inference(model);
    let logits_of = |model: &PeftModel, batch: &Batch| -> anyhow::Result<Tensor> {
        let rows = logits(model.model(), batch, None, &Passes::inference(model))?;
        layout.pad(rows.data())
    };
    results.insert("logits".to_owned(), logits_of(model, &batch)?);
    if batch.targets.count() > 0 {
        let loss = mean_loss(model, &batch, &passes)?;
        results.insert("loss".to_owned(), Tensor::new(loss, &Device::Cpu)?);
    }
    if let Some(generated) = case.generate(model)? {
        results.insert("generated".to_owned(), generated);
    }
    if with_adapter {
        model.merge_adapter()?;
        results.insert("merged_logits".to_owned(), logits_of(model, &whole)?);
        model.unmerge_adapter();
        if batch.targets.count() > 0 {
            train(model, &batch, &mut results)?;
        }
    }
    Ok(results)
}

/// The batch as PEFT 0.21 hands it on: `PeftModelForQuestionAnswering.forward` takes
/// `token_type_ids` and doesn't pass them to the model. Only comparisons follow it there; training
/// and prediction read the segments, so that an adapter does the same merged and unmerged.
fn as_peft_reads(batch: &Batch, model: &Model) -> Batch {
    let mut batch = batch.clone();
    if model.task == Task::QuestionAns {
        batch.input.token_types = None;
    }
    batch
}

fn mean_loss(model: &PeftModel, batch: &Batch, passes: &Passes) -> anyhow::Result<f32> {
    let loss = Sft.loss(model.model(), batch, passes)?;
    Ok(loss.sum.data().to_scalar::<f32>()? / batch.targets.count() as f32)
}

/// Gradients, the losses before three steps, and the values after them.
fn train(
    model: &PeftModel,
    batch: &Batch,
    results: &mut BTreeMap<String, Tensor>,
) -> anyhow::Result<()> {
    let parameters = model.trainable();
    let settings =
        AdamWSettings { weight_decay: 0.01, decay_all: true, ..AdamWSettings::default() };
    let mut optimizer = AdamW::new(parameters.clone(), settings)?;
    let mut losses = Vec::with_capacity(STEPS);
    for step in 0..STEPS {
        let loss = Sft.loss(model.model(), batch, &Passes::recording(model))?;
        let count = batch.targets.count() as f32;
        losses.push(loss.sum.data().to_scalar::<f32>()? / count);
        let mut gradients = Gradients::new();
        loss.sum.backward(count.recip(), &mut gradients)?;
        if step == 0 {
            for parameter in &parameters {
                results.insert(format!("grad.{}", parameter.name()), of(&gradients, parameter)?);
            }
        }
        optimizer.step(1e-3, &gradients)?;
    }
    for parameter in &parameters {
        results.insert(format!("step3.{}", parameter.name()), parameter.data());
    }
    results.insert("losses".to_owned(), Tensor::new(losses, &Device::Cpu)?);
    Ok(())
}

fn of(gradients: &Gradients, parameter: &Parameter) -> anyhow::Result<Tensor> {
    Ok(match gradients.get(parameter.id()) {
        Some(gradient) => gradient.clone(),
        None => parameter.data().zeros_like()?,
    })
}

/// Where transformers' `generate` has prompts begin, if not where training does: it counts
/// RoBERTa's positions from 0 and BART's over the padding. Only comparisons follow it there.
fn first_positions(model: &Model, prompts: &Padded) -> Vec<u32> {
    let starts = prompts.sequences();
    let first = |row: usize| starts.positions.get(row).copied().unwrap_or_default();
    match (model.architecture.model_type, model.task) {
        ("roberta" | "xlm-roberta", Task::CausalLm) => vec![0; starts.len()],
        ("bart", Task::CausalLm) => starts.starts().map(first).collect(),
        _ => Vec::new(),
    }
}

/// The inputs of a case, by transformers' names.
struct Case {
    tensors: HashMap<String, Tensor>,
}

/// How packed rows become the padded array that transformers returns.
struct Layout {
    /// Batch and tokens; `None` for logits of whole sequences.
    places: Option<(Vec<usize>, [usize; 2])>,
}

impl Layout {
    fn pad(&self, rows: &Tensor) -> anyhow::Result<Tensor> {
        let Some((places, [batch, tokens])) = &self.places else { return Ok(rows.clone()) };
        let classes = rows.dim(1)?;
        let mut padded = vec![0.0; batch * tokens * classes];
        for (row, place) in rows.to_vec2::<f32>()?.iter().zip(places) {
            let to = padded.get_mut(place * classes..(place + 1) * classes);
            to.context("a place outside the batch")?.copy_from_slice(row);
        }
        Ok(Tensor::from_vec(padded, (*batch, *tokens, classes), &Device::Cpu)?)
    }
}

impl Case {
    fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| path.display().to_string())?;
        Ok(Self { tensors })
    }

    /// A tensor of whole numbers, flat, with its shape.
    fn ints(&self, name: &str) -> anyhow::Result<Option<(Vec<i64>, Vec<usize>)>> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        let values = tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        Ok(Some((values, tensor.dims().to_vec())))
    }

    fn ids(&self, prefix: &str, name: &str) -> anyhow::Result<(Vec<u32>, [usize; 2])> {
        let full = format!("{prefix}.{name}");
        let (values, shape) = self.ints(&full)?.with_context(|| format!("no tensor `{full}`"))?;
        let shape = <[usize; 2]>::try_from(shape.as_slice())
            .ok()
            .with_context(|| format!("`{full}` has shape {shape:?}; it must be a matrix"))?;
        let ids: Result<Vec<u32>, _> = values.iter().map(|&v| u32::try_from(v)).collect();
        Ok((ids.with_context(|| format!("`{full}` holds a negative id"))?, shape))
    }

    fn padded(
        &self,
        prefix: &str,
        mask: &str,
        [rows, columns]: [usize; 2],
    ) -> anyhow::Result<Padded> {
        let mask = self.ints(&format!("{prefix}.{mask}"))?;
        Ok(Padded::new(rows, columns, mask.as_ref().map(|(m, _)| m.as_slice()))?)
    }

    /// Labels that are numbers in a row ask for regression; the config decides otherwise.
    fn problem_type(&self) -> Option<ProblemType> {
        let labels = self.tensors.get("in.labels").filter(|t| t.dtype() == DType::F32)?;
        match labels.dims() {
            [_] => Some(ProblemType::Regression),
            _ => None,
        }
    }

    fn batch(&self, model: &Model) -> anyhow::Result<(Batch, Layout)> {
        let (ids, shape) = self.ids("in", "input_ids")?;
        let padded = self.padded("in", "attention_mask", shape)?;
        // What reads its source once more as a target reads the padding too.
        let rereads = !self.tensors.contains_key("in.decoder_input_ids");
        let every_place = match model.family {
            Family::Encoder => true,
            Family::EncoderDecoder => rereads && model.task != Task::TokenCls,
            Family::Decoder => false,
        };
        let (sequences, places) = match every_place {
            true => (padded.every_place()?, (0..ids.len()).collect()),
            false => (padded.sequences(), padded.real().to_vec()),
        };
        let pick = |values: &[u32]| -> Vec<u32> {
            places.iter().filter_map(|&p: &usize| values.get(p).copied()).collect()
        };
        let token_types = match self.tensors.contains_key("in.token_type_ids") {
            true => Some(pick(&self.ids("in", "token_type_ids")?.0).into()),
            false => None,
        };
        let ids = pick(&ids).into();
        let (bbox, images) = (self.bbox(&places)?, self.tensors.get("in.pixel_values").cloned());
        let input = Input { token_types, bbox, images, ..Input::new(ids, sequences) };
        let decoder = self.decoder_input(model)?;
        let (read, places, shape) = match &decoder {
            Some((decoder, padded)) => (decoder, padded.real().to_vec(), padded.shape()),
            None => (&input, places, shape),
        };
        let targets = self.targets(model, &read.sequences, &places)?;
        let samples = (0..shape[0] as u64).collect();
        let whole = matches!(model.task, Task::SeqCls);
        let layout = Layout { places: (!whole).then_some((places, shape)) };
        let decoder_input = decoder.map(|(decoder, _)| decoder);
        Ok((Batch { input, decoder_input, targets, samples }, layout))
    }

    /// The boxes of these places.
    fn bbox(&self, places: &[usize]) -> anyhow::Result<Option<Arc<[[u32; 4]]>>> {
        let Some((edges, _)) = self.ints("in.bbox")? else { return Ok(None) };
        let edges: Result<Vec<u32>, _> = edges.iter().map(|&v| u32::try_from(v)).collect();
        let edges = edges.context("`in.bbox` holds a negative coordinate")?;
        let (boxes, _) = edges.as_chunks::<4>();
        Ok(Some(places.iter().filter_map(|&place| boxes.get(place).copied()).collect()))
    }

    fn decoder_input(&self, model: &Model) -> anyhow::Result<Option<(Input, Padded)>> {
        let has_target = self.tensors.contains_key("in.decoder_input_ids");
        if model.family != Family::EncoderDecoder || !has_target {
            return Ok(None);
        }
        let (ids, shape) = self.ids("in", "decoder_input_ids")?;
        let padded = self.padded("in", "decoder_attention_mask", shape)?;
        let ids = padded.pick(&ids).into();
        let input = Input::new(ids, padded.sequences());
        Ok(Some((input, padded)))
    }

    fn targets(
        &self,
        model: &Model,
        sequences: &Sequences,
        places: &[usize],
    ) -> anyhow::Result<Targets> {
        let none = Targets::Classes(Arc::new([]));
        match model.task {
            Task::QuestionAns => {
                let (Some((starts, _)), Some((ends, _))) =
                    (self.ints("in.start_positions")?, self.ints("in.end_positions")?)
                else {
                    return Ok(none);
                };
                let longest = sequences.lengths().iter().copied().max().unwrap_or_default();
                let place = |&v: &i64| usize::try_from(v).ok().filter(|p| *p < longest);
                let spans = starts.iter().zip(&ends).map(|(s, e)| [place(s), place(e)]);
                Ok(Targets::Spans(spans.collect()))
            }
            Task::SeqCls => self.sequence_targets(model),
            task => {
                let Some((labels, _)) = self.ints("in.labels")? else { return Ok(none) };
                let label = |&p: &usize| labels.get(p).and_then(|&l| u32::try_from(l).ok());
                let labels: Vec<Option<u32>> = places.iter().map(label).collect();
                // transformers' `BartForCausalLM` alone takes labels that were shifted before.
                let is_bart = model.architecture.model_type == "bart";
                let shift = model.family == Family::Decoder
                    && matches!(task, Task::CausalLm | Task::FeatureExtraction);
                Ok(token_targets(sequences, &labels, shift && !is_bart))
            }
        }
    }

    fn sequence_targets(&self, model: &Model) -> anyhow::Result<Targets> {
        let Some(labels) = self.tensors.get("in.labels") else {
            return Ok(Targets::Classes(Arc::new([])));
        };
        let classes = model.config.num_labels()?;
        let numbers = || -> anyhow::Result<Tensor> {
            Ok(labels.to_dtype(DType::F32)?.reshape(((), classes))?)
        };
        let kind = ProblemType::of(&model.config)?.unwrap_or(match labels.dtype() {
            DType::F32 if classes > 1 => ProblemType::MultiLabel,
            _ if classes == 1 => ProblemType::Regression,
            _ => ProblemType::SingleLabel,
        });
        Ok(match kind {
            ProblemType::Regression => Targets::Numbers(numbers()?),
            ProblemType::MultiLabel => Targets::Flags(numbers()?),
            ProblemType::SingleLabel => {
                let ids = labels.flatten_all()?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
                Targets::Classes(ids.into())
            }
        })
    }

    fn generate(&self, model: &PeftModel) -> anyhow::Result<Option<Tensor>> {
        if !self.tensors.contains_key("gen.input_ids") {
            return Ok(None);
        }
        let (ids, shape) = self.ids("gen", "input_ids")?;
        let padded = self.padded("gen", "attention_mask", shape)?;
        let images = self.tensors.get("gen.pixel_values").cloned();
        let prompts = Input::new(padded.pick(&ids).into(), padded.sequences());
        let prompts = Input { images, ..prompts };
        let options = GenerateOptions {
            max_new_tokens: NEW_TOKENS,
            first_positions: first_positions(model.model(), &padded),
            ..GenerateOptions::asked(model.model())?
        };
        let (model, pass) = (model.model(), model.inference());
        let new = generate_after(model, &pass, &prompts, &options, |_, _| true)?;
        let flat: Vec<i64> = new.concat().into_iter().map(i64::from).collect();
        Ok(Some(Tensor::from_vec(flat, (shape[0], NEW_TOKENS), &Device::Cpu)?))
    }
}
