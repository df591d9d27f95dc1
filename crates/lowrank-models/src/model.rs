//! A model folder, opened: network, head, modules and config.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device};
use lowrank_autograd::Value;
use lowrank_peft::{Modules, Pass};

use crate::{
    Architecture, Builder, Config, Context, Family, FreshInit, Head, Input, Network, Result, Task,
    WeightPlace, Weights,
};

/// What is asked of a folder that is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The head; by default the architecture's first.
    pub task: Option<Task>,
    /// Converts the weights when they are loaded; by default they stay mapped, in their dtype.
    pub dtype: Option<DType>,
    /// Classes of a classification head, by name; by default those of the config.
    pub labels: Option<Vec<String>>,
    /// `problem_type` of a sequence classification head.
    pub problem_type: Option<ProblemType>,
    /// Fields that replace those of `config.json`.
    pub overrides: Vec<(String, serde_json::Value)>,
    /// Where the model lies and runs; by default the processor's memory.
    pub device: Option<Device>,
    /// Seed of heads that start fresh.
    pub seed: u64,
    /// Of mapped weights, those behind the first so many bytes stay in memory only while they are
    /// read, which costs up to a tenth of the time of a training step; by default all stay.
    pub release_weights_above: Option<usize>,
}

/// transformers' `problem_type`: which loss a sequence classification head has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemType {
    /// Numbers: mean squared error.
    Regression,
    /// One class of several: cross-entropy.
    SingleLabel,
    /// Any number of classes: binary cross-entropy.
    MultiLabel,
}

impl ProblemType {
    const NAMES: [(Self, &'static str); 3] = [
        (Self::Regression, "regression"),
        (Self::SingleLabel, "single_label_classification"),
        (Self::MultiLabel, "multi_label_classification"),
    ];

    /// The name in `config.json`.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(own, _)| *own == self).map_or("", |(_, name)| name)
    }

    /// What a config says; `None` when it leaves that to the labels.
    ///
    /// # Errors
    /// When the name isn't one of transformers'.
    pub fn of(config: &Config) -> Result<Option<Self>> {
        let Some(name) = config.word("problem_type")? else { return Ok(None) };
        let found = Self::NAMES.iter().find(|(_, own)| *own == name).map(|(own, _)| *own);
        let must_be = "regression, single_label_classification or multi_label_classification";
        found.map(Some).ok_or_else(|| config.wrong("problem_type", must_be))
    }
}

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Where it came from.
    pub folder: PathBuf,
    /// `config.json`, as it is saved with a merged model.
    pub config: Config,
    /// Its entry in the registry.
    pub architecture: &'static Architecture,
    /// How it works.
    pub family: Family,
    /// The task of its head.
    pub task: Task,
    /// All modules, for adapters.
    pub modules: Modules,
    /// Tensors of the head that start fresh because the files lack them.
    pub fresh: Vec<String>,
    /// Tensors in the files that the model has no use for.
    pub unused: Vec<String>,
    network: Arc<dyn Network>,
    head: Head,
}

/// An error where the config lets the tokens of a decoder see those behind them, as transformers
/// does for any model (and as embedding models made of decoders have it).
fn check_direction(config: &Config, family: Family) -> Result<()> {
    let text = config.object("text_config")?;
    for config in [Some(config), text.as_ref()].into_iter().flatten() {
        if family != Family::Encoder && !config.switch_or("is_causal", true)? {
            return Err(config.not_implemented("is_causal", "true"));
        }
    }
    Ok(())
}

impl Model {
    /// Opens a Hugging Face folder.
    ///
    /// # Errors
    /// When the folder, its config or its weights aren't what they should be; the error names
    /// file and field or tensor.
    pub fn open(folder: &Path, options: &OpenOptions) -> Result<Self> {
        let path = folder.join("config.json");
        if !path.is_file() {
            let (path, missing) = (folder.to_owned(), "config.json");
            return Err(crate::Error::NotAModel { path, missing, hint: "" });
        }
        let mut config = Config::read(&path)?;
        for (key, value) in &options.overrides {
            config.set(key, value.clone());
        }
        let architecture = Architecture::of(&config)?;
        architecture.translate(&mut config)?;
        let task = options.task.map_or_else(|| architecture.default_task(&config), Ok)?;
        architecture.check_task(task)?;
        let family = architecture.family_for(task, &config)?;
        check_direction(&config, family)?;
        if (architecture.family, task) == (Family::EncoderDecoder, Task::CausalLm) {
            // As transformers' class of the decoder alone does.
            config.set("is_decoder", true.into());
            config.set("is_encoder_decoder", false.into());
        }
        set_labels(&mut config, options);
        let fresh = FreshInit {
            seed: options.seed,
            deviation: config.number_or("initializer_range", 0.02)?,
        };
        let weights = Weights::open(folder)?;
        if let Some(limit) = options.release_weights_above {
            weights.release_above(limit);
        }
        let builder = Builder::new(weights, architecture, task, fresh, place_of(options));
        let (network, head) =
            (architecture.build)(&architecture.with_token_ids(&config), task, &builder)?;
        let (built, unused) = builder.finish();
        Ok(Self {
            folder: folder.to_owned(),
            config,
            architecture,
            family,
            task,
            modules: built.modules,
            fresh: built.fresh,
            unused,
            network,
            head,
        })
    }

    /// The config of the language model: one within the model's own, or that itself.
    ///
    /// # Errors
    /// When `text_config` isn't an object.
    pub fn text_config(&self) -> Result<Config> {
        Ok(self.config.object("text_config")?.unwrap_or_else(|| self.config.clone()))
    }

    /// What an encoder-decoder's target begins with; `None` for other models.
    ///
    /// # Errors
    /// When the config has no such token.
    pub fn target_start(&self) -> Result<Option<u32>> {
        if self.family != Family::EncoderDecoder {
            return Ok(None);
        }
        let (config, field) = (self.text_config()?, "decoder_start_token_id");
        let config = Architecture::of(&config)?.with_token_ids(&config);
        let start = config
            .token_id(field)?
            .map_or_else(|| config.token_id("pad_token_id"), |t| Ok(Some(t)))?;
        start.map(Some).ok_or_else(|| config.wrong(field, "a token id"))
    }

    /// The network below the head.
    pub fn network(&self) -> &dyn Network {
        self.network.as_ref()
    }

    /// The head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Logits of an input: `[tokens, classes]` or `[sequences, classes]`, by the head. `rows`
    /// limits a token head to those tokens.
    ///
    /// # Errors
    /// When the input doesn't fit the model.
    pub fn logits(&self, input: &Input, rows: Option<&Arc<[usize]>>, pass: &Pass) -> Result<Value> {
        Ok(self.head.logits(&self.hidden(input, pass)?, input, rows, pass)?)
    }

    /// What the head reads of an input: `[tokens, hidden_size]`.
    ///
    /// # Errors
    /// When the input doesn't fit the model.
    pub fn hidden(&self, input: &Input, pass: &Pass) -> Result<Value> {
        Ok(self.network.forward(input, Context::default(), pass)?)
    }

    /// [`Model::hidden`], and what is added to the mean loss of tokens besides: a scalar.
    ///
    /// # Errors
    /// When the input doesn't fit the model.
    pub fn hidden_with_penalty(
        &self,
        input: &Input,
        pass: &Pass,
    ) -> Result<(Value, Option<Value>)> {
        Ok(self.network.forward_with_penalty(input, pass)?)
    }

    /// Logits of a target given a source, for encoder-decoders.
    ///
    /// # Errors
    /// When an input doesn't fit the model.
    pub fn target_logits(
        &self,
        (source, source_pass): (&Input, &Pass),
        (target, target_pass): (&Input, &Pass),
        rows: Option<&Arc<[usize]>>,
    ) -> Result<Value> {
        let hidden = self.target_hidden((source, source_pass), (target, target_pass))?;
        Ok(self.head.logits(&hidden, target, rows, target_pass)?)
    }

    /// What the head reads of a target given a source, for encoder-decoders.
    ///
    /// # Errors
    /// When an input doesn't fit the model.
    pub fn target_hidden(
        &self,
        (source, source_pass): (&Input, &Pass),
        (target, target_pass): (&Input, &Pass),
    ) -> Result<Value> {
        let encoded = self.network.encode(source, source_pass)?;
        let context = Context { cache: None, encoded: Some(&encoded) };
        Ok(self.network.forward(target, context, target_pass)?)
    }
}

fn place_of(options: &OpenOptions) -> WeightPlace {
    let device = options.device.clone().unwrap_or(Device::Cpu);
    WeightPlace { dtype: options.dtype, device }
}

/// Writes the asked-for labels and problem type into the config, so that they go where it goes.
fn set_labels(config: &mut Config, options: &OpenOptions) {
    if let Some(labels) = &options.labels {
        let by_id = labels.iter().enumerate().map(|(i, l)| (i.to_string(), l.as_str().into()));
        config.set("id2label", serde_json::Value::Object(by_id.collect()));
        let by_label = labels.iter().enumerate().map(|(i, l)| (l.clone(), i.into()));
        config.set("label2id", serde_json::Value::Object(by_label.collect()));
        config.remove("num_labels");
    }
    if let Some(problem_type) = options.problem_type {
        config.set("problem_type", problem_type.name().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoder_that_reads_both_ways_is_refused() -> Result<()> {
        for text in [r#"{"is_causal": false}"#, r#"{"text_config": {"is_causal": false}}"#] {
            let config = Config::parse("config.json".to_owned(), text)?;
            check_direction(&config, Family::Encoder)?;
            let message = check_direction(&config, Family::Decoder).expect_err(text).to_string();
            assert!(message.contains("is_causal` is `false`"), "{message}");
        }
        Ok(())
    }
}
