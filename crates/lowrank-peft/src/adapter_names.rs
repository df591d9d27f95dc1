//! The names of tensors in adapter_model.safetensors, as PEFT 0.21.2 writes them.
//!
//! A name is `base_model.model.`, the module's path in the base model, and a suffix that says which
//! part of the module it is. The adapter's own name is not in it.

use std::fmt;

/// What every name starts with.
pub const PREFIX: &str = "base_model.model.";

/// The meaning of one tensor name. The path is that of the module in the base model, without
/// [`PREFIX`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorName {
    /// A of a linear layer, `[r, in]`.
    LoraA(String),
    /// B of a linear layer, `[out, r]`.
    LoraB(String),
    /// The bias of B, `[out]`, with `lora_bias`.
    LoraBBias(String),
    /// A of an embedding, `[r, rows]`.
    EmbeddingA(String),
    /// B of an embedding, `[dim, r]`.
    EmbeddingB(String),
    /// The base weight of an adapted layer, stored for embeddings.
    BaseLayerWeight(String),
    /// The bias of an adapted layer, stored with `bias` "all" or "lora_only".
    BaseLayerBias(String),
    /// A parameter of the base model under its own name: of a module in `modules_to_save`, a bias
    /// of a layer without adapter, or a resized embedding.
    Plain(String),
    /// A leftover of PEFT's wrapper around a module to save, which `bias` "all" also stores: it takes
    /// whatever has "bias" in its name. Its value is that of a [`Self::Plain`] tensor or of the base
    /// model.
    Wrapped(String),
}

/// A tensor name that doesn't belong to an adapter that lowrank reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum TensorNameError {
    #[error("tensor `{name}` doesn't start with `base_model.model.`; PEFT would not load it")]
    NoPrefix { name: String },
    #[error("tensor `{name}` is `{part}`, a part of {method}, which isn't implemented")]
    OtherMethod { name: String, part: &'static str, method: &'static str },
    #[error(
        "tensor `{name}` belongs to a module of `modules_to_save` inside another one, of which the \
         file has several copies; PEFT would not load it. Train it again with one of the two entries"
    )]
    Nested { name: String },
}

const LORA_A: &str = ".lora_A.weight";
const LORA_B: &str = ".lora_B.weight";
const LORA_B_BIAS: &str = ".lora_B.bias";
const EMBEDDING_A: &str = ".lora_embedding_A";
const EMBEDDING_B: &str = ".lora_embedding_B";
const BASE_WEIGHT: &str = ".base_layer.weight";
const BASE_BIAS: &str = ".base_layer.bias";

/// Makes a name of a module's path.
type MakeName = fn(String) -> TensorName;

/// Suffixes and what they stand for; none ends with another.
const PARTS: [(&str, MakeName); 7] = [
    (LORA_A, TensorName::LoraA),
    (LORA_B, TensorName::LoraB),
    (LORA_B_BIAS, TensorName::LoraBBias),
    (EMBEDDING_A, TensorName::EmbeddingA),
    (EMBEDDING_B, TensorName::EmbeddingB),
    (BASE_WEIGHT, TensorName::BaseLayerWeight),
    (BASE_BIAS, TensorName::BaseLayerBias),
];

/// Parts of variants of LoRA that aren't implemented.
const FOREIGN_PARTS: [(&str, &str); 4] = [
    (".lora_magnitude_vector", "DoRA"),
    (".lora_magnitude_vector.weight", "DoRA"),
    (".lora_diag", "KaSA"),
    (".token_adapter.trainable_tokens_delta", "trainable tokens"),
];

impl TensorName {
    /// What the tensor called `name` in a file is.
    pub fn parse(name: &str) -> Result<Self, TensorNameError> {
        let Some(path) = name.strip_prefix(PREFIX) else {
            return Err(TensorNameError::NoPrefix { name: name.to_owned() });
        };
        for (part, method) in FOREIGN_PARTS {
            if path.ends_with(part) {
                let name = name.to_owned();
                return Err(TensorNameError::OtherMethod { name, part, method });
            }
        }
        if path.split('.').any(|segment| matches!(segment, "original_module" | "modules_to_save")) {
            return match path.contains("bias") {
                true => Ok(Self::Wrapped(path.to_owned())),
                false => Err(TensorNameError::Nested { name: name.to_owned() }),
            };
        }
        for (suffix, part) in PARTS {
            if let Some(module) = path.strip_suffix(suffix) {
                return Ok(part(module.to_owned()));
            }
        }
        Ok(Self::Plain(path.to_owned()))
    }

    /// The path of the adapted module; of a plain or wrapped tensor, its whole name.
    pub fn path(&self) -> &str {
        self.parts().0
    }

    fn parts(&self) -> (&str, &'static str) {
        match self {
            Self::LoraA(path) => (path, LORA_A),
            Self::LoraB(path) => (path, LORA_B),
            Self::LoraBBias(path) => (path, LORA_B_BIAS),
            Self::EmbeddingA(path) => (path, EMBEDDING_A),
            Self::EmbeddingB(path) => (path, EMBEDDING_B),
            Self::BaseLayerWeight(path) => (path, BASE_WEIGHT),
            Self::BaseLayerBias(path) => (path, BASE_BIAS),
            Self::Plain(path) | Self::Wrapped(path) => (path, ""),
        }
    }
}

impl fmt::Display for TensorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, suffix) = self.parts();
        write!(f, "{PREFIX}{path}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_peft_wrote_are_understood() {
        let parse = |path: &str| TensorName::parse(&format!("{PREFIX}{path}")).unwrap();
        let q = || "model.layers.0.self_attn.q_proj".to_owned();
        assert_eq!(parse(&(q() + ".lora_A.weight")), TensorName::LoraA(q()));
        assert_eq!(parse(&(q() + ".lora_B.bias")), TensorName::LoraBBias(q()));
        assert_eq!(parse(&(q() + ".base_layer.bias")), TensorName::BaseLayerBias(q()));
        let embedding = || "model.embed_tokens".to_owned();
        assert_eq!(
            parse("model.embed_tokens.lora_embedding_B"),
            TensorName::EmbeddingB(embedding())
        );
        assert_eq!(
            parse("model.embed_tokens.base_layer.weight"),
            TensorName::BaseLayerWeight(embedding())
        );
        assert_eq!(parse("score.weight"), TensorName::Plain("score.weight".to_owned()));
        let stray = "classifier.original_module.bias".to_owned();
        assert_eq!(parse(&stray), TensorName::Wrapped(stray.clone()));
    }

    #[test]
    fn foreign_names_are_refused() {
        let bare = TensorName::parse("model.layers.0.q_proj.lora_A.weight");
        assert!(matches!(bare, Err(TensorNameError::NoPrefix { .. })));
        let dora = TensorName::parse("base_model.model.q.lora_magnitude_vector").unwrap_err();
        assert!(dora.to_string().contains("DoRA"), "{dora}");
        for path in ["modules_to_save.default.dense.weight", "dense.original_module.weight"] {
            let nested = TensorName::parse(&format!("{PREFIX}classifier.{path}")).unwrap_err();
            assert!(nested.to_string().contains("`modules_to_save` inside another"), "{nested}");
        }
    }

    fn any_name() -> impl Strategy<Value = TensorName> {
        ("[a-z][a-z0-9_]{0,8}(\\.[a-z0-9_]{1,8}){0,5}", 0..PARTS.len() + 2).prop_map(
            |(path, part)| match PARTS.get(part) {
                Some((_, part)) => part(path),
                None if part == PARTS.len() => TensorName::Plain(path + ".weight"),
                None => TensorName::Wrapped(path + ".original_module.bias"),
            },
        )
    }

    proptest! {
        #[test]
        fn display_then_parse_is_identity(name in any_name()) {
            prop_assert_eq!(TensorName::parse(&name.to_string()), Ok(name));
        }

        #[test]
        fn parse_then_display_is_identity(path in "\\PC{0,40}", suffix in 0..PARTS.len()) {
            for text in [format!("{PREFIX}{path}"), format!("{PREFIX}{path}{}", PARTS[suffix].0)] {
                if let Ok(name) = TensorName::parse(&text) {
                    prop_assert_eq!(name.to_string(), text);
                }
            }
        }
    }
}
