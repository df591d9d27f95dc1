//! Sums, scalings and their like over whole tensors.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};

use super::{F32, activation::zip};
use crate::Result;

/// `f` of every pair of elements of two f32 tensors of one shape.
pub(crate) fn combine(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<Tensor> {
    super::check_dims(op, "the second operand", b, a.dims())?;
    let (x, y) = (a.contiguous()?, b.contiguous()?);
    super::tensor(zip(&F32::of(op, &x)?, &F32::of(op, &y)?, f), a.dims())
}

/// `a += b`, f32, both contiguous and of one shape.
pub(crate) fn add_assign(a: &Tensor, b: &Tensor) -> Result<()> {
    super::check_dims("add_assign", "the second operand", b, a.dims())?;
    Ok(a.inplace_op2(b, &AddAssign)?)
}

/// `a *= factor`, f32, contiguous.
pub(crate) fn scale_assign(a: &Tensor, factor: f32) -> Result<()> {
    Ok(a.inplace_op1(&ScaleAssign(factor))?)
}

/// Sum of squares in f64, in the order of memory.
pub(crate) fn sum_of_squares(a: &Tensor) -> Result<f64> {
    Ok(F32::of("sum_of_squares", a)?.iter().map(|&v| f64::from(v).powi(2)).sum())
}

/// `out[j] += Σ_i rows[i, j]`.
pub(crate) fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    let mut sums = vec![0.0; columns];
    for row in rows.chunks_exact(columns.max(1)) {
        for (s, v) in sums.iter_mut().zip(row) {
            *s += v;
        }
    }
    sums
}

struct AddAssign;

impl InplaceOp2 for AddAssign {
    fn name(&self) -> &'static str {
        "add_assign"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<()> {
        let b = slice(b.as_slice::<f32>()?, lb)?;
        for (a, b) in slice_mut(a, la)?.iter_mut().zip(b) {
            *a += b;
        }
        Ok(())
    }
}

struct ScaleAssign(f32);

impl InplaceOp1 for ScaleAssign {
    fn name(&self) -> &'static str {
        "scale_assign"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout) -> candle_core::Result<()> {
        slice_mut(a, la)?.iter_mut().for_each(|v| *v *= self.0);
        Ok(())
    }
}

fn not_contiguous() -> candle_core::Error {
    candle_core::Error::Msg("an in-place operand must be a contiguous f32 tensor".into())
}

fn slice<'a>(data: &'a [f32], layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(not_contiguous)?;
    data.get(start..end).ok_or_else(not_contiguous)
}

/// The elements of an in-place operand.
pub(crate) fn slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(not_contiguous)?;
    match storage {
        CpuStorage::F32(data) => data.get_mut(start..end).ok_or_else(not_contiguous),
        _ => Err(not_contiguous()),
    }
}
