//! Root-mean-square and layer normalization over rows. Moments and means are summed in f64, which
//! vectors do about as fast as memory delivers the rows.

use super::{
    Computed,
    buffer::{computed, piece_rows},
    elementwise::{lanes_sum, lanes_sums, row_sums, with_pieces},
    simd::vectorized,
};
use crate::elements::Elements;

/// Which mean is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Center {
    /// None: RMSNorm.
    No,
    /// The row's: LayerNorm.
    Mean,
}

/// What turns the elements of a row into `n = (x - mean)/√(variance + eps)`.
#[derive(Clone, Copy)]
struct Moments {
    /// The mean, and what its rounding to f32 left: beside a large offset it would be noticed.
    mean: [f32; 2],
    inverse: f32,
}

impl Moments {
    /// In two passes, so that a large offset doesn't swallow the variance.
    #[inline(always)]
    fn of(row: &[f32], eps: f64, center: Center) -> Self {
        let n = row.len() as f64;
        let mean = match center {
            Center::No => 0.0,
            Center::Mean => lanes_sum(row, f64::from) / n,
        };
        let square = |v: f32| (f64::from(v) - mean) * (f64::from(v) - mean);
        let inverse = 1.0 / (lanes_sum(row, square) / n + eps).sqrt();
        let high = mean as f32;
        Self { mean: [high, (mean - f64::from(high)) as f32], inverse: inverse as f32 }
    }

    #[inline(always)]
    fn normalize(self, x: f32) -> f32 {
        ((x - self.mean[0]) - self.mean[1]) * self.inverse
    }
}

/// `(x - mean)·inverse·weight + bias` for each row of `columns` elements, rounded to bf16 if
/// `narrow`.
pub(crate) fn forward(
    x: Elements<'_>,
    columns: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f64,
    center: Center,
    narrow: bool,
) -> Computed {
    vectorized! {
        fn run(y: &mut [f32], x: &[f32], w: &[f32], b: Option<&[f32]>, eps: f64, center: Center) {
            let rows = y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len()));
            for (y, x) in rows {
                let moments = Moments::of(x, eps, center);
                match b {
                    None => {
                        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                            *y = moments.normalize(*x) * w;
                        }
                    }
                    Some(b) => {
                        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                            *y = moments.normalize(*x) * w + b;
                        }
                    }
                }
            }
        }
    }
    computed(narrow, x.len(), piece_rows(columns) * columns, |start, y| {
        with_pieces([x], start..start + y.len(), |[x]| run(y, x, weight, bias, eps, center));
    })
}

/// Gradient with respect to the input. With `n = (x - mean)·inverse` and `g = dy·weight`:
/// `dx = inverse·(g - mean(g) - n·mean(g·n))`, the first mean only where one was subtracted.
pub(crate) fn input_gradient(
    dy: Elements<'_>,
    x: Elements<'_>,
    columns: usize,
    weight: &[f32],
    eps: f64,
    center: Center,
    narrow: bool,
) -> Computed {
    vectorized! {
        fn run(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], eps: f64, center: Center) {
            let n = w.len() as f64;
            let rows = x.chunks_exact(w.len()).zip(dy.chunks_exact(w.len()));
            for (dx, (x, dy)) in dx.chunks_exact_mut(w.len()).zip(rows) {
                let moments = Moments::of(x, eps, center);
                // `g` waits where the result will stand.
                for ((g, dy), w) in dx.iter_mut().zip(dy).zip(w) {
                    *g = dy * w;
                }
                let [sum, dot] = lanes_sums(dx, x, |g, x| {
                    let g = f64::from(g);
                    [g, g * f64::from(moments.normalize(x))]
                });
                let g_mean = if center == Center::Mean { (sum / n) as f32 } else { 0.0 };
                let dot_mean = (dot / n) as f32;
                for (dx, x) in dx.iter_mut().zip(x) {
                    let n = moments.normalize(*x);
                    *dx = moments.inverse * (*dx - g_mean - n * dot_mean);
                }
            }
        }
    }
    computed(narrow, x.len(), piece_rows(columns) * columns, |start, dx| {
        with_pieces([x, dy], start..start + dx.len(), |[x, dy]| {
            run(dx, dy, x, weight, eps, center);
        });
    })
}

/// Gradient with respect to the weight: `Σ dy·(x - mean)·inverse` over the rows.
pub(crate) fn weight_gradient(
    dy: &[f32],
    x: Elements<'_>,
    columns: usize,
    eps: f64,
    center: Center,
) -> Vec<f32> {
    vectorized! {
        fn run(dw: &mut [f32], dy: &[f32], x: &[f32], eps: f64, center: Center) {
            for (x, dy) in x.chunks_exact(dw.len()).zip(dy.chunks_exact(dw.len())) {
                let moments = Moments::of(x, eps, center);
                for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                    *dw += dy * moments.normalize(*x);
                }
            }
        }
    }
    row_sums(x.len(), columns, |start, end, dw| {
        with_pieces([x], start..end, |[x]| run(dw, &dy[start..end], x, eps, center));
    })
}
