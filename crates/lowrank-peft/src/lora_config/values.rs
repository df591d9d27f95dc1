//! The types of [`LoraConfig`](super::LoraConfig)'s fields. Each keeps the spelling of the file
//! that it was read from, so that writing it gives the same bytes.

use std::fmt;

use serde::{Serialize, Serializer};

/// A JSON number that remembers whether it was written as an integer (`16`) or not (`16.0`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    /// Written without a point.
    Int(i64),
    /// Written with a point or an exponent.
    Float(f64),
}

impl Number {
    /// The value to compute with. Integers above 2^53 are rounded, as Python's division does.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Number {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
        }
    }
}

/// A field that PEFT accepts as one value or as a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// A list, possibly empty.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// The values, whichever way they were written.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// Which modules get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TargetModules {
    /// `null`: PEFT's table by `model_type`, see
    /// [`default_target_modules`](crate::default_targets::default_target_modules).
    #[default]
    Default,
    /// Names, each matching a module of that path or whose path ends with `.` and the name.
    List(Vec<String>),
    /// A Python regular expression that must match the whole path of a module.
    Pattern(String),
    /// `"all-linear"`: every linear layer but the output embeddings. Another capitalization,
    /// which means the same, is kept as [`Self::Pattern`].
    AllLinear,
}

impl TargetModules {
    /// The list of these names.
    pub fn names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::List(names.into_iter().map(Into::into).collect())
    }

    /// Whether all linear layers are meant, in any capitalization.
    pub fn is_all_linear(&self) -> bool {
        match self {
            Self::AllLinear => true,
            Self::Pattern(text) => text.to_lowercase() == ALL_LINEAR,
            Self::Default | Self::List(_) => false,
        }
    }
}

pub(super) const ALL_LINEAR: &str = "all-linear";

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_none(),
            Self::List(names) => names.serialize(serializer),
            Self::Pattern(text) => serializer.serialize_str(text),
            Self::AllLinear => serializer.serialize_str(ALL_LINEAR),
        }
    }
}

/// Modules that never get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ExcludeModules {
    /// Names, matched as in [`TargetModules::List`].
    List(Vec<String>),
    /// A Python regular expression that must match the whole path of a module.
    Pattern(String),
}

/// Which biases of the base model are trained and saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None of them.
    #[default]
    None,
    /// Every parameter whose name ends with `.bias`.
    All,
    /// The biases of adapted layers.
    LoraOnly,
}

/// How the adapter's weights start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum InitLoraWeights {
    /// `true`: A uniform as PyTorch's linear layers, B zero.
    #[default]
    Default,
    /// `false`: A and B both random, so that the adapter has an effect from the start.
    Random,
    /// `"gaussian"`: A normal with standard deviation 1/r, B zero.
    Gaussian,
    /// Another method of PEFT by its name, for example `pissa`.
    Named(String),
}

impl InitLoraWeights {
    /// Whether B stays as it started: MiCA (arXiv:2604.01694) trains A alone.
    pub(crate) fn keeps_b(&self) -> bool {
        matches!(self, Self::Named(name) if name.eq_ignore_ascii_case("mica"))
    }
}

impl Serialize for InitLoraWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Default => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::Named(name) => serializer.serialize_str(name),
        }
    }
}

impl fmt::Display for InitLoraWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("true"),
            Self::Random => f.write_str("false"),
            Self::Gaussian => f.write_str("\"gaussian\""),
            Self::Named(name) => write!(f, "\"{name}\""),
        }
    }
}
