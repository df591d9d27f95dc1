//! The tasks and the adapter methods that PEFT 0.21.2 knows, under the names of its files.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an adapter is trained for, the `task_type` of adapter_config.json.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaskType {
    /// Classification of whole texts.
    #[serde(rename = "SEQ_CLS")]
    SeqCls,
    /// Encoder and decoder language models.
    #[serde(rename = "SEQ_2_SEQ_LM")]
    Seq2SeqLm,
    /// Decoder language models.
    #[serde(rename = "CAUSAL_LM")]
    CausalLm,
    /// Classification of single tokens.
    #[serde(rename = "TOKEN_CLS")]
    TokenCls,
    /// Extractive question answering.
    #[serde(rename = "QUESTION_ANS")]
    QuestionAns,
    /// Hidden states as features or embeddings.
    #[serde(rename = "FEATURE_EXTRACTION")]
    FeatureExtraction,
}

impl TaskType {
    /// All tasks, in PEFT's order.
    pub const ALL: [Self; 6] = [
        Self::SeqCls,
        Self::Seq2SeqLm,
        Self::CausalLm,
        Self::TokenCls,
        Self::QuestionAns,
        Self::FeatureExtraction,
    ];

    /// The name in adapter_config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::SeqCls => "SEQ_CLS",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::CausalLm => "CAUSAL_LM",
            Self::TokenCls => "TOKEN_CLS",
            Self::QuestionAns => "QUESTION_ANS",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
        }
    }

    /// The task of that name, `None` if PEFT has none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// The module names that PEFT appends to `modules_to_save` for this task.
    pub fn head_names(self) -> &'static [&'static str] {
        match self {
            Self::SeqCls | Self::TokenCls => &["classifier", "score"],
            Self::QuestionAns => &["qa_outputs"],
            Self::Seq2SeqLm | Self::CausalLm | Self::FeatureExtraction => &[],
        }
    }
}

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An adapter method, the `peft_type` of adapter_config.json. PEFT has 45 of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeftType(&'static str);

impl PeftType {
    /// Low-rank adaptation, the method that lowrank implements.
    pub const LORA: Self = Self("LORA");

    /// The method of that name, `None` if PEFT 0.21.2 has none.
    pub fn from_name(name: &str) -> Option<Self> {
        PEFT_TYPES.iter().find(|known| **known == name).map(|known| Self(known))
    }

    /// The name in adapter_config.json.
    pub fn name(self) -> &'static str {
        self.0
    }

    /// All methods, in PEFT's order.
    pub fn all() -> impl Iterator<Item = Self> {
        PEFT_TYPES.iter().map(|name| Self(name))
    }
}

impl fmt::Display for PeftType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[rustfmt::skip]
const PEFT_TYPES: [&str; 45] = [
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "LORA", "ADALORA",
    "ADAMSS", "BOFT", "ADAPTION_PROMPT", "IA3", "BEFT", "LILY", "LOHA", "LOKR", "OFT", "POLY",
    "LN_TUNING", "VERA", "FROD", "PVERA", "FOURIERFT", "GLORA", "XLORA", "HRA", "VBLORA",
    "UNILORA", "CPT", "MISS", "RANDLORA", "ROAD", "TRAINABLE_TOKENS", "HIRA", "SHIRA", "C3A",
    "WAVEFT", "OSF", "DELORA", "GRALORA", "CARTRIDGE", "TINYLORA", "PSOFT", "PEANUT", "SHADOW",
    "SUPERTUNING", "DEFT",
];
