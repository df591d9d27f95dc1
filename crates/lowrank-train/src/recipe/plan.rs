//! What will run: plain structs in which nothing is left unsaid and nothing contradicts.
//!
//! Fields bear the names of the recipe's keys where they mean the same; where a key can be left
//! out or said in several ways, the type here has one way.

mod schedule;

pub use schedule::{LrScheduler, Warmup};

use super::resolve::Notice;
use indexmap::IndexMap;
use std::path::PathBuf;

/// A training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What it is trained for.
    pub stage: Stage,
    /// The base model.
    pub model: ModelPlan,
    /// What of it is trained.
    pub method: MethodPlan,
    /// Rows and tokens.
    pub data: DataPlan,
    /// The steps.
    pub train: TrainPlan,
    /// Evaluation.
    pub eval: EvalPlan,
    /// Files and curves.
    pub output: OutputPlan,
    /// How answers are drawn, should the run generate any.
    pub generate: GeneratePlan,
    /// What the recipe says without effect here, to be shown once.
    pub notices: Vec<Notice>,
}

/// What a run trains for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stage {
    /// Answers, labels, texts as they are.
    Sft,
    /// Plain texts: an encoder guesses words that are hidden from it.
    Pt {
        /// The share of tokens that are to be guessed.
        mlm_probability: f64,
    },
}

/// A chat, a generation, a server.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatPlan {
    /// The model with its adapters.
    pub model: ModelPlan,
    /// How messages become tokens.
    pub template: TemplatePlan,
    /// How answers are drawn.
    pub generate: GeneratePlan,
    /// What the recipe says without effect here.
    pub notices: Vec<Notice>,
}

/// A merge into an ordinary model folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPlan {
    /// The model with the adapters that are merged.
    pub model: ModelPlan,
    /// Where the merged model goes.
    pub export_dir: PathBuf,
    /// Most bytes of one weight file.
    pub shard_bytes: u64,
    /// What the recipe says without effect here.
    pub notices: Vec<Notice>,
}

/// Which base model, how it is loaded, and on which device.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// Folder with config.json, weights and tokenizer.
    pub model_name_or_path: PathBuf,
    /// Adapter folders (`adapter_folder` appended), in their order.
    pub adapters: Vec<PathBuf>,
    /// Dtype in which the base weights are kept: `dtype` and `bf16` in training, `infer_dtype`
    /// else.
    pub weights: WeightDtype,
    /// Rescaled rotary positions; the factor follows from `cutoff_len` and the model.
    pub rope_scaling: Option<RopeScaling>,
    /// Factor of the loss that keeps experts evenly visited; without one the model's config decides.
    pub moe_aux_loss_coef: Option<f64>,
    /// Where the run happens.
    pub device: Device,
}

/// Dtype of the frozen base weights. Adapters, activations, norms, losses and optimizer state
/// don't depend on it: they are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// That of the weight files.
    Checkpoint,
    /// f32.
    F32,
    /// bf16: half the memory, and what LLaMA-Factory's `bf16: true` loads.
    Bf16,
}

/// How rotary positions are rescaled for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are transformers' `rope_type`")]
pub enum RopeScaling {
    Linear,
    Dynamic,
    Yarn,
    Llama3,
}

pub use lowrank_autograd::Placement as Device;

/// What is trained. There is one method yet.
#[derive(Debug, Clone, PartialEq)]
pub enum MethodPlan {
    /// LoRA adapters.
    Lora(LoraPlan),
}

/// LoRA, in the terms of PEFT's `LoraConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPlan {
    /// PEFT's task type.
    pub task_type: TaskType,
    /// PEFT's `r`.
    pub lora_rank: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout before A, from 0 to below 1.
    pub lora_dropout: f64,
    /// Which modules get adapters.
    pub target: Target,
    /// PEFT's `target_parameters`: ends of the names of parameters that get adapters as well.
    pub target_parameters: Vec<String>,
    /// The parts of a model that sees which [`Target::All`] leaves out.
    pub freeze: Freeze,
    /// Which of them don't after all.
    pub exclude_modules: Option<Target>,
    /// Scale alpha / √r.
    pub use_rslora: bool,
    /// PEFT's `modules_to_save`, LLaMA-Factory's `additional_target`.
    pub modules_to_save: Vec<String>,
    /// Other ranks, by name or regex; the first that matches wins.
    pub rank_pattern: IndexMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: IndexMap<String, f64>,
    /// Only these layers; empty: all.
    pub layers_to_transform: Vec<usize>,
    /// Names of the list of layers that `layers_to_transform` counts; empty: the first number.
    pub layers_pattern: Vec<String>,
    /// Which biases of the base train.
    pub bias: Bias,
    /// A bias on B.
    pub lora_bias: bool,
    /// The base stores weights as (in, out).
    pub fan_in_fan_out: bool,
    /// First values of A and B.
    pub init_lora_weights: InitLoraWeights,
    /// Merge all given adapters and start a new one, instead of training the last one on.
    pub create_new_adapter: bool,
}

/// PEFT's task types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are PEFT's")]
pub enum TaskType {
    CausalLm,
    SeqCls,
    TokenCls,
    QuestionAns,
    Seq2SeqLm,
}

/// A choice of modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// LLaMA-Factory's `all`: every linear layer but the output, by the last part of its name.
    All,
    /// PEFT's `all-linear`: every linear layer but the output, by its full path.
    AllLinear,
    /// Names that match the end of a path.
    Names(Vec<String>),
    /// A regex that matches the whole path.
    Pattern(String),
}

/// Parts of a model that sees, frozen or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freeze {
    /// The encoder of pictures.
    pub vision_tower: bool,
    /// What makes words of pictures.
    pub multi_modal_projector: bool,
    /// The language model.
    pub language_model: bool,
}

/// Which biases of the base are trained and saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// All.
    All,
    /// Those of layers with adapters.
    LoraOnly,
}

/// First values of A and B, PEFT's `init_lora_weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitLoraWeights {
    /// `true`: A uniform (Kaiming), B zero.
    Kaiming,
    /// `gaussian`: A normal with deviation 1/r, B zero.
    Gaussian,
    /// `false`: A and B random; the adapter changes the model from the start.
    Random,
}

/// Rows and tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// Where the descriptions of datasets are.
    pub dataset_dir: DatasetDir,
    /// Where the paths of pictures begin; `None`: in the folder of the descriptions.
    pub media_dir: Option<PathBuf>,
    /// Fewest pixels with which a picture comes to the model's own preparation.
    pub image_min_pixels: Option<usize>,
    /// Most pixels.
    pub image_max_pixels: Option<usize>,
    /// Names of the datasets to train on, in their order.
    pub dataset: Vec<String>,
    /// Names of the datasets to evaluate on; never together with `val_size`.
    pub eval_dataset: Vec<String>,
    /// Rows split off for evaluation.
    pub val_size: Option<ValSize>,
    /// Only the first rows of each dataset.
    pub max_samples: Option<usize>,
    /// How messages become tokens.
    pub template: TemplatePlan,
    /// As written: most tokens of a sample, or all tokens of a packed row.
    pub cutoff_len: usize,
    /// Most tokens of one sample: `cutoff_len`, or one less if samples are packed, as in
    /// LLaMA-Factory.
    pub sample_len: usize,
    /// How samples share a row.
    pub packing: Packing,
    /// Rows that are packed together.
    pub preprocessing_batch_size: usize,
    /// Tokens that two windows of a long document share (question answering).
    pub doc_stride: usize,
    /// Loss on prompts too.
    pub train_on_prompt: bool,
    /// Loss on the last turn only.
    pub mask_history: bool,
    /// Padding carries no loss (label -100).
    pub ignore_pad_token_for_loss: bool,
    /// Special tokens in the text are plain text.
    pub split_special_tokens: bool,
    /// Leave out rows that can't be used, instead of stopping.
    pub skip_bad_rows: bool,
}

/// How messages become tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplatePlan {
    /// Name of a template; `None`: the model's own chat_template.
    pub template: Option<String>,
    /// System text of rows without one; `None`: the template's.
    pub default_system: Option<String>,
    /// Style of tool calls; `None`: the template's.
    pub tool_format: Option<String>,
    /// `Some(false)` removes thoughts; an absent thought becomes an empty one, which is trained
    /// with `Some(true)` and part of the prompt otherwise.
    pub enable_thinking: Option<bool>,
    /// Keep the thoughts of earlier turns.
    pub preserve_thinking: bool,
}

/// Where dataset_info.json is.
#[derive(Debug, Clone, PartialEq)]
pub enum DatasetDir {
    /// In this folder.
    Folder(PathBuf),
    /// In the recipe itself: its content, an object.
    Inline(serde_json::Map<String, serde_json::Value>),
}

/// Rows split off for evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValSize {
    /// A share of the rows, above 0 and below 1.
    Share(f64),
    /// So many rows.
    Rows(usize),
}

/// How samples share a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Each sample has its own, padded to the batch's longest.
    Off,
    /// `packing`: samples of a row see each other.
    Plain,
    /// `neat_packing`: they don't.
    Neat,
}

/// The steps of training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainPlan {
    /// Whether there are any.
    pub do_train: bool,
    /// How long.
    pub duration: Duration,
    /// Rows of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Leave out a last short batch.
    pub dataloader_drop_last: bool,
    /// Draw a new order of the rows for each epoch.
    pub shuffle: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub lr_scheduler: LrScheduler,
    /// Its beginning.
    pub warmup: Warmup,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Largest norm of the gradient; `None`: no clipping.
    pub max_grad_norm: Option<f64>,
    /// Recompute each block in the backward pass.
    pub gradient_checkpointing: bool,
    /// Seed of everything random but the order of rows.
    pub seed: u64,
    /// Seed of the order of rows.
    pub data_seed: u64,
    /// Where the run begins.
    pub resume: Resume,
}

/// How long a run takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Duration {
    /// Passes over the data; fractions are allowed.
    Epochs(f64),
    /// Steps.
    Steps(u64),
}

/// AdamW as in torch: decay is decoupled, and biases and norms have none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Epsilon.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// At the newest checkpoint of `output_dir`, or at the start if there is none.
    NewestIfAny,
    /// At the newest checkpoint of `output_dir`; it is an error if there is none.
    Newest,
    /// At this checkpoint.
    From(PathBuf),
    /// At the start.
    Never,
}

/// Evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvalPlan {
    /// Evaluate at the end.
    pub do_eval: bool,
    /// And on the way.
    pub eval_strategy: Cadence,
    /// Rows of an evaluation batch.
    pub per_device_eval_batch_size: usize,
}

/// How often something happens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cadence {
    /// Never.
    Never,
    /// At the end of each epoch.
    Epoch,
    /// Each time so many steps are done.
    Every(Interval),
}

/// A number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// So many.
    Steps(u64),
    /// A share of the run, above 0 and below 1.
    Share(f64),
}

impl Interval {
    /// The steps of this interval in a run of `total` steps: a share is rounded up, as in
    /// transformers, and at least one.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => ((share * total as f64).ceil() as u64).max(1),
        }
    }
}

/// Files and curves.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputPlan {
    /// Folder of the run.
    pub output_dir: PathBuf,
    /// Start over in it instead of resuming.
    pub overwrite_output_dir: bool,
    /// When to log.
    pub logging: Cadence,
    /// Log step 1 too.
    pub logging_first_step: bool,
    /// When to write checkpoints.
    pub save: Cadence,
    /// Keep only the newest checkpoints.
    pub save_total_limit: Option<usize>,
    /// Checkpoints without what resuming needs.
    pub save_only_model: bool,
    /// Draw the loss curves.
    pub plot_loss: bool,
    /// Write TensorBoard event files.
    pub tensorboard: bool,
}

/// How answers are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GeneratePlan {
    /// Draw the next token; otherwise take the likeliest. False if `temperature` is 0.
    pub do_sample: bool,
    /// Above 0 if `do_sample`.
    pub temperature: f64,
    /// Draw from the likeliest tokens with this sum; 1: from all.
    pub top_p: f64,
    /// Draw from so many likeliest tokens; 0: from all.
    pub top_k: usize,
    /// Above 1: avoid tokens that are already there.
    pub repetition_penalty: f64,
    /// How long an answer may become.
    pub limit: GenerationLimit,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

/// How long an answer may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationLimit {
    /// So many tokens.
    NewTokens(usize),
    /// So many tokens together with the prompt.
    TotalTokens(usize),
}
