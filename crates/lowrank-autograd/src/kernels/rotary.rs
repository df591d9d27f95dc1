//! Rotary position embedding over packed heads.

use super::{
    Computed,
    buffer::{computed, piece_rows},
    elementwise::with_pieces,
    simd::vectorized,
};
use crate::{elements::Elements, ops::RotaryStyle};

/// Rotates `2·half` elements of every head of every row, from `first` on, by the row's angles.
///
/// `x` is `[n, heads·dim]`, `cos` and `sin` are `[n, half]`, `first + 2·half` at most `dim`;
/// `direction` is 1 for the rotation and -1 for its inverse, which is its gradient as well. The
/// result is rounded to bf16 if `narrow`.
pub(crate) fn rotate(
    x: Elements<'_>,
    (heads, dim): (usize, usize),
    first: usize,
    (cos, sin): (&[f32], &[f32]),
    half: usize,
    (style, direction): (RotaryStyle, f32),
    narrow: bool,
) -> Computed {
    let (width, rows) = (heads * dim, piece_rows(heads * dim));
    computed(narrow, x.len(), rows * width, |start, y| {
        let row = start / width;
        with_pieces([x], start..start + y.len(), |[x]| {
            for (i, (y, x)) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                let angles = (row + i) * half..(row + i + 1) * half;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                match style {
                    RotaryStyle::Halves => halves(y, x, (dim, first), cos, sin, direction),
                    RotaryStyle::Pairs => pairs(y, x, (dim, first), cos, sin, direction),
                }
            }
        });
    })
}

vectorized! {
    fn halves(
        y: &mut [f32], x: &[f32], heads: (usize, usize), cos: &[f32], sin: &[f32], direction: f32,
    ) {
        let half = cos.len();
        by_head(y, x, heads, 2 * half, |y, x| {
            turn(y.split_at_mut(half), x.split_at(half), cos, sin, direction);
        });
    }
}

/// Calls `turn` with the `turning` elements of every head of `dim` from `first` on, and copies the
/// others.
#[inline(always)]
fn by_head(
    y: &mut [f32],
    x: &[f32],
    (dim, first): (usize, usize),
    turning: usize,
    turn: impl Fn(&mut [f32], &[f32]),
) {
    for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)) {
        let ((y_before, y), (x_before, x)) = (y.split_at_mut(first), x.split_at(first));
        let ((y, y_after), (x, x_after)) = (y.split_at_mut(turning), x.split_at(turning));
        y_before.copy_from_slice(x_before);
        turn(y, x);
        y_after.copy_from_slice(x_after);
    }
}

#[inline(always)]
fn turn(
    (y0, y1): (&mut [f32], &mut [f32]),
    (x0, x1): (&[f32], &[f32]),
    cos: &[f32],
    sin: &[f32],
    direction: f32,
) {
    let angles = cos.iter().zip(sin);
    for (((y0, y1), (x0, x1)), (cos, sin)) in
        y0.iter_mut().zip(y1).zip(x0.iter().zip(x1)).zip(angles)
    {
        let sin = sin * direction;
        *y0 = x0 * cos - x1 * sin;
        *y1 = x1 * cos + x0 * sin;
    }
}

vectorized! {
    fn pairs(
        y: &mut [f32], x: &[f32], heads: (usize, usize), cos: &[f32], sin: &[f32], direction: f32,
    ) {
        by_head(y, x, heads, 2 * cos.len(), |y, x| {
            let pairs = y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
            for ((y, [a, b]), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                let sin = sin * direction;
                *y = [a * cos - b * sin, b * cos + a * sin];
            }
        });
    }
}
