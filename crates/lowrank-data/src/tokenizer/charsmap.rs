//! Whether a table of replaced characters can be followed, as SentencePiece models have it, and
//! `tokenizer.json` in base64.
//!
//! It is a double-array trie (a unit for each state; a state's child for byte `b` lies at the
//! state's base, exclusive-or `b`) and the texts that its values point into. `spm_precompiled`,
//! which follows it, indexes both without looking: a damaged table would panic at the first text.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;

const CUT: &str = "its table of characters is cut off";

/// An error, in words, unless [`check`] finds nothing wrong with the tables of a `tokenizer.json`.
pub(super) fn check_serialized(json: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Serialized {
        normalizer: Option<Value>,
    }
    let file: Serialized = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let mut waiting: Vec<Value> = file.normalizer.into_iter().collect();
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(all) => waiting.extend(all),
            Value::Object(fields) => {
                if let Some(Value::String(table)) = fields.get("precompiled_charsmap") {
                    let what = |fault: &str| format!("a normalizer: {fault}");
                    let table = STANDARD.decode(table);
                    let table = table.map_err(|e| what(&format!("its table isn't base64: {e}")))?;
                    // A model without a table has an empty one, a normalizer is nothing without.
                    let found = if table.is_empty() { Err(CUT) } else { check(&table) };
                    found.map_err(what)?;
                }
                waiting.extend(fields.into_iter().map(|(_, value)| value));
            }
            _ => {}
        }
    }
    Ok(())
}

/// An error, in words, unless every state that some text reaches lies in the table.
pub(super) fn check(charsmap: &[u8]) -> Result<(), &'static str> {
    if charsmap.is_empty() {
        return Ok(());
    }
    let (size, rest) = charsmap.split_first_chunk::<4>().ok_or(CUT)?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(|_| CUT)?;
    if !size.is_multiple_of(4) {
        return Err(CUT);
    }
    let (units, texts) = rest.split_at_checked(size).ok_or(CUT)?;
    let (units, _) = units.as_chunks::<4>();
    let units: Vec<usize> = units.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| "its table of characters isn't UTF-8")?;
    reachable(&units, texts).ok_or("its table of characters leads out of itself")
}

/// Goes through all states from the first; `None` where one lies outside.
fn reachable(units: &[usize], texts: &str) -> Option<()> {
    let base = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![base(*units.first()?)];
    while let Some(state) = waiting.pop() {
        for byte in 1..=255 {
            let child = state ^ byte;
            let unit = *units.get(child)?;
            if unit & (1 << 31 | 0xff) != byte || std::mem::replace(seen.get_mut(child)?, true) {
                continue;
            }
            let next = child ^ base(unit);
            if unit >> 8 & 1 == 1 {
                let value = units.get(next)? & ((1 << 31) - 1);
                texts.get(value..)?;
            }
            waiting.push(next);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_tables_are_refused() {
        assert_eq!(check(&[]), Ok(()));
        assert!(check(&[1, 0, 0]).is_err());
        assert!(check(&[8, 0, 0, 0, 1]).is_err());
        assert!(check(&[0, 0, 0, 0]).is_err(), "a trie without a first state");
        let empty: Vec<u8> =
            [1024u32].iter().chain(&[0; 256]).flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!(check(&empty), Ok(()), "a trie of one state");
        let mut outside = empty;
        outside[4..8].copy_from_slice(&(1u32 << 20).to_le_bytes());
        assert!(check(&outside).is_err());
    }
}
