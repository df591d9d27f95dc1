//! Logits, losses, gradients and greedy tokens of tiny random models, as transformers and PEFT
//! computed them. A case is a folder with a model, an adapter where gradients are compared, and
//! `case.safetensors`: `in.*` inputs, `gen.*` prompts, `base.*` and `lora.*` references,
//! `cmp.logits_mask` which logits count. `fixtures/make.py` made those that end in `_own`.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Gradients, Parameter, Value, ops};
use lowrank_models::{
    Architecture, Config, Family, GenerateOptions, Input, Model, OpenOptions, Padded, Task,
    generate_after,
};
use lowrank_peft::{
    Pass,
    layers::Layer,
    methods::lora::{LoraLayer, LoraShape, LoraTensors},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const ADAPTER: &str = "default";

struct Case {
    name: String,
    adapter: PathBuf,
    tensors: HashMap<String, Tensor>,
    model: Model,
}

impl Case {
    fn open(folder: &Path) -> Result<Self> {
        let within = |part: &str| match folder.join(part) {
            own if own.is_dir() => own,
            _ => folder.to_owned(),
        };
        let tensors =
            candle_core::safetensors::load(folder.join("case.safetensors"), &Device::Cpu)?;
        // The task is that of the class which wrote the folder.
        let config = Config::read(&within("model").join("config.json"))?;
        let class = config.words("architectures")?.unwrap_or_default().join(" ");
        let architecture = Architecture::of(&config)?;
        let writes = |t: &Task| architecture.class_for(*t).as_deref() == Some(class.as_str());
        let task = architecture.tasks.iter().copied().find(writes);
        let task = Some(task.ok_or_else(|| format!("no task writes `{class}`"))?);
        let model = Model::open(&within("model"), &OpenOptions { task, ..OpenOptions::default() })?;
        let adapter = within("adapter").join("adapter_model.safetensors");
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, adapter, tensors, model })
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        Ok(self.tensors.get(name).ok_or_else(|| format!("{}: no `{name}`", self.name))?)
    }

    fn ints(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.tensor(name)?.flatten_all()?.to_vec1()?)
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(name)?.flatten_all()?.to_vec1()?)
    }

    fn padded(&self, ids: &str, mask: &str) -> Result<Padded> {
        let (rows, columns) = self.tensor(ids)?.dims2()?;
        let mask = self.tensors.contains_key(mask).then(|| self.ints(mask)).transpose()?;
        Ok(Padded::new(rows, columns, mask.as_deref())?)
    }

    fn has_reference(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// What the head reads, and the places of the padded batch that its rows stand for.
    fn input(&self) -> Result<(Input, Vec<usize>)> {
        let padded = self.padded("in.input_ids", "in.attention_mask")?;
        let ids: Vec<u32> = self.ints("in.input_ids")?.iter().map(|&v| v as u32).collect();
        let types = match self.has_reference("in.token_type_ids") {
            true => Some(self.ints("in.token_type_ids")?.iter().map(|&v| v as u32).collect()),
            false => None::<Vec<u32>>,
        };
        // transformers' loss of a span is over padded places too, and a pooler may read one.
        let reads_padding = matches!(self.model.task, Task::QuestionAns | Task::SeqCls);
        if reads_padding && self.model.family == Family::Encoder {
            let (places, sequences) = ((0..ids.len()).collect(), padded.every_place()?);
            let token_types = types.map(Into::into);
            return Ok((Input { token_types, ..Input::new(ids.into(), sequences) }, places));
        }
        let token_types = types.map(|types| padded.pick(&types).into());
        let input = Input::new(padded.pick(&ids).into(), padded.sequences());
        let images = self.tensors.get("in.pixel_values").cloned();
        Ok((Input { token_types, images, ..input }, padded.real().to_vec()))
    }

    /// Logits, and the places that their rows stand for.
    fn logits(&self, pass: &Pass) -> Result<(Value, Vec<usize>)> {
        let (input, places) = self.input()?;
        match self.model.task {
            Task::Seq2SeqLm => {
                let (name, mask) = ("in.decoder_input_ids", "in.decoder_attention_mask");
                let padded = self.padded(name, mask)?;
                let ids: Vec<u32> = self.ints(name)?.iter().map(|&v| v as u32).collect();
                let (ids, sequences) = (padded.pick(&ids).into(), padded.sequences());
                let target = Input::new(ids, sequences);
                let logits = self.model.target_logits((&input, pass), (&target, pass), None)?;
                Ok((logits, padded.real().to_vec()))
            }
            Task::SeqCls => {
                let rows = (0..input.sequences.len()).collect();
                Ok((self.model.logits(&input, None, pass)?, rows))
            }
            _ => Ok((self.model.logits(&input, None, pass)?, places)),
        }
    }

    fn check_logits(&self, logits: &Value, places: &[usize], reference: &str) -> Result<()> {
        let expected = self.floats(reference)?;
        let mask = self.tensor("cmp.logits_mask")?.to_dtype(DType::U8)?.flatten_all()?;
        let mask = mask.to_vec1::<u8>()?;
        let found = logits.data().to_vec2::<f32>()?;
        let width = expected.len() / mask.len();
        let largest = expected.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
        let mut counted = 0;
        for (row, &place) in found.iter().zip(places).filter(|(_, place)| mask[**place] != 0) {
            counted += 1;
            for (column, (a, b)) in row.iter().zip(&expected[place * width..]).enumerate() {
                let off = (a - b).abs() / largest;
                if off.is_nan() || off > 5e-5 {
                    let name = &self.name;
                    return Err(format!(
                        "{name}: {reference}[{place}][{column}] is {a}, must be {b}: {off:e} of \
                         the largest"
                    )
                    .into());
                }
            }
        }
        assert_eq!(counted, mask.iter().filter(|m| **m != 0).count(), "{}", self.name);
        Ok(())
    }

    /// The loss of logits, a mean over what counts, as transformers has it.
    fn loss(&self, logits: &Value, places: &[usize]) -> Result<Value> {
        if self.model.task == Task::QuestionAns {
            let [starts, ends] = ["in.start_positions", "in.end_positions"].map(|n| self.ints(n));
            let columns =
                [self.span_loss(logits, 0, &starts?)?, self.span_loss(logits, 1, &ends?)?];
            return Ok(ops::scale(&ops::add(&columns[0], &columns[1])?, 0.5)?);
        }
        let labels = self.ints("in.labels")?;
        let columns = self.tensor("in.labels")?.dims().get(1).copied().unwrap_or(1);
        let label = |place: usize| match self.model.task {
            // The label of a place is the next place's, in its own row.
            Task::CausalLm if (place + 1).is_multiple_of(columns) => -100,
            Task::CausalLm => labels[place + 1],
            _ => labels[place],
        };
        let counted: Vec<(usize, i64)> =
            places.iter().map(|&p| label(p)).enumerate().filter(|(_, l)| *l != -100).collect();
        let rows: Arc<[usize]> = counted.iter().map(|(row, _)| *row).collect();
        let targets: Arc<[u32]> = counted.iter().map(|(_, label)| *label as u32).collect();
        let sum = ops::cross_entropy(&ops::select_rows(logits, &rows)?, &targets)?;
        Ok(ops::scale(&sum, 1.0 / targets.len() as f32)?)
    }

    /// Cross-entropy over the places of each sequence; positions outside don't count.
    fn span_loss(&self, logits: &Value, column: usize, positions: &[i64]) -> Result<Value> {
        let places = logits.dims()[0] / positions.len();
        let scores = ops::columns(logits, column..column + 1)?;
        let scores = ops::reshape(&scores, &[positions.len(), places])?;
        let inside = |row: &usize| (positions[*row] as usize) < places;
        let rows: Arc<[usize]> = (0..positions.len()).filter(inside).collect();
        let targets: Arc<[u32]> = rows.iter().map(|&row| positions[row] as u32).collect();
        let sum = ops::cross_entropy(&ops::select_rows(&scores, &rows)?, &targets)?;
        Ok(ops::scale(&sum, 1.0 / targets.len() as f32)?)
    }

    fn check_loss(&self, loss: &Value, reference: &str) -> Result<()> {
        let (found, expected) = (loss.data().to_scalar::<f32>()?, self.floats(reference)?[0]);
        let off = ((found - expected) / expected).abs();
        match off <= 2e-5 {
            true => Ok(()),
            false => {
                Err(format!("{}: {reference} is {found}, must be {expected}", self.name).into())
            }
        }
    }

    /// Greedy tokens, one at a time over a cache.
    fn check_generated(&self) -> Result<()> {
        if !self.has_reference("gen.input_ids") {
            return Ok(());
        }
        let pass = Pass::inference(Arc::default());
        let padded = self.padded("gen.input_ids", "gen.attention_mask")?;
        let ids: Vec<u32> = self.ints("gen.input_ids")?.iter().map(|&v| v as u32).collect();
        let images = self.tensors.get("gen.pixel_values").cloned();
        let prompts = Input::new(padded.pick(&ids).into(), padded.sequences());
        let prompts = Input { images, ..prompts };
        let max_new_tokens = self.tensor("base.generated")?.dims()[1];
        let asked = GenerateOptions::asked(&self.model)?;
        let options = GenerateOptions { max_new_tokens, ..asked };
        let generated = generate_after(&self.model, &pass, &prompts, &options, |_, _| true)?;
        let generated: Vec<i64> = generated.concat().into_iter().map(i64::from).collect();
        match generated == self.ints("base.generated")? {
            true => Ok(()),
            false => Err(format!("{}: generated {generated:?}", self.name).into()),
        }
    }

    /// Gives the adapter's layers their tensors; all cases have `r` 4 and `lora_alpha` 8.
    fn attach(&self) -> Result<Vec<Parameter>> {
        let file: BTreeMap<String, Tensor> =
            candle_core::safetensors::load(&self.adapter, &Device::Cpu)?.into_iter().collect();
        let shape = LoraShape { r: 4, scaling: 2.0, dropout: 0.0, lora_bias: false };
        let mut parameters = Vec::new();
        for (a_name, a) in &file {
            let Some((place, kind)) = a_name.split_once(".lora_") else {
                return Err(format!("{}: `{a_name}` isn't of LoRA", self.name).into());
            };
            if !kind.contains('A') {
                continue;
            }
            let b_name = format!("{place}.lora_{}", kind.replacen('A', "B", 1));
            let b = file.get(&b_name).ok_or_else(|| format!("no `{b_name}`"))?;
            let path = place.strip_prefix("base_model.model.").unwrap_or(place);
            let tensors = LoraTensors { a: a.clone(), b: b.clone(), b_bias: None };
            let names = [a_name.clone(), b_name, String::new()];
            let lora = LoraLayer::new(path, names, &tensors, shape)?;
            parameters.extend(lora.parameters().cloned());
            match self.model.modules.layer(path) {
                Some(Layer::Linear(layer)) => layer.set_adapter(ADAPTER, lora),
                Some(Layer::Embedding(layer)) => layer.set_adapter(ADAPTER, lora),
                _ => return Err(format!("{}: no layer `{path}` to adapt", self.name).into()),
            }
        }
        Ok(parameters)
    }

    fn check_gradients(&self, checkpointing: bool) -> Result<()> {
        let parameters = self.attach()?;
        let pass = Pass::recording([ADAPTER.to_owned()].into()).with_checkpointing(checkpointing);
        let (logits, places) = self.logits(&pass)?;
        self.check_logits(&logits, &places, "lora.logits")?;
        let loss = self.loss(&logits, &places)?;
        self.check_loss(&loss, "lora.loss")?;
        let mut gradients = Gradients::new();
        loss.backward(1.0, &mut gradients)?;
        assert!(!parameters.is_empty(), "{}: the adapter is empty", self.name);
        for parameter in &parameters {
            let name = parameter.name();
            let expected = self.floats(&format!("lora.grad.{name}"))?;
            let found = gradients.get(parameter.id());
            let found = found.ok_or_else(|| format!("{}: `{name}` has no gradient", self.name))?;
            let found = found.flatten_all()?.to_vec1::<f32>()?;
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
            let apart = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let off = apart / norm(&mut expected.iter().copied());
            if off.is_nan() || off > 1e-3 {
                return Err(format!("{}: gradient of `{name}` is off by {off:e}", self.name).into());
            }
        }
        Ok(())
    }

    /// The modules stand in the order of a file's lines.
    fn check_order(&self, list: &Path) -> Result<()> {
        let list = std::fs::read_to_string(list)?;
        let layers = self.model.modules.layers();
        let modules = layers.filter(|(_, layer)| !matches!(layer, Layer::Bare(_)));
        let found: Vec<&str> = modules.map(|(path, _)| path).collect();
        match found == list.lines().collect::<Vec<_>>() {
            true => Ok(()),
            false => Err(format!("{}: modules in the order {found:?}", self.name).into()),
        }
    }

    /// Everything that the case has references for.
    fn check(&self) -> Result<()> {
        let pass = Pass::inference(Arc::default());
        let (logits, places) = self.logits(&pass)?;
        self.check_logits(&logits, &places, "base.logits")?;
        self.check_loss(&self.loss(&logits, &places)?, "base.loss")?;
        self.check_generated()
    }
}

fn fixture(name: &str) -> Result<Case> {
    Case::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name))
}

/// A case with an adapter: gradients too, with and without recomputation.
fn check_all(name: &str) -> Result<()> {
    let case = fixture(name)?;
    case.check()?;
    case.check_gradients(false)?;
    case.check_gradients(true)
}

#[test]
fn llama_equals_transformers() -> Result<()> {
    check_all("llama")
}

#[test]
fn qwen3_equals_transformers() -> Result<()> {
    check_all("qwen3")
}

#[test] // caps on scores and logits, an adapter on the capped head, norms at the ends of branches
fn gemma2_equals_transformers() -> Result<()> {
    check_all("gemma2_own")
}

#[test] // fused layers, and keys that change while a generation goes on
fn phi3_beyond_its_first_context_equals_transformers() -> Result<()> {
    check_all("phi3_own")
}

#[test] // norms of each head, blocks whose attention and MLP read the same
fn stablelm_with_its_switches_equals_transformers() -> Result<()> {
    check_all("stablelm_own")
}

#[test]
fn gpt2_equals_transformers() -> Result<()> {
    check_all("gpt2")
}

#[test] // scores scaled by layer, no `n_inner`, token types
fn gpt2_with_its_switches_equals_transformers() -> Result<()> {
    check_all("gpt2_own")
}

#[test] // an output layer that files call otherwise, old names of fields
fn gpt_neox_equals_transformers() -> Result<()> {
    check_all("gpt_neox_own")
}

#[test] // the 350m layout: norms after the sums, narrow embeddings
fn opt_equals_transformers() -> Result<()> {
    check_all("opt_own")
}

#[test] // the rw layout, of nine heads: biases that are no function of the distance
fn falcon_equals_transformers() -> Result<()> {
    check_all("falcon_own")
}

#[test] // clipped queries, keys and values
fn mpt_equals_transformers() -> Result<()> {
    check_all("mpt_own")
}

#[test]
fn bert_equals_transformers() -> Result<()> {
    check_all("bert")
}

#[test] // three segments, another activation
fn bert_with_its_switches_equals_transformers() -> Result<()> {
    check_all("bert_own")
}

#[test] // its loss reads padded places, and its adapter file holds the whole head
fn bert_question_answering_equals_transformers() -> Result<()> {
    fixture("bert_qa")?.check()
}

#[test]
fn t5_equals_transformers() -> Result<()> {
    check_all("t5")
}

#[test] // v1.1: gated, a head of its own, fewer decoder layers; the adapter is on the bias tables
fn t5_v1_1_equals_transformers() -> Result<()> {
    check_all("t5_own")
}

#[test] // other sizes on either side, a scaled embedding, forced tokens
fn bart_equals_transformers() -> Result<()> {
    check_all("bart_own")
}

#[test] // without an encoder, and with the attention that would look at its output
fn barts_decoder_alone_equals_transformers() -> Result<()> {
    check_all("bart_decoder_own")
}

#[test] // `is_decoder`, over narrow embeddings
fn electra_from_left_to_right_equals_transformers() -> Result<()> {
    check_all("electra_own")
}

#[test] // buckets, a shared projection of distances, a convolution, narrow embeddings
fn deberta_v2_equals_transformers() -> Result<()> {
    check_all("deberta_v2_own")
}

#[test] // an image whose edge belongs to no patch; adapters before and within the language model
fn blip_2_equals_transformers() -> Result<()> {
    check_all("blip_2_own")
}

#[test] // PEFT goes by this order
fn modules_stand_in_the_order_of_transformers() -> Result<()> {
    for name in [
        "bart_decoder_own",
        "bart_own",
        "bert_own",
        "blip_2_own",
        "deberta_v2_own",
        "electra_own",
        "falcon_own",
        "gemma2_own",
        "gpt2_own",
        "gpt_neox_own",
        "mpt_own",
        "opt_own",
        "phi3_own",
        "stablelm_own",
        "t5_own",
    ] {
        let case = fixture(name)?;
        case.check_order(&case.adapter.with_file_name("modules.txt"))?;
    }
    Ok(())
}

#[test]
#[ignore = "LOWRANK_CASES names a folder of cases"]
fn a_folder_of_cases_equals_transformers() -> Result<()> {
    let mut failed = Vec::new();
    let folder = std::env::var("LOWRANK_CASES")?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let gradients = |case: &Case| match case.attach() {
            Err(_) if !case.adapter.is_file() => Ok(()),
            // Whole modules in the adapter's file are another test's.
            Err(e) if e.to_string().contains("isn't of LoRA") => Ok(()),
            Err(e) => Err(e),
            Ok(_) => case.check_gradients(false).and_then(|()| case.check_gradients(true)),
        };
        let done = Case::open(&path).and_then(|case| {
            let order = path.join("model/modules.txt");
            if order.exists() {
                case.check_order(&order)?;
            }
            case.check()?;
            gradients(&case)
        });
        match done {
            Ok(()) => println!("{}: equal", path.display()),
            Err(e) => failed.push(format!("{}: {e}", path.display())),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    Ok(())
}
