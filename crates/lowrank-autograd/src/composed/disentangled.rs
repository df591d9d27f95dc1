//! Disentangled attention, one sequence after the other, all heads at once.

use std::{ops::Range, sync::Arc};

use candle_core::{D, DType, Device, Tensor};

use super::{
    attention::{assembled, by_head, by_row, masks},
    data, places,
};
use crate::{Dropout, Result, Value, ops::Span};

/// What doesn't change from sequence to sequence.
pub(crate) struct Setting {
    /// The row of each distance, the middle one for 0.
    pub(crate) rows: Arc<[u32]>,
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<Dropout>,
    /// Whether there is a table of keys, and one of queries.
    pub(crate) tables: [bool; 2],
}

/// One sequence's operands by head, `[heads, rows, dim]`.
struct Sequence {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// Tables of all distances, and which row each query with each key has, `[heads, len, len]`.
    keys: Option<Tensor>,
    queries: Option<Tensor>,
    index: Tensor,
    /// The same with keys first.
    turned: Tensor,
}

/// [`crate::ops::disentangled_attention`] of `q`, `k`, `v` and the tables of keys and queries.
pub(crate) fn disentangled_attention(
    operands: [Value; 5],
    setting: Setting,
    spans: &Arc<[Span]>,
    device: &Device,
) -> Result<Value> {
    let there = |i: usize| i < 3 || setting.tables[i - 3];
    let tensor = |(i, value): (usize, &Value)| match there(i) {
        true => data(device, value),
        false => Ok(value.data().clone()),
    };
    let tensors = operands.iter().enumerate().map(tensor).collect::<Result<Vec<_>>>()?;
    let parents: Vec<&Value> = operands.iter().collect();
    let (n, width) = tensors[0].dims2()?;
    let mut parts = Vec::with_capacity(spans.len());
    for span in spans.iter() {
        parts.push((span.queries.clone(), setting.forward(&tensors, span)?));
    }
    let y = assembled(parts, n, width, DType::F32, device)?;
    let spans = Arc::clone(spans);
    Ok(Value::record_many("disentangled_attention", y, &parents, |_| {
        move |dy: Tensor| setting.gradients(&tensors, &dy.contiguous()?, &spans)
    }))
}

fn rows_of(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}

impl Setting {
    fn sequence(&self, tensors: &[Tensor], span: &Span) -> Result<Sequence> {
        let (heads, len, device) = (self.heads, span.keys.len(), tensors[0].device());
        let real = |x: &Tensor| by_head(&rows_of(x, &span.keys)?, heads, DType::F32);
        let table = |i: usize| {
            self.tables[i].then(|| by_head(&tensors[3 + i], heads, DType::F32)).transpose()
        };
        let middle = self.rows.len() / 2;
        let row = |i: usize, j: usize| self.rows.get(middle + i - j).map_or(0, |row| *row as usize);
        let pairs = (0..len).flat_map(|i| (0..len).map(move |j| row(i, j)));
        let index = places(device, pairs)?.reshape((1, len, len))?;
        let of_heads = |index: Tensor| index.broadcast_as((heads, len, len))?.contiguous();
        Ok(Sequence {
            q: real(&tensors[0])?,
            k: real(&tensors[1])?,
            v: real(&tensors[2])?,
            keys: table(0)?,
            queries: table(1)?,
            turned: of_heads(index.transpose(1, 2)?)?,
            index: of_heads(index)?,
        })
    }

    /// Probabilities without dropout, and the mask's factors.
    fn probabilities(&self, of: &Sequence, span: &Span) -> Result<(Tensor, Option<Tensor>)> {
        let mut z = of.q.matmul(&of.k.t()?)?;
        if let Some(keys) = &of.keys {
            z = (z + of.q.matmul(&keys.t()?)?.gather(&of.index, 2)?)?;
        }
        if let Some(queries) = &of.queries {
            let by_key = of.k.matmul(&queries.t()?)?.gather(&of.turned, 2)?;
            z = (z + by_key.transpose(1, 2)?.contiguous()?)?;
        }
        let z = (z * f64::from(self.scale))?;
        let exp = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?.exp()?;
        let p = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
        let real = Span { queries: span.keys.clone(), ..span.clone() };
        let mask = self.dropout.as_ref();
        let factors = mask.map(|mask| masks(mask, self.heads, &real, p.device())).transpose()?;
        Ok((p, factors))
    }

    /// Attends in one sequence; its padding, to all rows alike.
    fn forward(&self, tensors: &[Tensor], span: &Span) -> Result<Tensor> {
        let of = self.sequence(tensors, span)?;
        let (p, factors) = self.probabilities(&of, span)?;
        let p = factors.map_or(Ok(p.clone()), |factors| p * factors)?;
        let y = by_row(&p.matmul(&of.v)?, DType::F32)?;
        if span.queries == span.keys {
            return Ok(y);
        }
        let mean = rows_of(&tensors[2], &span.queries)?.mean_keepdim(0)?;
        let width = y.dim(1)?;
        let mut parts = Vec::new();
        let [before, after] = padding(span).map(|rows| rows.len());
        let around = |rows: usize| mean.broadcast_as((rows, width))?.contiguous();
        if before > 0 {
            parts.push(around(before)?);
        }
        parts.push(y);
        if after > 0 {
            parts.push(around(after)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Gradients of `q`, `k`, `v` and the tables.
    fn gradients(
        &self,
        tensors: &[Tensor],
        dy: &Tensor,
        spans: &[Span],
    ) -> Result<Vec<Option<Tensor>>> {
        let device = dy.device();
        let mut parts = [const { Vec::new() }; 3];
        let heads = |table: &Tensor| -> Result<Tensor> {
            let (rows, width) = table.dims2()?;
            Ok(Tensor::zeros((self.heads, rows, width / self.heads), DType::F32, device)?)
        };
        let zeros = |i: usize| self.tables[i].then(|| heads(&tensors[3 + i])).transpose();
        let mut tables = [zeros(0)?, zeros(1)?];
        for span in spans {
            let own = rows_of(dy, &span.keys)?;
            let [dq, dk, dv] = self.of_one(tensors, &own, span, &mut tables)?;
            let (real, all) = (span.keys.clone(), span.queries.clone());
            parts[0].push((real.clone(), dq));
            parts[1].push((real.clone(), dk));
            let [before, after] = padding(span);
            let mut dv = dv.pad_with_zeros(0, before.len(), after.len())?;
            for rows in [before, after].iter().filter(|rows| !rows.is_empty()) {
                let sum = (rows_of(dy, rows)?.sum_keepdim(0)? * (1.0 / all.len() as f64))?;
                dv = dv.broadcast_add(&sum)?;
            }
            parts[2].push((all, dv));
        }
        let (n, width) = tensors[0].dims2()?;
        let mut found = Vec::with_capacity(5);
        for parts in parts {
            found.push(Some(assembled(parts, n, width, DType::F32, device)?));
        }
        for table in tables {
            found.push(table.map(|table| by_row(&table, DType::F32)).transpose()?);
        }
        Ok(found)
    }

    /// Gradients of one sequence's real rows; those of tables are added to `tables`.
    fn of_one(
        &self,
        tensors: &[Tensor],
        dy: &Tensor,
        span: &Span,
        tables: &mut [Option<Tensor>; 2],
    ) -> Result<[Tensor; 3]> {
        let of = self.sequence(tensors, span)?;
        let dy = by_head(dy, self.heads, DType::F32)?;
        let (p, factors) = self.probabilities(&of, span)?;
        let dropped = factors.as_ref().map_or(Ok(p.clone()), |factors| &p * factors)?;
        let dv = dropped.transpose(1, 2)?.matmul(&dy)?;
        let mut dp = dy.matmul(&of.v.t()?)?;
        if let Some(factors) = factors {
            dp = (dp * factors)?;
        }
        let mean = (&dp * &p)?.sum_keepdim(D::Minus1)?;
        let ds = ((dp.broadcast_sub(&mean)? * p)? * f64::from(self.scale))?;
        let turned = ds.transpose(1, 2)?.contiguous()?;
        let (mut dq, mut dk) = (ds.matmul(&of.k)?, turned.matmul(&of.q)?);
        if let (Some(keys), Some(sum)) = (&of.keys, &mut tables[0]) {
            let by_row = zeros_by_row(&ds, keys)?.scatter_add(&of.index, &ds, 2)?;
            dq = (dq + by_row.matmul(keys)?)?;
            *sum = (&*sum + by_row.transpose(1, 2)?.matmul(&of.q)?)?;
        }
        if let (Some(queries), Some(sum)) = (&of.queries, &mut tables[1]) {
            let by_row = zeros_by_row(&ds, queries)?.scatter_add(&of.turned, &turned, 2)?;
            dk = (dk + by_row.matmul(queries)?)?;
            *sum = (&*sum + by_row.transpose(1, 2)?.matmul(&of.k)?)?;
        }
        let rows = |x: &Tensor| by_row(x, DType::F32);
        Ok([rows(&dq)?, rows(&dk)?, rows(&dv)?])
    }
}

/// A sequence's rows before and after those that are real.
fn padding(span: &Span) -> [Range<usize>; 2] {
    [span.queries.start..span.keys.start, span.keys.end..span.queries.end]
}

/// Zeros for sums by the rows of a table, `[heads, len, rows]`.
fn zeros_by_row(scores: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (heads, len, _) = scores.dims3()?;
    Ok(Tensor::zeros((heads, len, table.dim(1)?), DType::F32, scores.device())?)
}
