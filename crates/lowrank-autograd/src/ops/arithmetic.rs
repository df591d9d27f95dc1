//! Sums, products and changes of shape; nothing is saved but the factors of a product and
//! what was clipped.

use candle_core::{DType, Tensor};

use crate::{
    Error, Result, Value, composed,
    kernels::{
        F32, check_dims, dims2,
        elementwise::{column_sums, combine, map, scaled, sum},
        rows::gather,
        tensor,
    },
    profile,
};

/// `a + b`, of one shape: f32, whatever they are.
///
/// # Errors
/// When the shapes differ.
pub fn add(a: &Value, b: &Value) -> Result<Value> {
    let _time = profile::scope("add");
    if let Some(device) = composed::device([a.data(), b.data()]) {
        check_dims("add", "the second operand", b.data(), a.dims())?;
        return composed::add(a, b, &device);
    }
    let y = combine("add", a.data(), b.data(), |a, b| a + b)?;
    Ok(Value::record("add", y, [a, b], |_| |dy: Tensor| Ok([Some(dy.clone()), Some(dy)])))
}

/// The same numbers as f32; `x` itself where it is.
///
/// # Errors
/// Those of the tensor library.
pub fn widen(x: &Value) -> Result<Value> {
    if !x.is_narrow() {
        return Ok(x.clone());
    }
    let y = x.data().to_dtype(DType::F32)?;
    Ok(Value::record("widen", y, [x], |_| |dy: Tensor| Ok([Some(dy)])))
}

/// `x + row` in every row of `x` `[n, d]`, `row` being `[d]` or `[1, d]`.
///
/// # Errors
/// When the shapes don't fit.
pub fn add_row(x: &Value, row: &Value) -> Result<Value> {
    let _time = profile::scope("add_row");
    const OP: &str = "add_row";
    let (n, d) = dims2(OP, "the input", x.data())?;
    let shape = row.dims().to_vec();
    if shape != [d] && shape != [1, d] {
        let must_be = format!("[{d}] or [1, {d}]");
        return Err(Error::Shape { op: OP, what: "the row", found: shape, must_be });
    }
    if let Some(device) = composed::device([x.data(), row.data()]) {
        return composed::add_row(x, row, &device);
    }
    let (data, added) = (x.data().contiguous()?, row.data().contiguous()?);
    let y = {
        let (x, added) = (F32::of(OP, &data)?, F32::of(OP, &added)?);
        gather(n, d, |i, to| {
            let from = x[i * d..][..d].iter().zip(added.iter());
            to.iter_mut().zip(from).for_each(|(y, (x, added))| *y = x + added);
        })
    };
    Ok(Value::record(OP, tensor(y, &[n, d])?, [x, row], |[_, need_row]| {
        move |dy: Tensor| {
            let sums = |dy: &Tensor| {
                let dy = dy.contiguous()?;
                tensor(column_sums(&F32::of(OP, &dy)?, d), &shape)
            };
            let drow = need_row.then(|| sums(&dy)).transpose()?;
            Ok([Some(dy), drow])
        }
    }))
}

/// `a·b`, element by element.
///
/// # Errors
/// When the shapes differ.
pub fn mul(a: &Value, b: &Value) -> Result<Value> {
    let _time = profile::scope("mul");
    if let Some(device) = composed::device([a.data(), b.data()]) {
        check_dims("mul", "the second operand", b.data(), a.dims())?;
        return composed::mul(a, b, &device);
    }
    let y = combine("mul", a.data(), b.data(), |a, b| a * b)?;
    Ok(Value::record("mul", y, [a, b], |[need_a, need_b]| {
        let b = need_a.then(|| b.data().clone());
        let a = need_b.then(|| a.data().clone());
        move |dy: Tensor| {
            let da = b.map(|b| combine("mul", &dy, &b, |d, b| d * b)).transpose()?;
            let db = a.map(|a| combine("mul", &dy, &a, |d, a| d * a)).transpose()?;
            Ok([da, db])
        }
    }))
}

/// `factor·x`.
///
/// # Errors
/// When `x` is neither f32 nor bf16.
pub fn scale(x: &Value, factor: f32) -> Result<Value> {
    let _time = profile::scope("scale");
    if let Some(device) = composed::device([x.data()]) {
        return composed::scale(x, factor, &device);
    }
    let y = scaled("scale", x.data(), factor)?;
    Ok(Value::record("scale", y, [x], |_| {
        move |dy: Tensor| Ok([Some(scaled("scale", &dy, factor)?)])
    }))
}

/// `x + offset`, element by element.
///
/// # Errors
/// When `x` is neither f32 nor bf16.
pub fn shift(x: &Value, offset: f32) -> Result<Value> {
    let _time = profile::scope("shift");
    if let Some(device) = composed::device([x.data()]) {
        return composed::shift(x, offset, &device);
    }
    let data = x.data().contiguous()?;
    let y = F32::of("shift", &data)?.iter().map(|x| x + offset).collect();
    let y = tensor(y, x.dims())?;
    Ok(Value::record("shift", y, [x], |_| |dy: Tensor| Ok([Some(dy)])))
}

/// Every element's nearest number from `-limit` to `limit`; beyond them the gradient is 0. Saved:
/// which elements lie within.
///
/// # Errors
/// When `x` is neither f32 nor bf16.
pub fn clip(x: &Value, limit: f32) -> Result<Value> {
    let _time = profile::scope("clip");
    if let Some(device) = composed::device([x.data()]) {
        return composed::clip(x, limit, &device);
    }
    let data = x.data().contiguous()?;
    let elements = F32::of("clip", &data)?;
    let nearest = |x| {
        if x > limit {
            limit
        } else if x < -limit {
            -limit
        } else {
            x
        }
    };
    let y = tensor(map(&elements, nearest), x.dims())?;
    Ok(Value::record("clip", y, [x], |_| {
        let within: Vec<bool> = elements.iter().map(|x| x.abs() <= limit).collect();
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let dx = F32::of("clip", &dy)?;
            let dx = dx.iter().zip(&within).map(|(d, within)| if *within { *d } else { 0.0 });
            Ok([Some(tensor(dx.collect(), dy.dims())?)])
        }
    }))
}

/// The same elements under another shape.
///
/// # Errors
/// When the number of elements differs.
pub fn reshape(x: &Value, shape: &[usize]) -> Result<Value> {
    let _time = profile::scope("reshape");
    let before = x.dims().to_vec();
    let y = x.data().contiguous()?.reshape(shape)?;
    Ok(Value::record("reshape", y, [x], |_| {
        move |dy: Tensor| Ok([Some(dy.contiguous()?.reshape(before)?)])
    }))
}

/// The sum of all elements, a scalar; added up in f64.
///
/// # Errors
/// When `x` is neither f32 nor bf16.
pub fn sum_all(x: &Value) -> Result<Value> {
    let _time = profile::scope("sum_all");
    if let Some(device) = composed::device([x.data()]) {
        return composed::sum_all(x, &device);
    }
    let shape = x.dims().to_vec();
    let data = x.data().contiguous()?;
    let y = tensor(vec![sum(&F32::of("sum_all", &data)?) as f32], &[])?;
    Ok(Value::record("sum_all", y, [x], |_| {
        move |dy: Tensor| {
            let dx = vec![dy.to_scalar::<f32>()?; shape.iter().product()];
            Ok([Some(tensor(dx, &shape)?)])
        }
    }))
}
