//! Encodes all samples of a data set, and counts what a user should hear about.

use super::Example;
use crate::error::{Result, RowProblem, RowRef};
use crate::formats::Sample;

/// Encoded rows and what happened to the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// The rows.
    pub examples: Vec<Example>,
    /// Rows that couldn't be encoded; empty unless `skip_bad_rows` was set.
    pub skipped: Vec<(RowRef, RowProblem)>,
    /// Rows that lost tokens to `cutoff_len`.
    pub rows_cut: usize,
    /// Tokens that were lost.
    pub tokens_cut: usize,
    /// Rows of which nothing is trained, because their answers were cut or are empty.
    pub rows_without_labels: usize,
}

/// Encodes samples with one of the encoders' methods. With `skip_bad_rows`, rows that fail are
/// kept in [`Encoded::skipped`] and left out.
/// # Errors
/// The first row that fails, unless `skip_bad_rows` is set.
pub fn encode_all(
    samples: &[Sample],
    skip_bad_rows: bool,
    encode: impl Fn(&Sample) -> Result<Example, RowProblem>,
) -> Result<Encoded> {
    let mut all = Encoded { examples: Vec::with_capacity(samples.len()), ..Encoded::default() };
    for sample in samples {
        match encode(sample) {
            Ok(example) => {
                all.rows_cut += usize::from(example.cut > 0);
                all.tokens_cut += example.cut;
                all.rows_without_labels += usize::from(example.targets() == 0);
                all.examples.push(example);
            }
            Err(problem) if skip_bad_rows => all.skipped.push((sample.at().clone(), problem)),
            Err(problem) => return Err(problem.at(sample.at())),
        }
    }
    Ok(all)
}
