//! A hash of the encoded data, kept in checkpoints: a run is resumed on the same data only.

use crate::encode::{Example, Labels};
use crate::error::{DataError, Result};

/// Collects examples in their order and turns them into a short text.
#[derive(Debug, Clone, Default)]
pub struct Fingerprint {
    hasher: blake3::Hasher,
}

impl Fingerprint {
    /// The fingerprint of some examples.
    #[must_use]
    pub fn of<'a>(examples: impl IntoIterator<Item = &'a Example>) -> String {
        let mut fingerprint = Self::default();
        examples.into_iter().for_each(|example| fingerprint.add(example));
        fingerprint.finish()
    }

    /// Takes the next example. Where it comes from doesn't count.
    pub fn add(&mut self, example: &Example) {
        self.numbers(example.input_ids.iter().copied());
        self.numbers(example.token_type_ids.iter().flatten().copied());
        if let Some(boxes) = &example.boxes {
            self.numbers(boxes.iter().flatten().copied());
        }
        if let Some(picture) = &example.picture {
            self.hasher.update(picture.digest.as_bytes());
        }
        match &example.labels {
            Labels::None => self.kind(0),
            Labels::Tokens(labels) => {
                self.kind(1);
                self.numbers(labels.iter().map(|l| l.cast_unsigned()));
            }
            Labels::Target(ids) => {
                self.kind(2);
                self.numbers(ids.iter().copied());
            }
            Labels::Class(class) => {
                self.kind(3);
                self.hasher.update(&(*class as u64).to_le_bytes());
            }
            Labels::Classes(classes) => {
                self.kind(4);
                self.numbers(classes.iter().map(|c| c.to_bits()));
            }
            Labels::Value(value) => {
                self.kind(5);
                self.numbers([value.to_bits()].into_iter());
            }
            Labels::Span { start, end } => {
                self.kind(6);
                self.hasher.update(&(*start as u64).to_le_bytes());
                self.hasher.update(&(*end as u64).to_le_bytes());
            }
        }
    }

    /// 32 hexadecimal digits.
    #[must_use]
    pub fn finish(&self) -> String {
        self.hasher.finalize().to_hex().chars().take(32).collect()
    }

    /// Refuses to go on with other data than before.
    /// # Errors
    /// [`DataError::DataChanged`] if the fingerprints differ.
    pub fn check(now: &str, then: &str) -> Result<()> {
        if now == then {
            return Ok(());
        }
        Err(DataError::DataChanged { now: now.to_owned(), then: then.to_owned() })
    }

    fn kind(&mut self, kind: u8) {
        self.hasher.update(&[kind]);
    }

    /// Numbers behind their count, so that no two lists read the same.
    fn numbers(&mut self, numbers: impl Iterator<Item = u32>) {
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        self.hasher.update(&(bytes.len() as u64).to_le_bytes());
        self.hasher.update(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RowRef;

    fn example(input_ids: &[u32], labels: Labels) -> Example {
        let file = std::path::Path::new("a").into();
        let source = RowRef { file, row: 0, line: None };
        Example::new(input_ids.to_vec(), labels, source, 0)
    }

    #[test]
    fn sees_every_change() {
        let base = [example(&[1, 2], Labels::Tokens(vec![-100, 2])), example(&[3], Labels::None)];
        let others = [
            [example(&[1, 3], Labels::Tokens(vec![-100, 2])), base[1].clone()],
            [example(&[1, 2], Labels::Tokens(vec![1, 2])), base[1].clone()],
            [base[1].clone(), base[0].clone()],
            [base[0].clone(), example(&[3], Labels::Class(0))],
        ];
        for other in others {
            assert_ne!(Fingerprint::of(&base), Fingerprint::of(&other));
        }
        assert_eq!(Fingerprint::of(&base), Fingerprint::of(&base.clone()));
        assert!(Fingerprint::check("a", "b").is_err());
    }
}
