//! Picking rows and columns. The gradient goes back to where the element came from.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};

use crate::{
    Error, Result, Value, composed,
    kernels::{F32, Floats, check_dims, dims2, rows as kernel, tensor},
    profile,
};

/// Rows `rows` of `x` `[n, d]`, in that order, repeats allowed: `[rows.len(), d]`, bf16 if `x` is.
///
/// # Errors
/// [`Error::Index`] for a row outside `x`.
pub fn select_rows(x: &Value, rows: &Arc<[usize]>) -> Result<Value> {
    let _time = profile::scope("select_rows");
    const OP: &str = "select_rows";
    let (n, d) = dims2(OP, "the input", x.data())?;
    if let Some((place, &row)) = rows.iter().enumerate().find(|(_, row)| **row >= n) {
        return Err(Error::Index { op: OP, index: row, place, len: n });
    }
    if let Some(device) = composed::device([x.data()]) {
        return composed::select_rows(x, rows, &device);
    }
    let data = x.data().contiguous()?;
    let y = kernel::select(Floats::of(OP, &data)?.elements(), rows, d).tensor(&[rows.len(), d])?;
    let rows = Arc::clone(rows);
    Ok(Value::record(OP, y, [x], |_| {
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dy = Floats::of(OP, &dy)?;
            let dx = kernel::scatter_add(dy.elements(), rows.iter().copied(), n, d);
            Ok([Some(tensor(dx, &[n, d])?)])
        }
    }))
}

/// The rows of matrices of one width, one matrix after the other: bf16 if all of them are.
///
/// # Errors
/// When the widths differ, or there is no matrix.
pub fn concat_rows(parts: &[&Value]) -> Result<Value> {
    let _time = profile::scope("concat_rows");
    const OP: &str = "concat_rows";
    let first = parts.first().map_or(0, |part| part.dims().last().copied().unwrap_or_default());
    let mut lengths = Vec::with_capacity(parts.len());
    for part in parts {
        let (rows, _) = dims2(OP, "a part", part.data())?;
        check_dims(OP, "a part", part.data(), &[rows, first])?;
        lengths.push(rows);
    }
    let device = composed::device(parts.iter().map(|part| part.data())).unwrap_or(Device::Cpu);
    // Of one dtype: bf16 only where all of them are.
    let narrow = parts.iter().all(|part| part.is_narrow());
    let dtype = if narrow { DType::BF16 } else { DType::F32 };
    let data = parts.iter().map(|part| Ok(part.data().to_device(&device)?.to_dtype(dtype)?));
    let data: Vec<Tensor> = data.collect::<Result<_>>()?;
    let y = Tensor::cat(&data, 0)?;
    Ok(Value::record_many(OP, y, parts, |_| {
        move |dy: Tensor| {
            let mut start = 0;
            let part = |&rows: &usize| {
                start += rows;
                Ok(Some(dy.narrow(0, start - rows, rows)?))
            };
            lengths.iter().map(part).collect()
        }
    }))
}

/// Columns `range` of `x` `[n, d]`, as a contiguous matrix of its own.
///
/// # Errors
/// When the range lies outside `x`.
pub fn columns(x: &Value, range: Range<usize>) -> Result<Value> {
    let _time = profile::scope("columns");
    const OP: &str = "columns";
    let (n, d) = dims2(OP, "the input", x.data())?;
    if range.start > range.end || range.end > d {
        let found = vec![range.start, range.end];
        let must_be = format!("two ascending numbers up to {d}");
        return Err(Error::Shape { op: OP, what: "the range", found, must_be });
    }
    if let Some(device) = composed::device([x.data()]) {
        return composed::columns(x, &range, &device);
    }
    let data = x.data().contiguous()?;
    let y = kernel::columns(&F32::of(OP, &data)?, n, d, &range);
    Ok(Value::record(OP, tensor(y, &[n, range.len()])?, [x], |_| {
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dx = kernel::spread_columns(&F32::of(OP, &dy)?, n, d, &range);
            Ok([Some(tensor(dx, &[n, d])?)])
        }
    }))
}
