//! All settings of a plan that influence the trained weights, by name: a run is only resumed
//! with the settings it began with.
//!
//! Each plan struct is taken apart completely, so that a new field must be decided on here.
//! Left out is what can't change the weights: where files go, what is logged, evaluated and
//! saved, the device, recomputation, how answers are drawn.

use super::plan::{
    AdamW, Bias, DataPlan, DatasetDir, Duration, Freeze, InitLoraWeights, LoraPlan, MethodPlan,
    ModelPlan, Packing, Plan, RopeScaling, Stage, Target, TaskType, TemplatePlan, TrainPlan,
    ValSize, Warmup, WeightDtype,
};
use indexmap::IndexMap;
use std::path::PathBuf;

/// A setting that differs between two runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The recipe's key.
    pub key: String,
    /// Its value in the run that began.
    pub before: String,
    /// Its value now.
    pub now: String,
}

impl Plan {
    /// Key to value of everything that influences the trained weights, in a fixed order.
    pub fn settings(&self) -> IndexMap<String, String> {
        let mut settings = Settings(IndexMap::new());
        if let Stage::Pt { mlm_probability } = self.stage {
            settings.put("stage", "pt");
            settings.put("mlm_probability", mlm_probability);
        }
        settings.model(&self.model);
        let MethodPlan::Lora(lora) = &self.method;
        settings.lora(lora);
        settings.data(&self.data);
        settings.template(&self.data.template);
        settings.train(&self.train);
        settings.0
    }

    /// A short name of [`Plan::settings`]: equal if and only if they are.
    pub fn settings_fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for part in self.settings().iter().flat_map(|(key, value)| [key, value]) {
            // Lengths in front keep two texts from running into each other.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// What differs from the settings that a run began with, in this plan's order.
    pub fn settings_changed_from(&self, before: &IndexMap<String, String>) -> Vec<SettingChange> {
        let unset = "unset".to_owned();
        let now = self.settings();
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        let keys = now.keys().chain(gone);
        let change = |key: &String| {
            let value = |map: &IndexMap<String, String>| map.get(key).unwrap_or(&unset).clone();
            SettingChange { key: key.clone(), before: value(before), now: value(&now) }
        };
        keys.map(change).filter(|change| change.before != change.now).collect()
    }
}

struct Settings(IndexMap<String, String>);

impl Settings {
    fn put(&mut self, key: &str, value: impl ToString) {
        self.0.insert(key.to_owned(), value.to_string());
    }

    fn put_opt(&mut self, key: &str, value: Option<impl ToString>) {
        self.put(key, value.map_or_else(|| "null".to_owned(), |value| value.to_string()));
    }

    /// A setting that came later than others: its default isn't written, so that runs from before
    /// can be resumed.
    fn put_other<T: ToString + PartialEq>(&mut self, key: &str, value: T, default: T) {
        if value != default {
            self.put(key, value);
        }
    }

    fn model(&mut self, plan: &ModelPlan) {
        let ModelPlan {
            model_name_or_path,
            adapters,
            weights,
            rope_scaling,
            moe_aux_loss_coef,
            device: _,
        } = plan;
        self.put("model_name_or_path", model_name_or_path.display());
        self.put("adapter_name_or_path", paths(adapters));
        self.put("dtype", dtype_name(*weights));
        self.put_opt("rope_scaling", rope_scaling.map(rope_name));
        // Unset it isn't written, so that runs from before there was this key go on.
        moe_aux_loss_coef.iter().for_each(|factor| self.put("moe_aux_loss_coef", factor));
    }

    fn lora(&mut self, plan: &LoraPlan) {
        let LoraPlan {
            task_type,
            lora_rank,
            lora_alpha,
            lora_dropout,
            target,
            target_parameters,
            freeze: Freeze { vision_tower, multi_modal_projector, language_model },
            exclude_modules,
            use_rslora,
            modules_to_save,
            rank_pattern,
            alpha_pattern,
            layers_to_transform,
            layers_pattern,
            bias,
            lora_bias,
            fan_in_fan_out,
            init_lora_weights,
            create_new_adapter,
        } = plan;
        self.put("task_type", task_type.name());
        self.put("lora_rank", lora_rank);
        self.put("lora_alpha", lora_alpha);
        self.put("lora_dropout", lora_dropout);
        self.put("lora_target", target_name(target));
        self.put("target_parameters", target_parameters.join(","));
        self.put_other("freeze_vision_tower", *vision_tower, true);
        self.put_other("freeze_multi_modal_projector", *multi_modal_projector, true);
        self.put_other("freeze_language_model", *language_model, false);
        self.put_opt("exclude_modules", exclude_modules.as_ref().map(target_name));
        self.put("use_rslora", use_rslora);
        self.put("additional_target", modules_to_save.join(","));
        self.put("rank_pattern", pairs(rank_pattern));
        self.put("alpha_pattern", pairs(alpha_pattern));
        self.put("layers_to_transform", numbers(layers_to_transform));
        self.put("layers_pattern", layers_pattern.join(","));
        self.put("bias", bias_name(*bias));
        self.put("lora_bias", lora_bias);
        self.put("fan_in_fan_out", fan_in_fan_out);
        self.put("init_lora_weights", init_name(*init_lora_weights));
        self.put("create_new_adapter", create_new_adapter);
    }

    fn data(&mut self, plan: &DataPlan) {
        let DataPlan {
            dataset_dir,
            media_dir: _, // the hash of the rows has the pictures in it
            image_min_pixels,
            image_max_pixels,
            dataset,
            eval_dataset: _,
            val_size,
            max_samples,
            template: _,
            cutoff_len,
            sample_len: _,
            packing,
            preprocessing_batch_size,
            doc_stride,
            train_on_prompt,
            mask_history,
            ignore_pad_token_for_loss,
            split_special_tokens,
            skip_bad_rows,
        } = plan;
        self.put("dataset_dir", directory(dataset_dir));
        self.put_other("image_min_pixels", image_min_pixels.unwrap_or(0), 0);
        self.put_other("image_max_pixels", image_max_pixels.unwrap_or(0), 0);
        self.put("dataset", dataset.join(","));
        self.put("val_size", val_size_name(*val_size));
        self.put_opt("max_samples", *max_samples);
        self.put("cutoff_len", cutoff_len);
        self.put("packing", *packing != Packing::Off);
        self.put("neat_packing", *packing == Packing::Neat);
        self.put("preprocessing_batch_size", preprocessing_batch_size);
        self.put("doc_stride", doc_stride);
        self.put("train_on_prompt", train_on_prompt);
        self.put("mask_history", mask_history);
        self.put("ignore_pad_token_for_loss", ignore_pad_token_for_loss);
        self.put("split_special_tokens", split_special_tokens);
        self.put("skip_bad_rows", skip_bad_rows);
    }

    fn template(&mut self, plan: &TemplatePlan) {
        let TemplatePlan {
            template,
            default_system,
            tool_format,
            enable_thinking,
            preserve_thinking,
        } = plan;
        self.put_opt("template", template.as_ref());
        self.put_opt("default_system", default_system.as_ref());
        self.put_opt("tool_format", tool_format.as_ref());
        self.put_opt("enable_thinking", *enable_thinking);
        self.put("preserve_thinking", preserve_thinking);
    }

    fn train(&mut self, plan: &TrainPlan) {
        let TrainPlan {
            do_train: _,
            duration,
            per_device_train_batch_size,
            gradient_accumulation_steps,
            dataloader_drop_last,
            shuffle,
            learning_rate,
            lr_scheduler,
            warmup,
            optimizer: AdamW { beta1, beta2, epsilon, weight_decay },
            max_grad_norm,
            gradient_checkpointing: _,
            seed,
            data_seed,
            resume: _,
        } = plan;
        match duration {
            Duration::Epochs(epochs) => self.put("num_train_epochs", epochs),
            Duration::Steps(steps) => self.put("max_steps", steps),
        }
        self.put("per_device_train_batch_size", per_device_train_batch_size);
        self.put("gradient_accumulation_steps", gradient_accumulation_steps);
        self.put("dataloader_drop_last", dataloader_drop_last);
        self.put("disable_shuffling", !shuffle);
        self.put("learning_rate", learning_rate);
        self.put("lr_scheduler_type", lr_scheduler);
        match warmup {
            Warmup::Steps(steps) => self.put("warmup_steps", steps),
            Warmup::Share(share) => self.put("warmup_ratio", share),
        }
        self.put("adam_beta1", beta1);
        self.put("adam_beta2", beta2);
        self.put("adam_epsilon", epsilon);
        self.put("weight_decay", weight_decay);
        self.put("max_grad_norm", max_grad_norm.unwrap_or(0.0));
        self.put("seed", seed);
        self.put("data_seed", data_seed);
    }
}

impl TaskType {
    /// PEFT's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::SeqCls => "SEQ_CLS",
            Self::TokenCls => "TOKEN_CLS",
            Self::QuestionAns => "QUESTION_ANS",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
        }
    }
}

fn dtype_name(dtype: WeightDtype) -> &'static str {
    match dtype {
        WeightDtype::Checkpoint => "auto",
        WeightDtype::F32 => "float32",
        WeightDtype::Bf16 => "bfloat16",
    }
}

fn rope_name(scaling: RopeScaling) -> &'static str {
    match scaling {
        RopeScaling::Linear => "linear",
        RopeScaling::Dynamic => "dynamic",
        RopeScaling::Yarn => "yarn",
        RopeScaling::Llama3 => "llama3",
    }
}

fn bias_name(bias: Bias) -> &'static str {
    match bias {
        Bias::None => "none",
        Bias::All => "all",
        Bias::LoraOnly => "lora_only",
    }
}

fn init_name(init: InitLoraWeights) -> &'static str {
    match init {
        InitLoraWeights::Kaiming => "true",
        InitLoraWeights::Gaussian => "gaussian",
        InitLoraWeights::Random => "false",
    }
}

fn target_name(target: &Target) -> String {
    match target {
        Target::All => "all".to_owned(),
        Target::AllLinear => "all-linear".to_owned(),
        Target::Names(names) => names.join(","),
        Target::Pattern(pattern) => pattern.clone(),
    }
}

fn val_size_name(size: Option<ValSize>) -> String {
    match size {
        None => "0".to_owned(),
        Some(ValSize::Share(share)) => share.to_string(),
        Some(ValSize::Rows(rows)) => rows.to_string(),
    }
}

fn directory(dir: &DatasetDir) -> String {
    match dir {
        DatasetDir::Folder(folder) => folder.display().to_string(),
        DatasetDir::Inline(map) => serde_json::Value::Object(map.clone()).to_string(),
    }
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",")
}

fn numbers(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn pairs<T: ToString>(map: &IndexMap<String, T>) -> String {
    let pair = |(key, value): (&String, &T)| format!("{key}: {}", value.to_string());
    format!("{{{}}}", map.iter().map(pair).collect::<Vec<_>>().join(", "))
}
