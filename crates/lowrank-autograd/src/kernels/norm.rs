//! Root-mean-square and layer normalization over rows.

use rayon::prelude::*;

/// Rows that one task handles: fixed, so that sums over rows have a fixed order.
const ROWS: usize = 32;

/// Which mean is subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Center {
    /// None: RMSNorm.
    No,
    /// The row's: LayerNorm.
    Mean,
}

/// Mean (0 without centring) and `1/√(variance + eps)` of a row, accumulated in f64.
fn moments(row: &[f32], eps: f64, center: Center) -> (f32, f32) {
    let n = row.len() as f64;
    let mean = match center {
        Center::No => 0.0,
        Center::Mean => row.iter().map(|&v| f64::from(v)).sum::<f64>() / n,
    };
    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, (1.0 / (variance + eps).sqrt()) as f32)
}

/// `(x - mean)·inverse·weight + bias` for each row of `columns` elements.
pub(crate) fn forward(
    x: &[f32],
    columns: usize,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f64,
    center: Center,
) -> Vec<f32> {
    let columns = columns.max(1); // a slice can't be cut into empty rows
    let mut y = vec![0.0; x.len()];
    let rows = y.par_chunks_mut(columns * ROWS).zip(x.par_chunks(columns * ROWS));
    rows.for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)) {
            let (mean, inverse) = moments(x, eps, center);
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = (x - mean) * inverse * w;
            }
            for (y, b) in y.iter_mut().zip(bias.into_iter().flatten()) {
                *y += b;
            }
        }
    });
    y
}

/// Gradient with respect to the input. With `n = (x - mean)·inverse` and `g = dy·weight`:
/// `dx = inverse·(g - mean(g) - n·mean(g·n))`, the first mean only where one was subtracted.
pub(crate) fn input_gradient(
    dy: &[f32],
    x: &[f32],
    columns: usize,
    weight: &[f32],
    eps: f64,
    center: Center,
) -> Vec<f32> {
    let columns = columns.max(1);
    let mut dx = vec![0.0; x.len()];
    let inputs = x.par_chunks(columns * ROWS).zip(dy.par_chunks(columns * ROWS));
    dx.par_chunks_mut(columns * ROWS).zip(inputs).for_each(|(dx, (x, dy))| {
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns));
        for (dx, (x, dy)) in dx.chunks_exact_mut(columns).zip(rows) {
            let (mean, inverse) = moments(x, eps, center);
            let (mut sum, mut dot) = (0.0, 0.0);
            for ((dy, w), x) in dy.iter().zip(weight).zip(x) {
                let g = f64::from(dy * w);
                sum += g;
                dot += g * f64::from((x - mean) * inverse);
            }
            let n = columns as f64;
            let g_mean = if center == Center::Mean { (sum / n) as f32 } else { 0.0 };
            let dot_mean = (dot / n) as f32;
            for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(weight).zip(x) {
                *dx = inverse * (dy * w - g_mean - (x - mean) * inverse * dot_mean);
            }
        }
    });
    dx
}

/// Gradient with respect to the weight: `Σ dy·(x - mean)·inverse` over the rows.
pub(crate) fn weight_gradient(
    dy: &[f32],
    x: &[f32],
    columns: usize,
    eps: f64,
    center: Center,
) -> Vec<f32> {
    let mut dw = vec![0.0; columns];
    for (x, dy) in x.chunks_exact(columns.max(1)).zip(dy.chunks_exact(columns.max(1))) {
        let (mean, inverse) = moments(x, eps, center);
        for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *dw += dy * (x - mean) * inverse;
        }
    }
    dw
}
