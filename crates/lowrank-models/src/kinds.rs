//! The three ways in which the field classifies large models: by the data they read, by the way
//! they work, and by openness. The registry says what can't be derived from an entry's heads.

use crate::{Architecture, Family, Modality};

/// The way in which a model works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Working {
    /// It makes new data: text, token by token.
    Generative,
    /// It tells data apart: classes, tags, spans, similarity.
    Discriminative,
    /// It learns by acting, from rewards.
    Reinforcement,
}

/// Where the weights of a model are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Openness {
    /// Here, in a folder.
    Weights,
    /// With a provider; the model answers online, behind an API.
    Online,
}

impl Family {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Decoder => "decoder",
            Self::Encoder => "encoder",
            Self::EncoderDecoder => "encoder-decoder",
        }
    }
}

impl Modality {
    /// All, in the order in which they are printed.
    pub const ALL: [Self; 3] = [Self::Language, Self::Image, Self::Multimodal];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Language => "language",
            Self::Image => "image",
            Self::Multimodal => "multimodal",
        }
    }
}

impl Working {
    /// All, in the order in which they are printed.
    pub const ALL: [Self; 3] = [Self::Generative, Self::Discriminative, Self::Reinforcement];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Generative => "generative",
            Self::Discriminative => "discriminative",
            Self::Reinforcement => "reinforcement learning",
        }
    }
}

impl Openness {
    /// All, in the order in which they are printed.
    pub const ALL: [Self; 2] = [Self::Weights, Self::Online];

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights here",
            Self::Online => "online behind an API",
        }
    }
}

impl Architecture {
    /// The way in which it works. No architecture is one of reinforcement learning: there an
    /// objective makes a generative model the policy.
    pub fn working(&self) -> Working {
        match self.family {
            Family::Decoder | Family::EncoderDecoder => Working::Generative,
            Family::Encoder => Working::Discriminative,
        }
    }
}
