//! bf16 against f32: on the same weights of bf16 we are no farther from what transformers and PEFT
//! compute in f32 than they are themselves in bf16. The tolerance of a quantity is thus torch's own
//! rounding of it, which `fixtures/make_bf16.py` stored beside the reference.
//!
//! Why that can be asked: torch rounds whatever an operation returns, the residual stream too; here
//! activations stay f32, and only factors of products and what is kept for the backward pass are
//! rounded (a machine that widens weights rounds no factor). Seen of torch's distance: logits and
//! losses 0.4 to 0.7 where products are of bf16 (AMX, `VDPBF16PS`), under 0.001 where weights are
//! widened; all gradients of a case together 0.4 to 0.8, and 0.15 to 0.4.
//!
//! A distance is a draw, though. A single gradient, in which most terms cancel, hangs by few
//! roundings: a kernel that rounds elsewhere moves it by two thirds, and in other random models than
//! these some of BERT's are up to 2.6 times as far as torch's, at 0.7 in the mean (in six of them the
//! farthest was at 0.7 to 2.1 with attention in tiles of AMX, and at 0.6 to 2.1 without). [`ONE`]
//! leaves room for the former in these models.

#![expect(clippy::print_stdout, reason = "`--nocapture` shows every distance")]

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Gradients, ops};
use lowrank_models::{Input, Model, OpenOptions, Padded, PeftModel, Task};
use lowrank_peft::{
    Pass,
    layers::{Layer, LinearKind},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Rows with a label, and their labels.
type Targets = (Arc<[usize]>, Arc<[u32]>);

/// A single gradient may be this many times as far from f32 as torch's.
const ONE: f32 = 1.75;

struct Case {
    name: String,
    tensors: HashMap<String, Tensor>,
    peft: PeftModel,
    input: Input,
    /// The places of the padded batch that the rows of the input stand for.
    places: Vec<usize>,
}

fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|v| v * v).sum::<f32>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

impl Case {
    fn open(name: &str, task: Task) -> Result<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let tensors =
            candle_core::safetensors::load(folder.join("case.safetensors"), &Device::Cpu)?;
        let options = OpenOptions { task: Some(task), ..OpenOptions::default() };
        let peft = PeftModel::from_pretrained(Model::open(&folder, &options)?, &folder)?;
        peft.set_trainable("default", true)?;
        let ints = |name: &str| tensors[name].flatten_all()?.to_vec1::<i64>();
        let (rows, columns) = tensors["in.input_ids"].dims2()?;
        let padded = Padded::new(rows, columns, Some(&ints("in.attention_mask")?))?;
        let ids: Vec<u32> = ints("in.input_ids")?.iter().map(|&id| id as u32).collect();
        let input = Input::new(padded.pick(&ids).into(), padded.sequences());
        let places = padded.real().to_vec();
        Ok(Self { name: name.to_owned(), tensors, peft, input, places })
    }

    /// Every matrix is bf16, but a router's, which is widened: what runs is what is to be compared.
    fn check_weights(&self) {
        for (path, layer) in self.peft.model().modules.layers() {
            let weight = match layer {
                Layer::Linear(linear) if linear.kind() == LinearKind::Router => continue,
                Layer::Norm(_) | Layer::Bare(_) => continue,
                layer => layer.tensors()[0].weight(),
            };
            assert_eq!(weight.dtype(), DType::BF16, "{}: {path}", self.name);
        }
    }

    /// Of a causal model the label of a row is the next place's.
    fn targets(&self) -> Result<Targets> {
        let labels = self.tensors["in.labels"].to_vec2::<i64>()?;
        let columns = labels[0].len();
        let ahead = usize::from(self.peft.model().task == Task::CausalLm);
        let label = |place: usize| labels[place / columns].get(place % columns + ahead);
        let labels = self.places.iter().map(|&place| label(place).map_or(-100, |label| *label));
        let labelled = labels.enumerate().filter(|(_, label)| *label >= 0);
        let (rows, classes): (Vec<_>, Vec<_>) =
            labelled.map(|(row, label)| (row, label as u32)).unzip();
        Ok((rows.into(), classes.into()))
    }

    fn reference(&self, dtype: &str, quantity: &str) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(&format!("{dtype}.{quantity}"));
        floats(tensor.ok_or_else(|| format!("{}: no {dtype}.{quantity}", self.name))?)
    }

    /// How far torch's bf16 is from its f32.
    fn torch_off(&self, quantity: &str) -> Result<f32> {
        Ok(distance(&self.reference("bf16", quantity)?, &self.reference("f32", quantity)?))
    }

    /// Our distance to torch's f32 must be at most `factor` times that of torch's bf16, or `floor`.
    /// Returns how many times it is.
    fn check(&self, quantity: &str, found: &[f32], factor: f32, floor: f32) -> Result<f32> {
        let exact = self.reference("f32", quantity)?;
        let (ours, torch) = (distance(found, &exact), self.torch_off(quantity)?);
        let size = norm(exact.into_iter());
        let times = ours / torch;
        let told = format!(
            "{} {quantity}: off by {:.1e}, torch by {:.1e}: {times:.2} times as far",
            self.name,
            ours / size,
            torch / size
        );
        println!("{told}");
        match ours <= (factor * torch).max(floor) {
            true => Ok(times),
            false => Err(told.into()),
        }
    }

    /// Logits, and the loss of each target by them.
    fn check_logits(&self) -> Result<()> {
        let logits = self.peft.model().logits(&self.input, None, &self.peft.inference())?;
        let logits = logits.data().to_vec2::<f32>()?;
        let step = logits.len().div_ceil(self.tensors["f32.logits"].dims()[0]);
        let shown: Vec<f32> = logits.iter().step_by(step).flatten().copied().collect();
        self.check("logits", &shown, 1.0, 0.0)?;
        let (rows, classes) = self.targets()?;
        let loss = |(&row, &class): (&usize, &u32)| {
            let logits: &[f32] = &logits[row];
            logits.iter().map(|z| z.exp()).sum::<f32>().ln() - logits[class as usize]
        };
        let losses: Vec<f32> = rows.iter().zip(classes.iter()).map(loss).collect();
        self.check("losses", &losses, 1.0, 0.0)?;
        Ok(())
    }

    /// The loss as training computes it, and its gradients.
    fn check_training(&self, pass: &Pass) -> Result<()> {
        let model = self.peft.model();
        let (rows, classes) = self.targets()?;
        let hidden = model.hidden(&self.input, pass)?;
        let scored = model.head().cross_entropy(&hidden, &self.input, (&rows, &classes), pass)?;
        let loss = ops::scale(&scored.sum, 1.0 / classes.len() as f32)?;
        // Errors of targets may cancel in their mean, and torch's nearly do in some cases: three
        // times the standard deviation that the mean has if they are independent is allowed.
        let floor = 3.0 * self.torch_off("losses")? / classes.len() as f32;
        self.check("loss", &floats(loss.data())?, 1.0, floor)?;
        let mut gradients = Gradients::new();
        loss.backward(1.0, &mut gradients)?;
        let trained = self.peft.trainable();
        let expected = self.tensors.keys().filter(|name| name.starts_with("f32.grad."));
        assert_eq!(trained.len(), expected.count(), "{}: what trains", self.name);
        let mut logarithms = 0.0;
        for parameter in &trained {
            let name = parameter.name();
            let found = gradients.get(parameter.id()).ok_or_else(|| format!("none of {name}"))?;
            logarithms += self.check(&format!("grad.{name}"), &floats(found)?, ONE, 0.0)?.ln();
        }
        let mean = (logarithms / trained.len() as f32).exp();
        println!("{} gradients: {mean:.2} times as far as torch in the geometric mean", self.name);
        match mean <= 1.0 {
            true => Ok(()),
            false => Err(format!("{}: gradients are {mean} times as far", self.name).into()),
        }
    }

    fn check_all(&self) -> Result<()> {
        self.check_weights();
        self.check_logits()?;
        let pass = self.peft.recording();
        self.check_training(&pass)?;
        self.check_training(&pass.with_checkpointing(true))
    }
}

#[test] // groups of heads of 64, more tokens than a tile of attention has
fn llama_in_bf16_is_no_farther_from_f32_than_torch() -> Result<()> {
    Case::open("bf16_llama", Task::CausalLm)?.check_all()
}

#[test] // transposed matrices, one for queries, keys and values
fn gpt2_in_bf16_is_no_farther_from_f32_than_torch() -> Result<()> {
    Case::open("bf16_gpt2", Task::CausalLm)?.check_all()
}

#[test] // attention to both sides
fn bert_in_bf16_is_no_farther_from_f32_than_torch() -> Result<()> {
    Case::open("bf16_bert", Task::MaskedLm)?.check_all()
}

#[test] // adapters on attention and on the experts
fn qwen3_moe_in_bf16_is_no_farther_from_f32_than_torch() -> Result<()> {
    Case::open("bf16_qwen3_moe", Task::CausalLm)?.check_all()
}
