//! Matrix products in f32, with weights of any float dtype. A product goes one of these ways: over
//! packed panels (`blocked`, or `tiles` of AMX), with few rows on one side (`dots` along contiguous
//! lines, `across` them), or through the `gemm` crate where this file has no kernels for the machine
//! (`fallback`).

use std::ops::Range;

use super::Computed;
use crate::{elements::Elements, weight::Matrix};

#[cfg(target_arch = "x86_64")]
mod across;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod block;
#[cfg(target_arch = "x86_64")]
mod blocked;
#[cfg(target_arch = "x86_64")]
mod blocks;
mod dots;
mod element;
mod engine;
mod fallback;
#[cfg(target_arch = "x86_64")]
mod left;
mod line;
mod linear;
#[cfg(target_arch = "x86_64")]
mod narrow;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg_attr(not(target_arch = "x86_64"), path = "product/no_pairs.rs")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod panels;
mod scratch;
#[cfg(target_arch = "x86_64")]
mod setting;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;

#[cfg(target_arch = "x86_64")]
pub(crate) use blocks::{Amx, Block, Blocks, SIDE, Turn};
pub(crate) use element::Element;
use engine::Engine;
pub(crate) use linear::{
    Linear, Room, Term, linear, linear_input_gradient, linear_input_gradients_into, linear_into,
};
pub(crate) use pairs::{Begun, Pairs};
pub(crate) use scratch::Scratch;

/// A matrix in memory: elements and strides. Products of views are f32.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: Elements<'a>,
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

    /// The same over elements of any kind.
    pub(crate) fn over(data: Elements<'a>, rows: usize, columns: usize) -> Self {
        Self::strided_over(data, rows, columns, columns, 1)
    }

    /// A matrix whose last element lies inside `data`.
    pub(crate) fn strided(
        data: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        Self::strided_over(Elements::F32(data), rows, columns, row_stride, column_stride)
    }

    /// The same over elements of any kind.
    pub(crate) fn strided_over(
        data: Elements<'a>,
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

    /// The columns of a range.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.columns, "columns of the matrix");
        let start = (range.start * self.column_stride).min(self.data.len());
        let data = self.data.slice(start..self.data.len());
        Self { data, columns: range.len(), ..self }
    }

    /// The matrix by its rows.
    fn by_rows(self) -> Factor<'a> {
        Factor {
            elements: self.data,
            lines: self.rows,
            inner: self.columns,
            line_stride: self.row_stride,
            step_stride: self.column_stride,
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

/// A factor of a product by its lines along the inner dimension: rows of the left one, columns of
/// the right one.
#[derive(Clone, Copy)]
struct Factor<'a> {
    elements: Elements<'a>,
    lines: usize,
    inner: usize,
    line_stride: usize,
    step_stride: usize,
}

impl<'a> Factor<'a> {
    /// The rows of `m`, which reads `elements`.
    fn rows(elements: Elements<'a>, m: Matrix) -> Self {
        let reach = reach(m.rows, m.columns, m.row_stride, m.column_stride);
        assert!(reach <= elements.len(), "weight of {reach} elements over {}", elements.len());
        Self {
            elements,
            lines: m.rows,
            inner: m.columns,
            line_stride: m.row_stride,
            step_stride: m.column_stride,
        }
    }

    /// One element.
    fn element(&self, line: usize, step: usize) -> f32 {
        self.number(line * self.line_stride + step * self.step_stride)
    }

    /// Puts the elements of a line at the end of `numbers`.
    #[cfg(target_arch = "x86_64")]
    fn extend_by_line(&self, line: usize, numbers: &mut Vec<f32>) {
        let start = line * self.line_stride;
        match self.elements {
            Elements::F32(data) if self.step_stride == 1 => {
                numbers.extend_from_slice(&data[start..start + self.inner]);
            }
            _ => numbers.extend((0..self.inner).map(|step| self.element(line, step))),
        }
    }

    /// The number at this place of memory.
    fn number(&self, at: usize) -> f32 {
        match self.elements {
            Elements::F32(data) => data.get(at).copied(),
            Elements::Bf16(data) => data.get(at).map(|v| v.to_f32()),
            Elements::F16(data) => data.get(at).map(|v| v.to_f32()),
        }
        .unwrap_or_default()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_bf16(&self) -> bool {
        matches!(self.elements, Elements::Bf16(_))
    }
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

/// `to[j·width + i] = scale·from[i, j]` with zeros where `from`, whose rows are contiguous, has fewer
/// than `width` of them.
pub(crate) fn transpose(from: View<'_>, scale: f32, width: usize, to: &mut [f32]) {
    let to = &mut to[..from.columns * width];
    #[cfg(target_arch = "x86_64")]
    return setting::transpose(&from.by_rows(), scale, width, to);
    #[cfg(not(target_arch = "x86_64"))]
    for (j, to) in to.chunks_exact_mut(width.max(1)).enumerate() {
        let (there, beyond) = to.split_at_mut(from.rows.min(width));
        let number = |i: usize| from.by_rows().number(i * from.row_stride + j);
        there.iter_mut().enumerate().for_each(|(i, to)| *to = scale * number(i));
        beyond.fill(0.0);
    }
}

/// `target = keep·target + scale·a·b`; `keep` is 0 or 1 (with 0 the target isn't read).
pub(crate) fn product(target: &mut Target<'_>, keep: bool, scale: f32, a: View<'_>, b: View<'_>) {
    multiply(target, keep, scale, a, b, false);
}

/// [`product`] on all threads.
pub(crate) fn product_parallel(
    target: &mut Target<'_>,
    keep: bool,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
) {
    multiply(target, keep, scale, a, b, true);
}

#[expect(unsafe_code, reason = "products take the target as a pointer")]
fn multiply(
    target: &mut Target<'_>,
    keep: bool,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
    parallel: bool,
) {
    assert_eq!(a.columns, b.rows, "inner dimensions");
    let (m, n) = (a.rows, b.columns);
    assert!(reach(m, n, target.row_stride, 1) <= target.data.len(), "target too small");
    assert!(n <= target.row_stride || m <= 1, "target rows overlap");
    let (a, b) = (a.by_rows(), b.t().by_rows());
    let job = Job { a, b, scale, add: keep, bias: None, tails: &[], rounds: false, parallel };
    // SAFETY: the assertions above keep every row inside the target, which is borrowed mutably.
    unsafe { job.run_into(target.data.as_mut_ptr(), target.row_stride) };
}

/// `to = [to +] scale·a·bᵀ + bias + Σ tails`, all factors by lines of their inner dimension.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    a: Factor<'a>,
    b: Factor<'a>,
    scale: f32,
    /// Whether the target is added to; otherwise it isn't read.
    add: bool,
    /// One number for each line of `b`.
    bias: Option<&'a [f32]>,
    /// Further products of f32 that are added, of small inner dimensions.
    tails: &'a [(Factor<'a>, Factor<'a>)],
    /// Whether factors may be rounded to bf16 where `b` is.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "kernels of x86-64 do"))]
    rounds: bool,
    parallel: bool,
}

/// The target's memory, for tasks that write disjoint parts of it.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

#[expect(unsafe_code, reason = "tasks write disjoint parts of one target")]
// SAFETY: every task writes elements of its own.
unsafe impl Send for Shared {}
#[expect(unsafe_code, reason = "tasks write disjoint parts of one target")]
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Job<'_> {
    /// Multiplies on the way that suits the shape and the machine.
    ///
    /// # Safety
    /// `to` is writable for all rows, which lie `row_stride` apart and don't overlap.
    #[expect(unsafe_code, reason = "the target is a pointer, since it may not be initialized yet")]
    unsafe fn run_into(&self, to: *mut f32, row_stride: usize) {
        if self.a.lines == 0 || self.b.lines == 0 {
            return;
        }
        let target = Shared(to);
        let alone = self.bias.is_none() && self.tails.is_empty();
        let put = |row: usize, column: usize, product: f32| {
            let value = if alone { product } else { product + self.beside(row, column) };
            let to = target.at(row * row_stride + column);
            // SAFETY: the caller's promise; each element is put by one task.
            unsafe { *to = if self.add { *to + value } else { value } };
        };
        #[cfg(target_arch = "x86_64")]
        if let Some(planes) = self.planes() {
            // SAFETY: the caller's promise.
            return unsafe { self.run_tiles(planes, tiles::Out::F32(to), row_stride) };
        }
        if dots::fits(&self.a, &self.b) {
            return dots::dots(&self.a, &self.b, self.scale, self.parallel, |b, a, v| put(a, b, v));
        }
        #[cfg(target_arch = "x86_64")]
        if across::fits(&self.a, &self.b) {
            return across::sums(&self.a, &self.b, self.scale, self.parallel, |b, a, v| {
                put(a, b, v);
            });
        }
        if dots::fits(&self.b, &self.a) && self.tails.is_empty() {
            return dots::dots(&self.b, &self.a, self.scale, self.parallel, put);
        }
        // SAFETY: the caller's promise.
        unsafe {
            match Engine::best() {
                Engine::Portable => self.run_anywhere(to, row_stride),
                #[cfg(target_arch = "x86_64")]
                engine => self.run_packed(engine, to, row_stride),
                #[cfg(not(target_arch = "x86_64"))]
                _ => self.run_anywhere(to, row_stride),
            }
        }
    }

    /// How many bf16 a factor's numbers are sums of, if this is a product for tiles: one where
    /// factors may be rounded, and as many as an f32 takes where there is much to multiply.
    #[cfg(target_arch = "x86_64")]
    fn planes(&self) -> Option<usize> {
        let few = dots::fits(&self.a, &self.b)
            || across::fits(&self.a, &self.b)
            || (dots::fits(&self.b, &self.a) && self.tails.is_empty());
        if Engine::best() != Engine::Amx || few {
            return None;
        }
        let many = self.a.lines >= 16 && self.b.lines >= 16 && self.a.inner >= 32;
        match self.rounds && self.b.is_bf16() {
            true => Some(1),
            false => many.then_some(amx::PLANES),
        }
    }

    /// What is added to one element of the product: bias and tails.
    fn beside(&self, row: usize, column: usize) -> f32 {
        let bias = self.bias.and_then(|bias| bias.get(column)).copied().unwrap_or_default();
        let dot = |(left, right): &(Factor<'_>, Factor<'_>)| -> f32 {
            (0..left.inner).map(|i| left.element(row, i) * right.element(column, i)).sum()
        };
        bias + self.tails.iter().map(dot).sum::<f32>()
    }
}
