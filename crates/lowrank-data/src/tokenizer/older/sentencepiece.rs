//! A SentencePiece model file: pieces with scores, and how text is normalized before.
//! Reference: google/sentencepiece `sentencepiece_model.proto`, whose defaults are here too.

use std::path::Path;

use prost::Message;

use crate::{
    error::{DataError, Result},
    tokenizer::charsmap,
};

/// The file, as far as it is read.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(message, repeated, tag = "1")]
    pub(super) pieces: Vec<Piece>,
    #[prost(message, required, tag = "2")]
    pub(super) trainer: Trainer,
    #[prost(message, required, tag = "3")]
    pub(super) normalizer: Normalizer,
}

/// A piece of the vocabulary. Its kinds: 1 is text, 2 unknown, 3 control, such as `</s>`, 4 defined
/// by a user, who wanted it whole, 6 a byte.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

/// What the model was trained with.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Trainer {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
    #[prost(int32, optional, tag = "40", default = "0")]
    unk_id: Option<i32>,
    #[prost(int32, optional, tag = "41", default = "1")]
    bos_id: Option<i32>,
    #[prost(int32, optional, tag = "42", default = "2")]
    eos_id: Option<i32>,
    #[prost(string, optional, tag = "45", default = "<unk>")]
    unk_piece: Option<String>,
    #[prost(string, optional, tag = "46", default = "<s>")]
    bos_piece: Option<String>,
    #[prost(string, optional, tag = "47", default = "</s>")]
    eos_piece: Option<String>,
}

/// How text is normalized.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Normalizer {
    /// Rules that replace characters.
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    /// Whether a text begins as if a space were before it.
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    /// Whether runs of spaces are one, and those at the ends none.
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    /// Whether a space is written as `▁`.
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// The longest piece that is read; those of real models have some dozen bytes. The trie in the
/// `tokenizers` crate is dropped by recursion, a level for each byte.
const LONGEST_PIECE: usize = 1024;

impl Piece {
    /// Neither special nor a byte.
    pub(super) fn is_normal(&self) -> bool {
        self.kind() == 1
    }

    /// A token that stands for something.
    pub(super) fn is_control(&self) -> bool {
        self.kind() == 3
    }

    /// A token that a user wanted whole.
    pub(super) fn is_user_defined(&self) -> bool {
        self.kind() == 4
    }

    /// Text and score.
    pub(super) fn scored(&self) -> (String, f64) {
        (self.text().to_owned(), self.score().into())
    }
}

impl Trainer {
    /// Whether the model is a unigram model.
    pub(super) fn is_unigram(&self) -> bool {
        self.model_type() == 1
    }

    /// Id and text of the unknown token, the one before a text and the one behind it; those that
    /// the model has not have no id.
    pub(super) fn special(&self) -> [(Option<usize>, &str); 3] {
        [
            (usize::try_from(self.unk_id()).ok(), self.unk_piece()),
            (usize::try_from(self.bos_id()).ok(), self.bos_piece()),
            (usize::try_from(self.eos_id()).ok(), self.eos_piece()),
        ]
    }
}

impl Model {
    /// Reads a file.
    ///
    /// # Errors
    /// When it can't be read, or isn't a model that text can be encoded with.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| DataError::io(path, e))?;
        let wrong = |what: &dyn std::fmt::Display| {
            DataError::file(path, format!("isn't a SentencePiece model: {what}"))
        };
        let model = Self::decode(bytes.as_slice()).map_err(|e| wrong(&e))?;
        if model.pieces.is_empty() {
            return Err(wrong(&"it has no pieces"));
        }
        for (id, piece) in model.pieces.iter().enumerate() {
            if piece.text().is_empty() || piece.text().len() > LONGEST_PIECE {
                return Err(wrong(&format!("piece {id} has {} bytes", piece.text().len())));
            }
            if !piece.score().is_finite() {
                return Err(wrong(&format!("piece {id} has the score {}", piece.score())));
            }
        }
        charsmap::check(model.normalizer.precompiled_charsmap()).map_err(|what| wrong(&what))?;
        Ok(model)
    }
}
