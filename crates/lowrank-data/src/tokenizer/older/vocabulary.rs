//! The models of the `tokenizers` crate, from vocabulary files.

use std::path::Path;

use tokenizers::models::{
    ModelWrapper,
    bpe::{BPE, BpeBuilder, Merges, Vocab},
    unigram::Unigram,
    wordpiece::WordPiece,
};

use super::sentencepiece::Model;
use crate::error::{DataError, Result, describe};
use crate::tokenizer::files::{object, text};

/// WordPiece over `vocab.txt`, a token a line.
pub(super) fn word_piece(path: &Path, unk_token: &str) -> Result<ModelWrapper> {
    let text = text(path)?;
    let mut vocab = Vocab::new();
    for (id, line) in (0..).zip(text.lines()) {
        vocab.insert(line.trim_end().to_owned(), id);
    }
    let model = WordPiece::builder().vocab(vocab).unk_token(unk_token.to_owned()).build();
    Ok(model.map_err(|e| DataError::file(path, e))?.into())
}

/// BPE over `vocab.json`, token to id, and `merges.txt`, a pair a line, the first first.
pub(super) fn byte_pairs(folder: &Path) -> Result<ModelWrapper> {
    let (vocab_file, merges_file) = (folder.join("vocab.json"), folder.join("merges.txt"));
    let mut vocab = Vocab::new();
    for (token, id) in object(&vocab_file)?.unwrap_or_default() {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| {
            let found = describe(&id);
            DataError::file(&vocab_file, format!("`{token}` is {found}; it must be an id"))
        })?;
        vocab.insert(token, number);
    }
    let mut merges = Merges::new();
    for (number, line) in (1..).zip(text(&merges_file)?.lines()) {
        if line.starts_with("#version") {
            continue;
        }
        let wrong = |message: &str| DataError::Syntax {
            path: merges_file.clone(),
            line: number,
            message: message.to_owned(),
        };
        let (left, right) = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '))
            .ok_or_else(|| wrong("isn't two tokens with a space between them"))?;
        // Where one is missing the crate would panic.
        if ![left, right, &format!("{left}{right}")].iter().all(|t| vocab.contains_key(*t)) {
            return Err(wrong("a token, or the two together, aren't in `vocab.json`"));
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    bpe(&vocab_file, BPE::builder().vocab_and_merges(vocab, merges))
}

/// BPE over the pieces of a SentencePiece model. The file has no merges: each way to put a piece
/// together from two others is one, the piece with the lower id first.
pub(super) fn merged_pieces(
    path: &Path,
    model: &Model,
    settings: impl FnOnce(BpeBuilder) -> BpeBuilder,
) -> Result<ModelWrapper> {
    let vocab: Vocab =
        (0..).zip(&model.pieces).map(|(id, piece)| (piece.text().to_owned(), id)).collect();
    let mut ranked = Vec::new();
    for (piece, id) in &vocab {
        for (length, (left, right)) in splits(piece).enumerate() {
            if vocab.contains_key(left) && vocab.contains_key(right) {
                ranked.push(((*id, length), (left.to_owned(), right.to_owned())));
            }
        }
    }
    ranked.sort_unstable_by_key(|(rank, _)| *rank);
    let merges = ranked.into_iter().map(|(_, pair)| pair).collect();
    bpe(path, settings(BPE::builder().vocab_and_merges(vocab, merges)))
}

/// A piece in two parts, in all ways.
pub(super) fn splits(piece: &str) -> impl Iterator<Item = (&str, &str)> {
    piece.char_indices().skip(1).filter_map(|(at, _)| piece.split_at_checked(at))
}

pub(super) fn bpe(path: &Path, builder: BpeBuilder) -> Result<ModelWrapper> {
    Ok(builder.build().map_err(|e| DataError::file(path, e))?.into())
}

/// A unigram model over pieces with scores.
pub(super) fn unigram(
    path: &Path,
    pieces: Vec<(String, f64)>,
    unk_id: usize,
    byte_fallback: bool,
) -> Result<ModelWrapper> {
    let model = Unigram::from(pieces, Some(unk_id), byte_fallback);
    Ok(model.map_err(|e| DataError::file(path, e))?.into())
}
