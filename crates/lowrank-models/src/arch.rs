//! The registry: one line for each architecture, sorted by `model_type`.

use std::{borrow::Cow, sync::Arc};

use crate::{Builder, Config, Error, Head, Network, Openness, Result, Task};

mod bart;
mod bert;
mod blip_2;
mod bloom;
mod chatglm;
mod codegen;
mod deberta;
mod deberta_v2;
mod deepseek_v3;
mod electra;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3_text;
mod glm;
mod glm4;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gptj;
mod layoutlm;
mod llama;
mod mistral;
mod mixtral;
mod mpt;
mod mt5;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod stablelm;
mod t5;
mod xlm_roberta;

/// All architectures.
pub const ARCHITECTURES: &[Architecture] = &[
    bart::ENTRY,
    bert::ENTRY,
    blip_2::ENTRY,
    bloom::ENTRY,
    chatglm::ENTRY,
    codegen::ENTRY,
    deberta::ENTRY,
    deberta_v2::ENTRY,
    deepseek_v3::ENTRY,
    electra::ENTRY,
    falcon::ENTRY,
    gemma::ENTRY,
    gemma2::ENTRY,
    gemma3_text::ENTRY,
    glm::ENTRY,
    glm4::ENTRY,
    gpt2::ENTRY,
    gpt_bigcode::ENTRY,
    gpt_neo::ENTRY,
    gpt_neox::ENTRY,
    gptj::ENTRY,
    layoutlm::ENTRY,
    llama::ENTRY,
    mistral::ENTRY,
    mixtral::ENTRY,
    mpt::ENTRY,
    mt5::ENTRY,
    opt::ENTRY,
    phi::ENTRY,
    phi3::ENTRY,
    qwen2::ENTRY,
    qwen2_moe::ENTRY,
    qwen3::ENTRY,
    qwen3_moe::ENTRY,
    roberta::ENTRY,
    stablelm::ENTRY,
    t5::ENTRY,
    xlm_roberta::ENTRY,
];

/// How a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Reads from left to right and generates.
    Decoder,
    /// Reads in both directions.
    Encoder,
    /// Reads a source in both directions and generates a target.
    EncoderDecoder,
}

/// What a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modality {
    /// Text.
    Language,
    /// Images.
    Image,
    /// Text together with images or the places of words on a page.
    Multimodal,
}

/// What stands beside the words of a row, for models that look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// A picture.
    Picture,
    /// The box of each word on its page.
    Boxes,
}

/// Another `model_type` of a network that the registry has.
#[derive(Clone, Copy, Debug)]
pub struct OtherType {
    /// That `model_type`.
    pub model_type: &'static str,
    /// Whether transformers reads it without code of the model's own. Where it doesn't, what is
    /// saved is under the registry's name.
    pub known: bool,
    /// What the names of its classes begin with, where not as the registry's.
    pub class: Option<&'static str>,
    /// What its configs call a field, and what the field is called here.
    pub fields: &'static [(&'static str, &'static str)],
    /// Switches that its configs mean where they don't say.
    pub meant: &'static [(&'static str, bool)],
}

impl OtherType {
    /// One that the authors' own code went by.
    const REMOTE: Self =
        Self { model_type: "", known: false, class: None, fields: &[], meant: &[] };
}

/// What building an architecture yields: network and head.
pub type Parts = (Arc<dyn Network>, Head);

/// One architecture, as Hugging Face's `model_type` names it. An entry of the registry says what
/// is its own and takes the rest from `Architecture::DECODER` or one of its likes.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Other names that configs have for it there.
    pub other_types: &'static [OtherType],
    /// How it reads.
    pub family: Family,
    /// What it reads.
    pub modality: Modality,
    /// What it reads besides words.
    pub beside: Beside,
    /// Where its weights are.
    pub openness: Openness,
    /// The tasks it has heads for; the first is what it is trained for by default.
    pub tasks: &'static [Task],
    /// What the names of transformers' classes begin with.
    pub class: &'static str,
    /// What the name of the class for [`Task::CausalLm`] ends with.
    pub causal_lm: &'static str,
    /// What that name begins with, if with something else than `class`.
    pub causal_class: Option<&'static str>,
    /// Names under which heads hold the base model; the first is transformers'
    /// `base_model_prefix`.
    pub prefixes: &'static [&'static str],
    /// The name under which the head for [`Task::QuestionAns`] holds it, if another one.
    pub question_prefix: Option<&'static str>,
    /// Modules that files know by another name, which is given second.
    pub file_names: &'static [(&'static str, &'static str)],
    /// `pad_token_id` where a config lacks the field: what transformers' class of it has.
    pub pad_token_id: Option<u32>,
    /// `decoder_start_token_id`, likewise.
    pub decoder_start_token_id: Option<u32>,
    /// `forced_eos_token_id`, likewise.
    pub forced_eos_token_id: Option<u32>,
    /// Whether transformers looks for every table in the files once the config says that the output
    /// layer has one of its own.
    pub unties_all: bool,
    /// The paper.
    pub paper: &'static str,
    /// Builds network and head at the model's root.
    pub build: fn(&Config, Task, &Builder) -> Result<Parts>,
}

impl Architecture {
    /// A decoder with transformers' generic heads.
    const DECODER: Self = Self {
        model_type: "",
        other_types: &[],
        family: Family::Decoder,
        modality: Modality::Language,
        beside: Beside::Nothing,
        openness: Openness::Weights,
        tasks: &[
            Task::CausalLm,
            Task::SeqCls,
            Task::TokenCls,
            Task::QuestionAns,
            Task::FeatureExtraction,
        ],
        class: "",
        causal_lm: "ForCausalLM",
        causal_class: None,
        prefixes: &["model"],
        question_prefix: None,
        file_names: &[],
        pad_token_id: None,
        decoder_start_token_id: None,
        forced_eos_token_id: None,
        unties_all: false,
        paper: "",
        build: |c, _, _| Err(c.not_implemented("model_type", "an entry that builds something")),
    };

    /// An encoder with BERT's heads.
    const ENCODER: Self = Self {
        family: Family::Encoder,
        tasks: &[
            Task::MaskedLm,
            Task::SeqCls,
            Task::TokenCls,
            Task::QuestionAns,
            Task::FeatureExtraction,
        ],
        pad_token_id: Some(0),
        ..Self::DECODER
    };

    /// An encoder whose config may ask it to read from left to right alone (`is_decoder`), as a
    /// decoder with a language model's head.
    const ENCODER_OR_DECODER: Self = Self {
        tasks: &[
            Task::MaskedLm,
            Task::CausalLm,
            Task::SeqCls,
            Task::TokenCls,
            Task::QuestionAns,
            Task::FeatureExtraction,
        ],
        ..Self::ENCODER
    };

    /// An encoder with a decoder.
    const ENCODER_DECODER: Self = Self {
        family: Family::EncoderDecoder,
        tasks: &[Task::Seq2SeqLm, Task::FeatureExtraction],
        pad_token_id: Some(0),
        ..Self::DECODER
    };

    /// How a model of this config works: as its language model, where it has one within, or as a
    /// decoder, where it says so.
    ///
    /// # Errors
    /// When the config of a language model isn't one, or a field is wrong.
    pub fn family_of(&self, config: &Config) -> Result<Family> {
        if let Some(text) = config.object("text_config")? {
            return Self::of(&text)?.family_of(&text);
        }
        let pair = self.family == Family::EncoderDecoder;
        let is_decoder = self.tasks.contains(&Task::CausalLm)
            && config.switch_or("is_decoder", false)?
            && !config.switch_or("is_encoder_decoder", pair)?;
        Ok(if is_decoder { Family::Decoder } else { self.family })
    }

    /// How a model of this config works with the head for `task`.
    ///
    /// # Errors
    /// As [`Architecture::family_of`].
    pub fn family_for(&self, task: Task, config: &Config) -> Result<Family> {
        match (self.family, task) {
            (_, Task::CausalLm) => Ok(Family::Decoder),
            // Its other heads read both halves, whatever the config says.
            (Family::EncoderDecoder, _) => Ok(Family::EncoderDecoder),
            _ => self.family_of(config),
        }
    }

    /// The task that a model of this config is trained for by default.
    ///
    /// # Errors
    /// As [`Architecture::family_of`].
    pub fn default_task(&self, config: &Config) -> Result<Task> {
        let first = self.tasks.first().copied().unwrap_or(Task::FeatureExtraction);
        Ok(match (first, self.family_of(config)?) {
            (Task::CausalLm, Family::EncoderDecoder) => Task::Seq2SeqLm,
            (_, Family::Decoder) => Task::CausalLm,
            _ => first,
        })
    }

    /// Where the base model lies under the head for `task`: the bare one lies at the root.
    pub fn base_for(&self, task: Task) -> &'static str {
        match task {
            Task::FeatureExtraction => "",
            Task::QuestionAns if let Some(prefix) = self.question_prefix => prefix,
            _ => self.prefixes.first().copied().unwrap_or_default(),
        }
    }

    /// The name under which files hold the tensor `name`.
    pub fn file_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let other = self.file_names.iter().find_map(|(module, file)| {
            let rest = name.strip_prefix(module).filter(|rest| rest.starts_with('.'))?;
            Some(format!("{file}{rest}"))
        });
        other.map_or(Cow::Borrowed(name), Cow::Owned)
    }

    /// transformers' class for `task`, if there is a head for it.
    pub fn class_for(&self, task: Task) -> Option<String> {
        let class = self.causal_class.filter(|_| task == Task::CausalLm).unwrap_or(self.class);
        self.tasks.contains(&task).then(|| format!("{class}{}", self.class_end(task)))
    }

    /// Whether `class` is the one for `task`, under transformers' name or the authors' own.
    pub fn is_class_for(&self, task: Task, class: &str) -> bool {
        let end = self.class_end(task);
        let is_authors = |authors: &str| class.strip_prefix(authors) == Some(end);
        self.class_for(task).is_some_and(|own| {
            own == class || self.other_types.iter().filter_map(|o| o.class).any(is_authors)
        })
    }

    /// What the names of the classes for `task` end with.
    fn class_end(&self, task: Task) -> &'static str {
        match task {
            Task::CausalLm => self.causal_lm,
            Task::Seq2SeqLm => "ForConditionalGeneration",
            Task::MaskedLm => "ForMaskedLM",
            Task::SeqCls => "ForSequenceClassification",
            Task::TokenCls => "ForTokenClassification",
            Task::QuestionAns => "ForQuestionAnswering",
            Task::FeatureExtraction => "Model",
        }
    }

    /// The architecture that a config names.
    ///
    /// # Errors
    /// When `model_type` is missing or unknown.
    pub fn of(config: &Config) -> Result<&'static Self> {
        let Some(found) = config.word("model_type")? else {
            return Err(config.wrong("model_type", "the name of an architecture"));
        };
        let is_of = |a: &&Self| a.model_type == found || a.other_type(found).is_some();
        if let Some(known) = ARCHITECTURES.iter().find(is_of) {
            return Ok(known);
        }
        let likeness = |a: &&Architecture| (strsim::jaro_winkler(a.model_type, found) * 1e6) as u64;
        let nearest = ARCHITECTURES.iter().max_by_key(likeness);
        let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.model_type).collect();
        Err(Error::UnknownModelType {
            file: config.file().to_owned(),
            found: found.to_owned(),
            nearest: nearest.filter(|a| likeness(a) > 800_000).map(|a| a.model_type.to_owned()),
            known: known.join(", "),
        })
    }

    fn other_type(&self, name: &str) -> Option<&'static OtherType> {
        self.other_types.iter().find(|other| other.model_type == name)
    }

    /// Rewrites a config of another `model_type` of this network as one of its own.
    ///
    /// # Errors
    /// When `model_type` isn't a word.
    pub fn translate(&self, config: &mut Config) -> Result<()> {
        let found = config.word("model_type")?.and_then(|name| self.other_type(name));
        let Some(other) = found.filter(|other| !other.known) else { return Ok(()) };
        for (name, own) in other.fields {
            config.rename(name, own);
        }
        for (name, meant) in other.meant {
            if config.get(name).is_none() {
                config.set(name, (*meant).into());
            }
        }
        config.set("model_type", self.model_type.into());
        config.remove("auto_map");
        Ok(())
    }

    /// A config with the token ids that it means where it lacks them.
    pub fn with_token_ids(&self, config: &Config) -> Config {
        config.with_defaults([
            ("pad_token_id", self.pad_token_id.into()),
            ("decoder_start_token_id", self.decoder_start_token_id.into()),
        ])
    }

    /// An error unless there is a head for `task`.
    ///
    /// # Errors
    /// [`Error::NoHead`].
    pub fn check_task(&self, task: Task) -> Result<()> {
        if self.tasks.contains(&task) {
            return Ok(());
        }
        let known: Vec<&str> = self.tasks.iter().map(|t| t.name()).collect();
        let (model_type, task) = (self.model_type.to_owned(), task.name().to_owned());
        Err(Error::NoHead { model_type, task, known: known.join(", ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_sorted_and_without_repeats() {
        let names: Vec<_> = ARCHITECTURES.iter().map(|a| a.model_type).collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn a_class_has_transformers_name_or_the_authors() {
        let falcon = &falcon::ENTRY;
        for class in ["RWForSequenceClassification", "FalconForSequenceClassification"] {
            let tasks = falcon.tasks.iter().filter(|task| falcon.is_class_for(**task, class));
            assert_eq!(tasks.collect::<Vec<_>>(), [&Task::SeqCls], "{class}");
        }
        assert!(falcon.is_class_for(Task::CausalLm, "RWForCausalLM"));
        assert!(falcon.is_class_for(Task::FeatureExtraction, "RWModel"));
        assert!(!falcon.is_class_for(Task::MaskedLm, "RWForMaskedLM"), "there is no such head");
        assert!(stablelm::ENTRY.is_class_for(Task::CausalLm, "StableLMEpochForCausalLM"));
    }
}
