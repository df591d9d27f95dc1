//! Picking rows and columns. The gradient goes back to where the element came from.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Tensor};

use crate::{
    Error, Result, Value,
    kernels::{F32, dims2, tensor},
};

/// Rows `rows` of `x` `[n, d]`, in that order, repeats allowed: `[rows.len(), d]`.
///
/// # Errors
/// [`Error::Index`] for a row outside `x`.
pub fn select_rows(x: &Value, rows: &Arc<[usize]>) -> Result<Value> {
    const OP: &str = "select_rows";
    let (n, d) = dims2(OP, "the input", x.data())?;
    let data = x.data().contiguous()?;
    let from = F32::of(OP, &data)?;
    let mut y = Vec::with_capacity(rows.len() * d);
    for (place, &row) in rows.iter().enumerate() {
        if row >= n {
            return Err(Error::Index { op: OP, index: row, place, len: n });
        }
        y.extend_from_slice(from.get(row * d..(row + 1) * d).unwrap_or_default());
    }
    let rows = Arc::clone(rows);
    Ok(Value::record(OP, tensor(y, &[rows.len(), d])?, [x], |_| {
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let mut dx = vec![0.0; n * d];
            for (from, &row) in F32::of(OP, &dy)?.chunks_exact(d.max(1)).zip(rows.iter()) {
                if let Some(to) = dx.get_mut(row * d..(row + 1) * d) {
                    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
                }
            }
            Ok([Some(tensor(dx, &[n, d])?)])
        }
    }))
}

/// Columns `range` of `x` `[n, d]`, as a contiguous matrix of its own.
///
/// # Errors
/// When the range lies outside `x`.
pub fn columns(x: &Value, range: Range<usize>) -> Result<Value> {
    let (n, d) = dims2("columns", "the input", x.data())?;
    if range.start > range.end || range.end > d {
        let found = vec![range.start, range.end];
        let must_be = format!("two ascending numbers up to {d}");
        return Err(Error::Shape { op: "columns", what: "the range", found, must_be });
    }
    let y = x.data().narrow(1, range.start, range.len())?.contiguous()?;
    Ok(Value::record("columns", y, [x], |_| {
        move |dy: Tensor| {
            let dx = Tensor::zeros((n, d), DType::F32, dy.device())?;
            let dx = dx.slice_assign(&[0..n, range], &dy.contiguous()?)?;
            Ok([Some(dx)])
        }
    }))
}
