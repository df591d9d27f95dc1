//! Products with weights: what linear layers and their input's gradient multiply.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Computed, Factor, Job, View, dots, reach};
use crate::{
    Result, Weight,
    elements::Elements,
    kernels::elementwise::{narrow, widened},
    weight::Matrix,
};

/// What is added to the product of a linear layer, beside its bias: `left·rightᵀ` of f32 matrices
/// with few columns, as adapters have them.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    /// `[n, r]`
    pub(crate) left: View<'a>,
    /// `[out, r]` in the forward pass, `[in, r]` in the backward one.
    pub(crate) right: View<'a>,
}

/// What a linear layer multiplies and adds.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'a> {
    /// `[n, in]`, or the result's gradient `[n, out]` in the backward pass.
    pub(crate) x: View<'a>,
    pub(crate) weight: &'a Weight,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) terms: &'a [Term<'a>],
}

/// `x·Wᵀ + bias + Σ terms` for `w` `[out, in]`: `[n, out]`, rounded to bf16 if `narrow`.
///
/// bf16 weights are multiplied as bf16, `x` rounded to it, where the machine is fast at that;
/// sums are f32 in any case.
pub(crate) fn linear(of: Linear<'_>, narrow: bool) -> Result<Computed> {
    by_weight(of, of.weight.matrix("linear")?, narrow)
}

/// `dy·W + Σ terms` for `dy`, which stands for `x`, and `w` `[out, in]`: `[n, in]`.
pub(crate) fn linear_input_gradient(of: Linear<'_>, narrow: bool) -> Result<Computed> {
    by_weight(of, of.weight.matrix("linear")?.transposed(), narrow)
}

/// [`linear`] into memory of `n` rows, so many elements apart, of the type that decides about
/// rounding.
pub(crate) fn linear_into<T: Room>(to: &mut [T], row_stride: usize, of: Linear<'_>) -> Result<()> {
    with_job(of, of.weight.matrix("linear")?, false, |job| T::receive(to, row_stride, job))
}

/// The sum of [`linear_input_gradient`] of some layers as [`linear_into`], in rows next to each other.
pub(crate) fn linear_input_gradients_into<T: Room>(to: &mut [T], of: &[Linear<'_>]) -> Result<()> {
    let matrix = |of: &Linear<'_>| Ok::<_, crate::Error>(of.weight.matrix("linear")?.transposed());
    if let [one] = of {
        let m = matrix(one)?;
        return with_job(*one, m, false, |job| T::receive(to, m.rows, job));
    }
    let mut wide = vec![0.0; to.len()];
    for one in of {
        let m = matrix(one)?;
        with_job(*one, m, true, |job| f32::receive(&mut wide, m.rows, job))?;
    }
    T::round(to, &wide);
    Ok(())
}

/// An element of a product's result.
pub(crate) trait Room: Copy + Default + Send {
    /// Writes a product to rows so many elements apart, which lie inside `to`.
    fn receive(to: &mut [Self], row_stride: usize, job: &Job<'_>);
    /// The nearest numbers of this type.
    fn round(to: &mut [Self], from: &[f32]);
    /// New elements as what they are.
    fn computed(elements: Vec<Self>) -> Computed;
}

impl Room for f32 {
    fn receive(to: &mut [Self], row_stride: usize, job: &Job<'_>) {
        check_room(to, row_stride, job);
        #[expect(unsafe_code, reason = "products take the target as a pointer")]
        // SAFETY: the check makes room for every row.
        unsafe {
            job.run_into(to.as_mut_ptr(), row_stride);
        };
    }

    fn round(to: &mut [Self], from: &[f32]) {
        to.copy_from_slice(from);
    }

    fn computed(elements: Vec<Self>) -> Computed {
        Computed::F32(elements)
    }
}

impl Room for bf16 {
    fn receive(to: &mut [Self], row_stride: usize, job: &Job<'_>) {
        check_room(to, row_stride, job);
        #[cfg(target_arch = "x86_64")]
        if job.planes() == Some(1) {
            #[expect(unsafe_code, reason = "products take the target as a pointer")]
            // SAFETY: the check makes room for every row.
            return unsafe {
                job.run_tiles(1, tiles::Out::Bf16(to.as_mut_ptr()), row_stride);
            };
        }
        let width = job.b.lines;
        let mut wide = vec![0.0; job.a.lines * width];
        f32::receive(&mut wide, width, job);
        let rows = wide.chunks_exact(width.max(1));
        to.chunks_mut(row_stride.max(1)).zip(rows).for_each(|(to, from)| {
            narrow(&mut to[..width], from);
        });
    }

    fn round(to: &mut [Self], from: &[f32]) {
        narrow(to, from);
    }

    fn computed(elements: Vec<Self>) -> Computed {
        Computed::Bf16(elements)
    }
}

/// Every row of a product lies inside `to`, and none in another one.
fn check_room<T>(to: &[T], row_stride: usize, job: &Job<'_>) {
    let (rows, columns) = (job.a.lines, job.b.lines);
    assert!(reach(rows, columns, row_stride, 1) <= to.len(), "the target holds the product");
    assert!(columns <= row_stride || rows <= 1, "target rows overlap");
}

/// `x·Mᵀ` with `m` reading the weight's memory.
#[expect(unsafe_code, reason = "the result isn't written before the product does")]
fn by_weight(of: Linear<'_>, m: Matrix, narrow: bool) -> Result<Computed> {
    with_job(of, m, false, |job| {
        let len = job.a.lines * m.rows;
        #[cfg(target_arch = "x86_64")]
        if narrow && job.planes() == Some(1) {
            let mut y = Vec::with_capacity(len);
            // SAFETY: the capacity holds every row, and the product writes every element.
            unsafe {
                job.run_tiles(1, tiles::Out::Bf16(y.as_mut_ptr()), m.rows);
                y.set_len(len);
            }
            return Computed::Bf16(y);
        }
        let mut y = Vec::with_capacity(len);
        // SAFETY: as above.
        unsafe {
            job.run_into(y.as_mut_ptr(), m.rows);
            y.set_len(len);
        }
        Computed::of(y, narrow)
    })
}

/// Calls `run` with the product of `x` and the matrix that `m` reads in the weight, which may be
/// added to what stands in the target.
fn with_job<R>(of: Linear<'_>, m: Matrix, add: bool, run: impl FnOnce(&Job<'_>) -> R) -> Result<R> {
    let Linear { x, bias, terms, .. } = of;
    assert_eq!(x.columns, m.columns, "inner dimensions");
    // Inner products read f32 alone on this side.
    let wide = match x.data {
        Elements::Bf16(data) if x.rows <= dots::FEW => widened(data),
        _ => Vec::new(),
    };
    let x = if wide.is_empty() { x } else { View { data: Elements::F32(&wide), ..x } };
    assert!(bias.is_none_or(|bias| bias.len() == m.rows), "one bias for each row of the weight");
    let tails: Vec<_> = terms.iter().map(|t| (t.left.by_rows(), t.right.by_rows())).collect();
    let fit = |(left, right): &(Factor<'_>, Factor<'_>)| {
        left.lines == x.rows && right.lines == m.rows && left.inner == right.inner
    };
    assert!(tails.iter().all(fit), "terms fit the product");
    of.weight.with_elements(|elements| {
        let b = Factor::rows(elements, m);
        let (a, tails) = (x.by_rows(), tails.as_slice());
        run(&Job { a, b, scale: 1.0, add, bias, tails, rounds: true, parallel: true })
    })
}
