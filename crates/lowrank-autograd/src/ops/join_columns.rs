//! Matrices side by side. The gradient goes back to where the column came from.

use candle_core::Tensor;

use crate::{
    Error, Result, Value, composed,
    kernels::{F32, check_dims, dims2, rows::gather, tensor},
    profile,
};

const OP: &str = "join_columns";

/// The columns of all of `parts`, `[n, d]` each with a `d` of its own, one part after the other:
/// `[n, sum of d]`.
///
/// # Errors
/// When there are no parts or they differ in their number of rows.
pub fn join_columns(parts: &[Value]) -> Result<Value> {
    let _time = profile::scope(OP);
    let Some(first) = parts.first() else {
        let must_be = "at least one".to_owned();
        return Err(Error::Shape { op: OP, what: "the parts", found: vec![0], must_be });
    };
    let (n, _) = dims2(OP, "the first part", first.data())?;
    let mut widths = Vec::with_capacity(parts.len());
    for part in parts {
        let (_, width) = dims2(OP, "a part", part.data())?;
        check_dims(OP, "a part", part.data(), &[n, width])?;
        widths.push(width);
    }
    if let Some(device) = composed::device(parts.iter().map(Value::data)) {
        return composed::join_columns(parts, widths, &device);
    }
    let total = widths.iter().sum();
    let data: Vec<Tensor> =
        parts.iter().map(|part| Ok(part.data().contiguous()?)).collect::<Result<_>>()?;
    let elements = data.iter().map(|t| F32::of(OP, t)).collect::<Result<Vec<_>>>()?;
    let y = gather(n, total, |i, mut row| {
        for (part, &width) in elements.iter().zip(&widths) {
            let (to, rest) = row.split_at_mut(width);
            to.copy_from_slice(&part[i * width..][..width]);
            row = rest;
        }
    });
    let parents: Vec<&Value> = parts.iter().collect();
    Ok(Value::record_many(OP, tensor(y, &[n, total])?, &parents, |needs| {
        let needs = needs.to_vec();
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dy = F32::of(OP, &dy)?;
            let mut start = 0;
            let gradients = widths.iter().zip(needs).map(|(&width, needed)| {
                let from = start;
                start += width;
                let part = || {
                    gather(n, width, |i, row| row.copy_from_slice(&dy[i * total + from..][..width]))
                };
                needed.then(|| tensor(part(), &[n, width])).transpose()
            });
            gradients.collect()
        }
    }))
}
