//! Matrix products in f32 with weights of any float dtype, through the `gemm` crate.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::{
    Result, Weight,
    weight::{Elements, Matrix},
};

/// An f32 matrix in memory: elements and strides.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix over all of `data`.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns, 1)
    }

    /// A matrix whose last element lies inside `data`.
    pub(crate) fn strided(
        data: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let reach = reach(rows, columns, row_stride, column_stride);
        assert!(reach <= data.len(), "matrix of {reach} elements over {} elements", data.len());
        Self { data, rows, columns, row_stride, column_stride }
    }

    /// The transpose, over the same memory.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Elements from the first to just past the last one of a strided matrix.
fn reach(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    (rows - 1) * row_stride + (columns - 1) * column_stride + 1
}

/// Where a product goes: a row-major block with a row stride.
pub(crate) struct Target<'a> {
    data: &'a mut [f32],
    row_stride: usize,
}

impl<'a> Target<'a> {
    pub(crate) fn new(data: &'a mut [f32], row_stride: usize) -> Self {
        Self { data, row_stride }
    }
}

/// `target = keep·target + scale·a·b`; `keep` is 0 or 1 (with 0 the target isn't read).
pub(crate) fn product(target: &mut Target<'_>, keep: bool, scale: f32, a: View<'_>, b: View<'_>) {
    multiply(target, keep, scale, a, b, gemm::Parallelism::None);
}

/// [`product`] on all threads.
pub(crate) fn product_parallel(
    target: &mut Target<'_>,
    keep: bool,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
) {
    multiply(target, keep, scale, a, b, gemm::Parallelism::Rayon(0));
}

#[expect(unsafe_code, reason = "the `gemm` crate takes pointers")]
fn multiply(
    target: &mut Target<'_>,
    keep: bool,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
    parallelism: gemm::Parallelism,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert!(reach(m, n, target.row_stride, 1) <= target.data.len(), "target too small");
    assert!(n <= target.row_stride || m <= 1, "target rows overlap");
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: `View::strided` and the assertions above keep every element that the strides reach
    // inside its slice; the target is borrowed mutably and its rows don't overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.data.as_mut_ptr(),
            1,
            target.row_stride as isize,
            keep,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if keep { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Elements of a weight that are widened at a time: a panel that stays in the second-level cache.
const PANEL: usize = 1 << 18;

/// `x·Wᵀ` for `x` `[n, in]` and `w` `[out, in]`: `[n, out]`.
pub(crate) fn linear(x: &[f32], n: usize, w: &Weight) -> Result<Vec<f32>> {
    let matrix = w.matrix("linear")?;
    by_weight(x, n, w, matrix)
}

/// `dy·W` for `dy` `[n, out]` and `w` `[out, in]`: `[n, in]`.
pub(crate) fn linear_input_gradient(dy: &[f32], n: usize, w: &Weight) -> Result<Vec<f32>> {
    let m = w.matrix("linear")?;
    let transposed = Matrix {
        rows: m.columns,
        columns: m.rows,
        row_stride: m.column_stride,
        column_stride: m.row_stride,
    };
    by_weight(dy, n, w, transposed)
}

/// `x·Mᵀ` with `m` reading the weight's memory.
fn by_weight(x: &[f32], n: usize, w: &Weight, m: Matrix) -> Result<Vec<f32>> {
    let mut y = vec![0.0; n * m.rows];
    let x = View::new(x, n, m.columns);
    w.with_elements(|elements| match elements {
        Elements::F32(w) => {
            let w = View::strided(w, m.rows, m.columns, m.row_stride, m.column_stride);
            product_parallel(&mut Target::new(&mut y, m.rows), false, 1.0, x, w.t());
        }
        Elements::Bf16(w) => widened(x, &mut y, m, w),
        Elements::F16(w) => widened(x, &mut y, m, w),
    })?;
    Ok(y)
}

/// The product over panels of rows of `m`, each widened to f32 by the thread that multiplies it.
fn widened<T>(x: View<'_>, y: &mut [f32], m: Matrix, w: &[T])
where
    T: Sync,
    [T]: HalfFloatSliceExt,
{
    let rows = (PANEL / m.columns.max(1)).clamp(1, m.rows.max(1));
    let panels: Vec<(usize, usize)> =
        (0..m.rows).step_by(rows).map(|first| (first, rows.min(m.rows - first))).collect();
    let parts: Vec<Vec<f32>> = panels
        .par_iter()
        .map(|&(first, rows)| {
            let panel = widen(w, m, first, rows);
            // The panel lies as memory does: by rows of `m`, or by its columns.
            let w = match m.column_stride {
                1 => View::new(&panel, rows, m.columns).t(),
                _ => View::new(&panel, m.columns, rows),
            };
            let mut part = vec![0.0; x.rows * rows];
            product(&mut Target::new(&mut part, rows), false, 1.0, x, w);
            part
        })
        .collect();
    y.par_chunks_exact_mut(m.rows.max(1)).enumerate().for_each(|(i, y)| {
        for (&(first, rows), part) in panels.iter().zip(&parts) {
            if let (Some(to), Some(from)) =
                (y.get_mut(first..first + rows), part.get(i * rows..(i + 1) * rows))
            {
                to.copy_from_slice(from);
            }
        }
    });
}

/// Rows `first..first + rows` of `m` as f32, in runs that are contiguous in memory.
fn widen<T>(w: &[T], m: Matrix, first: usize, rows: usize) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut panel = vec![0.0; rows * m.columns];
    let (run, start, stride) = match m.column_stride {
        1 => (m.columns, first * m.row_stride, m.row_stride),
        _ => (rows, first, m.column_stride),
    };
    for (i, to) in panel.chunks_exact_mut(run.max(1)).enumerate() {
        let from = start + i * stride;
        if let Some(from) = w.get(from..from + run) {
            from.convert_to_f32_slice(to);
        }
    }
    panel
}
