//! Disentangled attention (arXiv:2006.03654): queries and keys meet each other, and each meets what
//! the distance between them says: `softmax(s·(qᵢ·kⱼ + qᵢ·K[r] + kⱼ·Q[r]))·v` with a row `r` of
//! the tables `K` and `Q` for each distance `i-j`.
//!
//! Saved when any operand trains: the operands. Scores are computed a head and a sequence at a time,
//! and once more in the backward pass; there are never more of them than one matrix a thread.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;

use super::Span;
use crate::{
    Dropout, Error, Result, Value, composed,
    kernels::{F32, check_dims, dims2, disentangled as kernel, tensor},
    profile,
};

const OP: &str = "disentangled_attention";

/// What distances say; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Distances {
    /// What queries meet, `[rows, heads·head_dim]`.
    pub keys: Option<Value>,
    /// What keys meet, `[rows, heads·head_dim]`.
    pub queries: Option<Value>,
    /// The row of each distance, of the query's place less the key's: an odd number of them, the
    /// middle one for 0. They never descend, and aren't read without a table.
    pub rows: Arc<[u32]>,
}

/// `q`, `k` and `v` `[n, heads·head_dim]`; returns the same shape. Scores are multiplied by `scale`.
///
/// Keys and values are the spans' `keys` among the same rows. A query outside of its span's keys is
/// padding, and attends to all rows of the span alike, as in transformers.
///
/// # Errors
/// Shapes that don't fit each other, spans outside the operands, distances without a row.
pub fn disentangled_attention(
    [q, k, v]: [&Value; 3],
    distances: &Distances,
    heads: usize,
    scale: f32,
    spans: &Arc<[Span]>,
    dropout: Option<Dropout>,
) -> Result<Value> {
    let _time = profile::scope(OP);
    let (n, width) = check([q, k, v], heads)?;
    let has_table = distances.keys.is_some() || distances.queries.is_some();
    let reach = has_table.then_some(distances.rows.len());
    spans.iter().try_for_each(|span| check_span(span, n, reach))?;
    dropout.as_ref().map_or(Ok(()), |d| d.check(OP, n))?;
    let none = Value::constant(tensor(Vec::new(), &[0, width])?);
    let table = |value: &Option<Value>| -> Result<Value> {
        let Some(value) = value else { return Ok(none.clone()) };
        check_table(value, width, &distances.rows)?;
        value.contiguous()
    };
    let (keys, queries) = (table(&distances.keys)?, table(&distances.queries)?);
    let operands = [q.contiguous()?, k.contiguous()?, v.contiguous()?, keys, queries];
    let rows = Arc::clone(&distances.rows);
    if let Some(device) = composed::device(operands.iter().map(Value::data)) {
        let tables = [distances.keys.is_some(), distances.queries.is_some()];
        let setting = composed::Disentangled { rows, heads, scale, dropout, tables };
        return composed::disentangled_attention(operands, setting, spans, &device);
    }
    let spans = Arc::clone(spans);
    let run = move |tensors: &[Tensor; 5], dy: Option<(&Tensor, [bool; 5])>| {
        let [q, k, v, keys, queries] = tensors.each_ref().map(|t| F32::of(OP, t));
        let (q, k, v, keys, queries) = (q?, k?, v?, keys?, queries?);
        let of = kernel::Operands {
            q: &q,
            k: &k,
            v: &v,
            keys: &keys,
            queries: &queries,
            rows: &rows,
            heads,
            width,
            scale,
            dropout: dropout.as_ref(),
        };
        match dy {
            None => Ok(vec![kernel::forward(of, &spans)]),
            Some((dy, wanted)) => Ok(kernel::backward(of, &spans, &F32::of(OP, dy)?, wanted)),
        }
    };
    let tensors = operands.each_ref().map(|value| value.data().clone());
    let y: Result<Vec<Vec<f32>>> = run(&tensors, None);
    let y = tensor(y?.concat(), &[n, width])?;
    let [q, k, v, keys, queries] = &operands;
    Ok(Value::record(OP, y, [q, k, v, keys, queries], |wanted| {
        move |dy: Tensor| {
            let found = run(&tensors, Some((&dy.contiguous()?, wanted)))?;
            let mut gradients = [const { None }; 5];
            for (i, (gradient, like)) in found.into_iter().zip(&tensors).enumerate() {
                gradients[i] = wanted[i].then(|| tensor(gradient, like.dims())).transpose()?;
            }
            Ok(gradients)
        }
    }))
}

/// The operands' rows and columns.
fn check(operands: [&Value; 3], heads: usize) -> Result<(usize, usize)> {
    let (n, width) = dims2(OP, "q", operands[0].data())?;
    if heads == 0 || !width.is_multiple_of(heads) {
        let must_be = format!("a divisor of {width} columns");
        return Err(Error::Shape { op: OP, what: "the heads", found: vec![heads], must_be });
    }
    for (what, operand) in [("k", operands[1]), ("v", operands[2])] {
        check_dims(OP, what, operand.data(), &[n, width])?;
    }
    Ok((n, width))
}

fn check_span(span: &Span, n: usize, distances: Option<usize>) -> Result<()> {
    let inside = |a: &Range<usize>, b: &Range<usize>| {
        b.start <= a.start && a.start < a.end && a.end <= b.end
    };
    if !inside(&span.queries, &(0..n)) || !inside(&span.keys, &span.queries) {
        let found = vec![span.queries.start, span.queries.end, span.keys.start, span.keys.end];
        let must_be = format!("keys among queries among {n} rows, none of them empty");
        return Err(Error::Shape { op: OP, what: "a span", found, must_be });
    }
    let least = 2 * span.keys.len() - 1;
    match distances.filter(|found| *found < least || found.is_multiple_of(2)) {
        None => Ok(()),
        Some(found) => {
            let must_be = format!("an odd number from {least} on");
            Err(Error::Shape { op: OP, what: "the distances", found: vec![found], must_be })
        }
    }
}

fn check_table(table: &Value, width: usize, rows: &[u32]) -> Result<()> {
    let (len, _) = dims2(OP, "a table of distances", table.data())?;
    check_dims(OP, "a table of distances", table.data(), &[len, width])?;
    match rows.iter().enumerate().find(|(_, row)| **row as usize >= len) {
        Some((place, row)) => Err(Error::Index { op: OP, index: *row as usize, place, len }),
        None if !rows.is_sorted() => {
            let must_be = "ascending".to_owned();
            Err(Error::Shape { op: OP, what: "the distances' rows", found: Vec::new(), must_be })
        }
        None => Ok(()),
    }
}
