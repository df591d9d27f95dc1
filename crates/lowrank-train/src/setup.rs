//! From a plan to everything a run needs: model, adapter, rows, order.

use lowrank_data::{DateTime, Example, Fingerprint, Packing as Pack, Tokenizer, pack};
use lowrank_models::{
    Beside, Family, LabelNames, Model, OpenOptions, PeftModel, ProblemType, Task, get_peft_model,
};
use lowrank_peft::{
    LoraConfig,
    lora_config::{Bias, ExcludeModules, InitLoraWeights, Number, OneOrMany, TargetModules},
    targets::llamafactory_all,
};
use serde_json::{Value, json};

use crate::{
    Collator, Error, Loader, Order, Result, Rows, data_options,
    objectives::MaskedWords,
    prepare::rows,
    recipe::plan::{self, Duration, LoraPlan, MethodPlan, Plan, RopeScaling, Stage, WeightDtype},
};

/// Everything a run needs.
#[derive(Debug)]
pub struct Setup {
    /// The model with the adapter that trains.
    pub model: PeftModel,
    /// Encoded rows.
    pub rows: Rows,
    /// Which of them each step sees.
    pub loader: Loader,
    /// How they become batches.
    pub collator: Collator,
    /// Steps of the run.
    pub total_steps: u64,
    /// Hash of the rows, without which a run isn't resumed.
    pub fingerprint: String,
    /// What the user should hear before the run.
    pub remarks: Vec<String>,
}

impl Setup {
    /// Opens the model and reads the data of a plan. `now` is the time that templates may write.
    ///
    /// # Errors
    /// When anything is missing or wrong; nothing has been written then.
    pub fn new(plan: &Plan, now: DateTime) -> Result<Self> {
        let device = plan.model.device.open()?; // before the data is read
        let MethodPlan::Lora(lora) = &plan.method;
        let folder = &plan.model.model_name_or_path;
        let task = task_of(plan, lora)?;
        let tokenizer = Tokenizer::open(folder)?;
        let options = data_options(plan, now)?;
        let rows = rows(plan, task, &options, tokenizer.clone())?;
        let mut remarks = Vec::new();
        let model = open_model(plan, task, &rows, device)?;
        remarks.extend(about_model(&model));
        let model = with_adapter(model, plan, lora, task, &mut remarks)?;
        let vocabulary = model.model().text_config()?.size_or("vocab_size", usize::MAX)?;
        check_rows(&rows, vocabulary, plan.train.do_train)?;
        remarks.extend(about_rows(&rows));
        let loader = match plan.train.do_train {
            true => Loader::new(units(plan, &options, &rows.train, &mut remarks), order(plan))?,
            false => Loader::idle(order(plan)),
        };
        let total_steps = match plan.train.duration {
            _ if !plan.train.do_train => 0,
            Duration::Steps(steps) => steps,
            Duration::Epochs(epochs) => loader.steps_for(epochs),
        };
        let pictures = rows.pictures;
        let decoder_start = start_of(&model)?;
        let masked_words = MaskedWords::of(plan, &tokenizer, vocabulary)?;
        let shift = task == Task::CausalLm;
        let collator = Collator { shift, decoder_start, pictures, masked_words };
        let fingerprint = Fingerprint::of(rows.train.iter());
        Ok(Self { model, rows, loader, collator, total_steps, fingerprint, remarks })
    }
}

/// The recipe's task, or the one that the architecture is made for.
fn task_of(plan: &Plan, lora: &LoraPlan) -> Result<Task> {
    let folder = &plan.model.model_name_or_path;
    let path = folder.join("config.json");
    if !path.is_file() {
        let (path, missing) = (folder.to_owned(), "config.json");
        return Err(lowrank_models::Error::NotAModel { path, missing, hint: "" }.into());
    }
    let config = lowrank_models::Config::read(&path)?;
    let architecture = lowrank_models::Architecture::of(&config)?;
    let family = architecture.family_of(&config)?;
    if matches!(plan.stage, Stage::Pt { .. }) {
        let has_head = architecture.tasks.contains(&Task::MaskedLm);
        return has_head.then_some(Task::MaskedLm).ok_or_else(|| {
            Error::Setup(format!(
                "`stage: pt` trains encoders to guess hidden words, and `{}` models don't; write \
                 `stage: sft`, which trains decoders on whole texts as well",
                architecture.model_type
            ))
        });
    }
    let task = match (lora.task_type, family) {
        (plan::TaskType::CausalLm, Family::EncoderDecoder) | (plan::TaskType::Seq2SeqLm, _) => {
            Task::Seq2SeqLm
        }
        (plan::TaskType::CausalLm, _) => Task::CausalLm,
        (plan::TaskType::SeqCls, _) => Task::SeqCls,
        (plan::TaskType::TokenCls, _) => Task::TokenCls,
        (plan::TaskType::QuestionAns, _) => Task::QuestionAns,
    };
    architecture.check_task(task)?;
    Ok(task)
}

/// Bytes of weights that a run keeps in memory; it holds the others only while it reads them.
const RESIDENT: usize = 1_200_000_000;

fn open_model(plan: &Plan, task: Task, rows: &Rows, device: candle_core::Device) -> Result<Model> {
    let problem_type =
        rows.labels.as_ref().filter(|_| task == Task::SeqCls).map(|l| match l.problem_type {
            lowrank_data::ProblemType::Regression => ProblemType::Regression,
            lowrank_data::ProblemType::SingleLabel => ProblemType::SingleLabel,
            lowrank_data::ProblemType::MultiLabel => ProblemType::MultiLabel,
        });
    let options = OpenOptions {
        task: Some(task),
        dtype: match plan.model.weights {
            WeightDtype::Checkpoint => None,
            WeightDtype::F32 => Some(candle_core::DType::F32),
            WeightDtype::Bf16 => Some(candle_core::DType::BF16),
        },
        labels: rows.labels.as_ref().map(|l| l.names.clone()),
        problem_type,
        overrides: [rope_scaling(plan)?, balance(plan)].concat(),
        device: Some(device),
        seed: plan.train.seed,
        release_weights_above: Some(RESIDENT),
    };
    let model = Model::open(&plan.model.model_name_or_path, &options)?;
    if plan.model.moe_aux_loss_coef.is_some() && !model.network().has_penalty() {
        let (model_type, task) = (model.architecture.model_type, task.name());
        let what = format!(
            "`moe_aux_loss_coef` is for language models with experts that transformers balances; \
             `{model_type}` for the task `{task}` is none"
        );
        return Err(Error::Setup(what));
    }
    Ok(model)
}

/// What LLaMA-Factory writes into the config of a mixture of experts.
fn balance(plan: &Plan) -> Vec<(String, Value)> {
    let Some(factor) = plan.model.moe_aux_loss_coef else { return Vec::new() };
    let asked = ("output_router_logits".to_owned(), true.into());
    vec![asked, ("router_aux_loss_coef".to_owned(), factor.into())]
}

/// LLaMA-Factory's rule: the context is stretched to `cutoff_len`, if that is longer.
fn rope_scaling(plan: &Plan) -> Result<Vec<(String, Value)>> {
    let Some(kind) = plan.model.rope_scaling else { return Ok(Vec::new()) };
    let path = plan.model.model_name_or_path.join("config.json");
    let config = lowrank_models::Config::read(&path)?;
    let trained = config.size("max_position_embeddings")?;
    if plan.data.cutoff_len <= trained {
        return Ok(Vec::new());
    }
    let theta = match config.object("rope_parameters")? {
        Some(old) => old.number_or("rope_theta", 10_000.0)?,
        None => config.number_or("rope_theta", 10_000.0)?,
    };
    let factor = plan.data.cutoff_len.div_ceil(trained) as f64;
    let name = match kind {
        RopeScaling::Linear => "linear",
        RopeScaling::Dynamic => "dynamic",
        RopeScaling::Yarn => "yarn",
        RopeScaling::Llama3 => "llama3",
    };
    let mut rope = json!({ "rope_type": name, "rope_theta": theta, "factor": factor });
    if matches!(kind, RopeScaling::Yarn | RopeScaling::Llama3) {
        rope["original_max_position_embeddings"] = trained.into();
    }
    if kind == RopeScaling::Llama3 {
        rope["low_freq_factor"] = 1.0.into();
        rope["high_freq_factor"] = 4.0.into();
    }
    Ok(vec![("rope_parameters".to_owned(), rope)])
}

/// Adapters as LLaMA-Factory takes them: all but the last are merged, the last trains on; with
/// `create_new_adapter`, or without any, a fresh one trains.
fn with_adapter(
    mut model: Model,
    plan: &Plan,
    lora: &LoraPlan,
    task: Task,
    remarks: &mut Vec<String>,
) -> Result<PeftModel> {
    let fresh = lora.create_new_adapter || plan.model.adapters.is_empty();
    let given = plan.model.adapters.as_slice();
    let (merged, trained) = match given.split_last() {
        Some((last, before)) if !fresh => (before, Some(last)),
        _ => (given, None),
    };
    for folder in merged {
        model = PeftModel::from_pretrained(model, folder)?.merge_and_unload()?;
        remarks.push(format!("merged `{}` into the base", folder.display()));
    }
    let model = match trained {
        Some(folder) => {
            let model = PeftModel::from_pretrained(model, folder)?;
            model.set_trainable(lowrank_models::DEFAULT_ADAPTER, true)?;
            let what = "trains on; its own rank and targets count, not the recipe's";
            remarks.push(format!("`{}` {what}", folder.display()));
            model
        }
        None => {
            let config = lora_config(lora, &model, task)?;
            get_peft_model(model, &config, plan.train.seed)?
        }
    };
    remarks.extend(model.adapters().iter().flat_map(|a| a.warnings.iter().cloned()));
    Ok(model)
}

fn lora_config(lora: &LoraPlan, model: &Model, task: Task) -> Result<LoraConfig> {
    let number = |v: f64| match v.fract() == 0.0 && v.abs() < 1e15 {
        true => Number::Int(v as i64),
        false => Number::Float(v),
    };
    let target_modules = match &lora.target {
        plan::Target::All => TargetModules::names(all_targets(lora, model)),
        plan::Target::AllLinear => TargetModules::AllLinear,
        plan::Target::Names(names) => TargetModules::names(names.clone()),
        plan::Target::Pattern(pattern) => TargetModules::Pattern(pattern.clone()),
    };
    let exclude_modules = lora.exclude_modules.as_ref().map(|target| match target {
        plan::Target::Names(names) => ExcludeModules::List(names.clone()),
        plan::Target::Pattern(pattern) => ExcludeModules::Pattern(pattern.clone()),
        plan::Target::All | plan::Target::AllLinear => ExcludeModules::Pattern(".*".to_owned()),
    });
    let layers: Vec<i64> = lora.layers_to_transform.iter().map(|&l| l as i64).collect();
    let some = |empty: bool| (!empty).then_some(());
    Ok(LoraConfig {
        task_type: task.task_type(),
        r: lora.lora_rank,
        lora_alpha: number(lora.lora_alpha),
        lora_dropout: Number::Float(lora.lora_dropout),
        target_modules,
        target_parameters: some(lora.target_parameters.is_empty())
            .map(|()| lora.target_parameters.clone()),
        exclude_modules,
        use_rslora: lora.use_rslora,
        modules_to_save: some(lora.modules_to_save.is_empty())
            .map(|()| lora.modules_to_save.clone()),
        rank_pattern: lora.rank_pattern.clone(),
        alpha_pattern: lora.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect(),
        layers_to_transform: some(layers.is_empty()).map(|()| OneOrMany::Many(layers)),
        layers_pattern: some(lora.layers_pattern.is_empty())
            .map(|()| OneOrMany::Many(lora.layers_pattern.clone())),
        bias: match lora.bias {
            plan::Bias::None => Bias::None,
            plan::Bias::All => Bias::All,
            plan::Bias::LoraOnly => Bias::LoraOnly,
        },
        lora_bias: lora.lora_bias,
        fan_in_fan_out: lora.fan_in_fan_out,
        init_lora_weights: match lora.init_lora_weights {
            plan::InitLoraWeights::Kaiming => InitLoraWeights::Default,
            plan::InitLoraWeights::Gaussian => InitLoraWeights::Gaussian,
            plan::InitLoraWeights::Random => InitLoraWeights::Random,
        },
        ..LoraConfig::default()
    })
}

/// LLaMA-Factory's `all`. Where parts of a model that sees are frozen, names alone can't tell them
/// from the others, so these are whole paths.
fn all_targets(lora: &LoraPlan, model: &Model) -> Vec<String> {
    let (infos, model_type) = (model.modules.infos(), model.architecture.model_type);
    let task = model.task.task_type();
    if model.architecture.beside != Beside::Picture {
        return llamafactory_all(&infos, model_type, task, &[]);
    }
    let plan::Freeze { vision_tower, multi_modal_projector, language_model } = lora.freeze;
    let parts: [(bool, &[&str]); 3] = [
        (vision_tower, &["vision_model."]),
        (multi_modal_projector, &["qformer.", "language_projection"]),
        (language_model, &["language_model."]),
    ];
    let frozen: Vec<&str> =
        parts.iter().filter(|(is, _)| *is).flat_map(|(_, names)| *names).copied().collect();
    let each = infos.iter().filter(|info| {
        !llamafactory_all(std::slice::from_ref(info), model_type, task, &frozen).is_empty()
    });
    each.map(|info| info.path.clone()).collect()
}

/// What the decoder of a model that writes targets begins with.
fn start_of(model: &PeftModel) -> Result<Option<u32>> {
    match model.model().task {
        Task::Seq2SeqLm => Ok(model.model().target_start()?),
        _ => Ok(None),
    }
}

/// Samples that are run together.
fn units(
    plan: &Plan,
    options: &lowrank_data::DataOptions,
    examples: &[Example],
    remarks: &mut Vec<String>,
) -> Vec<Vec<usize>> {
    if options.packing == Pack::Off {
        return (0..examples.len()).map(|i| vec![i]).collect();
    }
    let lengths: Vec<usize> = examples.iter().map(|e| e.input_ids.len()).collect();
    let packed = pack(&lengths, plan.data.sample_len, options.preprocessing_batch_size);
    if plan.data.packing == plan::Packing::Plain {
        let what =
            "`packing`: samples that share a row don't see each other here, as with `neat_packing`";
        remarks.push(what.to_owned());
    }
    if !packed.too_long.is_empty() {
        remarks.push(format!("{} rows are too long to be packed, left out", packed.too_long.len()));
    }
    packed.bins.into_iter().map(|bin| bin.samples).collect()
}

fn order(plan: &Plan) -> Order {
    Order {
        batch_size: plan.train.per_device_train_batch_size,
        accumulation: plan.train.gradient_accumulation_steps,
        drop_last: plan.train.dataloader_drop_last,
        shuffle: plan.train.shuffle,
        seed: plan.train.data_seed,
    }
}

fn check_rows(rows: &Rows, vocabulary: usize, train: bool) -> Result<()> {
    for example in rows.train.iter().chain(&rows.eval) {
        if let Some(id) = example.input_ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::Setup(format!(
                "{}: token id {id} is outside the model's vocabulary of {vocabulary}; the \
                 tokenizer isn't this model's",
                example.source
            )));
        }
    }
    if train && rows.train.iter().all(|e| e.targets() == 0) {
        let what = "no row has a token to train on; look at them with `lowrank preview`";
        return Err(Error::Setup(what.to_owned()));
    }
    Ok(())
}

fn about_model(model: &Model) -> Vec<String> {
    let mut remarks = Vec::new();
    if !model.fresh.is_empty() {
        let names = model.fresh.join(", ");
        remarks.push(format!("the head starts fresh, the model's files lack it: {names}"));
    }
    if !model.unused.is_empty() {
        let shown: Vec<&str> = model.unused.iter().take(8).map(String::as_str).collect();
        let more = model.unused.len().saturating_sub(shown.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        remarks.push(format!("tensors that this model has no use for: {}{more}", shown.join(", ")));
    }
    remarks
}

fn about_rows(rows: &Rows) -> Vec<String> {
    let mut remarks = Vec::new();
    let cut = rows.train.iter().filter(|e| e.cut > 0).count();
    if cut > 0 {
        let tokens: usize = rows.train.iter().map(|e| e.cut).sum();
        remarks.push(format!("`cutoff_len` cut {tokens} tokens off {cut} rows"));
    }
    let empty = rows.train.iter().filter(|e| e.targets() == 0).count();
    if empty > 0 {
        remarks.push(format!("{empty} rows have no token to train on"));
    }
    if !rows.skipped.is_empty() {
        let first = rows.skipped.first().map(String::as_str).unwrap_or_default();
        remarks.push(format!("{} bad rows were left out, first {first}", rows.skipped.len()));
    }
    remarks
}

/// The label names that travel with a classifier's adapter.
pub(crate) fn label_names(setup: &Setup) -> Option<LabelNames> {
    let labels = setup.rows.labels.as_ref()?;
    let config = &setup.model.model().config;
    let problem_type = ProblemType::of(config).ok().flatten();
    Some(LabelNames { names: labels.names.clone(), problem_type })
}
