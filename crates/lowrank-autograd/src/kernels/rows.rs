//! Copies of rows and columns, and sums of rows that belong to the same place.

use std::ops::Range;

use super::{
    Computed,
    buffer::{computed, filled, piece_rows},
    elementwise::{lanes_sums, with_pieces},
    simd::vectorized,
};
use crate::elements::Elements;

/// `n` new rows of `d` elements; `write(i, row)` writes one, which is zero before.
pub(crate) fn gather(n: usize, d: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    filled(n * d, piece_rows(d) * d, |start, rows| {
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            write(start / d + i, row);
        }
    })
}

/// `n` new rows of `d` elements, rounded to bf16 if `narrow`; `write(i, row)` writes every element of
/// one.
pub(crate) fn computed_rows(
    narrow: bool,
    n: usize,
    d: usize,
    write: impl Fn(usize, &mut [f32]) + Sync,
) -> Computed {
    computed(narrow, n * d, piece_rows(d) * d, |start, rows| {
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            write(start / d + i, row);
        }
    })
}

/// A number for each of `n` rows of `d` elements.
pub(crate) fn numbers(n: usize, d: usize, of: impl Fn(usize) -> f32 + Sync) -> Vec<f32> {
    filled(n, piece_rows(d), |start, numbers| {
        numbers.iter_mut().zip(start..).for_each(|(number, row)| *number = of(row));
    })
}

/// Rows `rows` of `from`, of `d` elements each.
pub(crate) fn select(from: Elements<'_>, rows: &[usize], d: usize) -> Computed {
    fn copy<T: Copy + Default + Send + Sync>(from: &[T], rows: &[usize], d: usize) -> Vec<T> {
        filled(rows.len() * d, piece_rows(d) * d, |start, to| {
            let rows = &rows[start / d.max(1)..];
            for (to, row) in to.chunks_exact_mut(d).zip(rows) {
                to.copy_from_slice(&from[row * d..][..d]);
            }
        })
    }
    match from {
        Elements::Bf16(from) => Computed::Bf16(copy(from, rows, d)),
        from => Computed::F32(copy(&from.wide(), rows, d)),
    }
}

/// `n` rows of `d` elements: row `j` is the sum of those rows of `from` whose `to`, below `n`, is
/// `j`, in their order.
pub(crate) fn scatter_add(
    from: Elements<'_>,
    to: impl Iterator<Item = usize> + Clone,
    n: usize,
    d: usize,
) -> Vec<f32> {
    vectorized! {
        fn add(sums: &mut [f32], row: &[f32]) {
            for (s, v) in sums.iter_mut().zip(row) {
                *s += v;
            }
        }
    }
    let (order, ends) = sorted(to, n);
    gather(n, d, |j, sums| {
        let start = if j == 0 { 0 } else { ends[j - 1] };
        for i in &order[start..ends[j]] {
            with_pieces([from], i * d..(i + 1) * d, |[row]| add(sums, row));
        }
    })
}

/// The order in which numbers below `n` ascend, equal ones as they come, and where those of each
/// number end in it.
fn sorted(numbers: impl Iterator<Item = usize> + Clone, n: usize) -> (Vec<usize>, Vec<usize>) {
    let mut ends = vec![0; n];
    numbers.clone().for_each(|j| ends[j] += 1);
    let mut next = 0;
    for end in &mut ends {
        (*end, next) = (next, next + *end); // where a number's begin, for now
    }
    let mut order = vec![0; next];
    for (i, j) in numbers.enumerate() {
        order[ends[j]] = i;
        ends[j] += 1;
    }
    (order, ends)
}

vectorized! {
    /// `to += weight·row`.
    pub(crate) fn add_weighted(to: &mut [f32], weight: f32, row: &[f32]) {
        for (to, v) in to.iter_mut().zip(row) {
            *to += weight * v;
        }
    }
}

vectorized! {
    /// `to = weight·row`.
    pub(crate) fn weighted(to: &mut [f32], weight: f32, row: &[f32]) {
        for (to, v) in to.iter_mut().zip(row) {
            *to = weight * v;
        }
    }
}

vectorized! {
    /// `Σ a·b`.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let [sum] = lanes_sums(a, b, |a, b| [f64::from(a) * f64::from(b)]);
        sum as f32
    }
}

/// Columns `range` of `n` rows of `d` elements.
pub(crate) fn columns(x: &[f32], n: usize, d: usize, range: &Range<usize>) -> Vec<f32> {
    gather(n, range.len(), |i, row| row.copy_from_slice(&x[i * d..][range.clone()]))
}

/// `n` rows of `d` elements that are 0 except in the columns `range`, where they are `y`.
pub(crate) fn spread_columns(y: &[f32], n: usize, d: usize, range: &Range<usize>) -> Vec<f32> {
    let width = range.len();
    gather(n, d, |i, row| row[range.clone()].copy_from_slice(&y[i * width..][..width]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_elements_are_no_rows() {
        assert!(gather(3, 0, |_, _| {}).is_empty());
        assert!(columns(&[1.0, 2.0], 2, 1, &(1..1)).is_empty());
        assert_eq!(spread_columns(&[], 2, 1, &(1..1)), [0.0, 0.0]);
        let none = Elements::F32(&[]);
        assert!(scatter_add(none, [0, 0].into_iter(), 2, 0).is_empty());
    }

    #[test]
    fn sums_are_in_the_order_of_their_terms() {
        let from = [1e8, 1.0, 5.0, -1e8, 1.0];
        let found = scatter_add(Elements::F32(&from), [2, 2, 0, 2, 2].into_iter(), 4, 1);
        assert_eq!(found, [5.0, 0.0, 1.0, 0.0]);
    }
}
