//! Rotary position embedding over packed heads.

use rayon::prelude::*;

use crate::ops::RotaryStyle;

/// Rotates the first `2·half` elements of every head of every row by the row's angles.
///
/// `x` is `[n, heads·dim]`, `cos` and `sin` are `[n, half]`; `direction` is 1 for the rotation and
/// -1 for its inverse, which is its gradient as well.
pub(crate) fn rotate(
    x: &[f32],
    heads: usize,
    dim: usize,
    (cos, sin): (&[f32], &[f32]),
    half: usize,
    style: RotaryStyle,
    direction: f32,
) -> Vec<f32> {
    let mut y = x.to_vec();
    if y.is_empty() {
        return y;
    }
    let angles = cos.par_chunks(half.max(1)).zip(sin.par_chunks(half.max(1)));
    y.par_chunks_mut(heads * dim).zip(angles).for_each(|(row, (cos, sin))| {
        for head in row.chunks_exact_mut(dim) {
            for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                let (first, second) = match style {
                    RotaryStyle::Halves => (i, i + half),
                    RotaryStyle::Pairs => (2 * i, 2 * i + 1),
                };
                if let (Some(&a), Some(&b)) = (head.get(first), head.get(second)) {
                    let sin = sin * direction;
                    head[first] = a * cos - b * sin;
                    head[second] = b * cos + a * sin;
                }
            }
        }
    });
    y
}
