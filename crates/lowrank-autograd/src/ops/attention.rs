//! Attention: `y = softmax(s·q·kᵀ + bias)·v` inside each sequence (arXiv:1706.03762), with
//! grouped key/value heads (arXiv:2305.13245), causal and sliding windows.
//!
//! Saved when any operand trains: `q`, `k`, `v`, the output and two numbers for each row and head;
//! never a matrix of scores.

use std::{ops::Range, sync::Arc};

use candle_core::Tensor;
use half::bf16;

use crate::{
    Dropout, Error, Result, Value, composed,
    elements::Elements,
    kept::Kept,
    kernels::{
        Computed, F32, Floats,
        attention::{self, Operands, Saved, SoftmaxRow, Wanted},
        buffer::zeros,
        product::Pairs,
        tensor,
    },
    profile,
};

const OP: &str = "attention";

/// What an attention layer is, apart from its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a query and key head.
    pub head_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Factor of the scores, mostly `1/√head_dim`.
    pub scale: f32,
    /// Whether a query sees only keys at or before its own position.
    pub causal: bool,
    /// How many keys back a query sees, itself included.
    pub window: Option<usize>,
    /// `c·tanh(score/c)` (Gemma 2).
    pub softcap: Option<f32>,
}

/// One sequence: which rows are its queries and keys, and the first query's place among the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of `q`.
    pub queries: Range<usize>,
    /// Rows of `k` and `v`.
    pub keys: Range<usize>,
    /// Key position of the first query: 0 without a cache.
    pub offset: usize,
}

impl Span {
    /// Spans of sequences packed end to end that attend to themselves.
    pub fn packed(lengths: &[usize]) -> Vec<Self> {
        let mut start = 0;
        let span = |len: &usize| {
            let rows = start..start + len;
            start += len;
            Self { queries: rows.clone(), keys: rows, offset: 0 }
        };
        lengths.iter().map(span).collect()
    }
}

/// `q` `[n, heads·head_dim]`, `k` `[m, kv_heads·head_dim]`, `v` `[m, kv_heads·value_dim]`; returns
/// `[n, heads·value_dim]`, bf16 if `q` is.
///
/// `bias` `[distances, heads]` is added to the scores by key position less query position; its
/// middle row (`distances` is odd) belongs to distance 0. `dropout` acts on the probabilities.
///
/// # Errors
/// Shapes that don't fit each other, spans outside the operands, distances beyond `bias`.
pub fn attention(
    q: &Value,
    k: &Value,
    v: &Value,
    bias: Option<&Value>,
    shape: &AttentionShape,
    spans: &Arc<[Span]>,
    dropout: Option<Dropout>,
) -> Result<Value> {
    let _time = profile::scope(OP);
    check(q.data(), k.data(), v.data(), bias.map(Value::data), shape, spans)?;
    dropout.as_ref().map_or(Ok(()), |d| d.check(OP, q.dims()[0]))?;
    if let Some(device) = composed::device([q.data(), k.data(), v.data()]) {
        return composed::attention([q, k, v], bias, shape, spans, dropout, &device);
    }
    let [q, k, v] = [q.contiguous()?, k.contiguous()?, v.contiguous()?];
    let bias = bias.map(Value::contiguous).transpose()?;
    let bias = bias.as_ref();
    let none = Value::constant(tensor(Vec::new(), &[0, shape.heads])?);
    let bias_value = bias.unwrap_or(&none);
    let n = q.dims()[0];
    let halves = [&q, &k, &v].iter().all(|value| value.half().is_some());
    let pairs = Pairs::best().filter(|_| halves);
    let (output, rows) = {
        let [fq, fk, fv] = [&q, &k, &v].map(|value| Read::of(value.data(), pairs));
        let (fq, fk, fv) = (fq?, fk?, fv?);
        let fb = bias.map(|b| F32::of(OP, b.data())).transpose()?;
        let (q_read, k, v) = (fq.elements(), fk.elements(), fv.elements());
        let (bias, dropout) = (fb.as_deref(), dropout.as_ref());
        let of = Operands { q: q_read, k, v, bias, shape, dropout, pairs };
        let len = n * shape.heads * shape.value_dim;
        if q.is_narrow() {
            let mut output: Vec<bf16> = zeros(len);
            let rows = attention::forward(of, spans, &mut output);
            (Computed::Bf16(output), rows)
        } else {
            let mut output: Vec<f32> = zeros(len);
            let rows = attention::forward(of, spans, &mut output);
            (Computed::F32(output), rows)
        }
    };
    let output = output.tensor(&[n, shape.heads * shape.value_dim])?;
    let has_bias = bias.is_some();
    Ok(Value::record(OP, output.clone(), [&q, &k, &v, bias_value], |needs| {
        let wanted = Wanted { q: needs[0], k: needs[1], v: needs[2], bias: needs[3] };
        let kept = [&q, &k, &v].map(|value| Kept::of(value, value.data()));
        let kept_output = Kept::of(&q, &output);
        let bias = bias_value.data().clone();
        let (shape, spans, rows) = (shape.clone(), Arc::clone(spans), rows);
        move |dy: Tensor| {
            let saved = Tensors {
                operands: kept.map(Kept::into_tensor),
                bias: has_bias.then_some(bias),
                output: kept_output.into_tensor(),
                dy: dy.contiguous()?,
            };
            saved.backward(&shape, &spans, &rows, dropout.as_ref(), pairs, wanted)
        }
    }))
}

/// What the backward pass reads.
struct Tensors {
    operands: [Tensor; 3],
    bias: Option<Tensor>,
    output: Tensor,
    dy: Tensor,
}

impl Tensors {
    /// The gradients of the operands and the bias.
    fn backward(
        &self,
        shape: &AttentionShape,
        spans: &[Span],
        rows: &[SoftmaxRow],
        dropout: Option<&Dropout>,
        pairs: Option<Pairs>,
        wanted: Wanted,
    ) -> Result<[Option<Tensor>; 4]> {
        let [q, k, v] = &self.operands;
        let of = |tensor| Read::of(tensor, pairs);
        let (fq, fk, fv, fo, fdy) = (of(q)?, of(k)?, of(v)?, of(&self.output)?, of(&self.dy)?);
        let fb = self.bias.as_ref().map(|b| F32::of(OP, b)).transpose()?;
        let bias = fb.as_deref();
        let of = [&fq, &fk, &fv].map(Read::elements);
        let of = Operands { q: of[0], k: of[1], v: of[2], bias, shape, dropout, pairs };
        let saved = Saved { output: fo.elements(), rows, dy: fdy.elements() };
        let gradients = attention::backward(of, spans, saved, wanted);
        let keep = |wanted: bool, g: Computed, like: &Tensor| {
            wanted.then(|| g.tensor(like.dims())).transpose()
        };
        let dbias = Computed::F32(gradients.bias);
        Ok([
            keep(wanted.q, gradients.q, q)?,
            keep(wanted.k, gradients.k, k)?,
            keep(wanted.v, gradients.v, v)?,
            self.bias.as_ref().map(|b| keep(wanted.bias, dbias, b)).transpose()?.flatten(),
        ])
    }
}

/// Keys and values of one sequence, as they grow during generation.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// In their place on another device.
    elsewhere: Option<composed::Cache>,
}

impl KeyValues {
    /// Appends rows: `k` `[t, kv_heads·head_dim]` and `v` `[t, kv_heads·value_dim]`.
    fn append(&mut self, k: &[f32], v: &[f32]) {
        self.keys.extend_from_slice(k);
        self.values.extend_from_slice(v);
    }

    /// Rows held, for keys of `width` elements.
    fn len(&self, width: usize) -> usize {
        self.sizes()[0] / width.max(1)
    }

    /// Elements of keys and of values.
    fn sizes(&self) -> [usize; 2] {
        let here = [self.keys.len(), self.values.len()];
        self.elsewhere.as_ref().map_or(here, composed::Cache::sizes)
    }
}

/// Attention without gradients over what `caches` (one for each span) hold and the new rows, which
/// are appended to them first. The spans' `queries` are the new rows, of `k` and `v` too; `keys` and
/// `offset` follow from the caches. After an error the caches are what they were.
///
/// # Errors
/// As [`attention`], and when the number of caches isn't that of the spans or a cache was filled
/// for another shape.
pub fn attention_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    shape: &AttentionShape,
    spans: &[Span],
    caches: &mut [KeyValues],
) -> Result<Tensor> {
    let _time = profile::scope("attention_cached");
    let (kw, vw) = (shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim);
    check_caches(q, k, v, bias, shape, spans, caches)?;
    if let Some(device) = composed::device([q, k, v]) {
        let mut caches = caches.iter_mut().map(|cache| &mut cache.elsewhere).collect::<Vec<_>>();
        return composed::attention_cached([q, k, v], bias, shape, spans, &mut caches, &device);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let bias = bias.map(Tensor::contiguous).transpose()?;
    let (fq, fk, fv) = (F32::of(OP, &q)?, F32::of(OP, &k)?, F32::of(OP, &v)?);
    let fb = bias.as_ref().map(|b| F32::of(OP, b)).transpose()?;
    let (qw, yw) = (shape.heads * shape.head_dim, shape.heads * shape.value_dim);
    let n = q.dims().first().copied().unwrap_or_default();
    let mut output = vec![0.0; n * yw];
    for (span, cache) in spans.iter().zip(caches) {
        let rows = |width: usize| span.queries.start * width..span.queries.end * width;
        let (len, before) = (span.queries.len(), cache.len(kw));
        cache.append(&fk[rows(kw)], &fv[rows(vw)]);
        let of = Operands {
            q: Elements::F32(&fq[rows(qw)]),
            k: Elements::F32(&cache.keys),
            v: Elements::F32(&cache.values),
            bias: fb.as_deref(),
            shape,
            dropout: None,
            pairs: None,
        };
        let whole = Span { queries: 0..len, keys: 0..before + len, offset: before };
        attention::forward(of, &[whole], &mut output[rows(yw)]);
    }
    tensor(output, &[n, yw])
}

fn check_caches(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    shape: &AttentionShape,
    spans: &[Span],
    caches: &[KeyValues],
) -> Result<()> {
    let wrong = |what, found: Vec<usize>, must_be: String| {
        Err(Error::Shape { op: OP, what, found, must_be })
    };
    if caches.len() != spans.len() {
        let must_be = format!("{}, one for each span", spans.len());
        return wrong("the number of caches", vec![caches.len()], must_be);
    }
    let new = |span: &Span| Span { keys: span.queries.clone(), offset: 0, ..span.clone() };
    check(q, k, v, None, shape, &spans.iter().map(new).collect::<Vec<_>>())?;
    let (kw, vw) = (shape.kv_heads * shape.head_dim, shape.kv_heads * shape.value_dim);
    for (span, cache) in spans.iter().zip(caches) {
        let before = cache.len(kw);
        let sizes = cache.sizes();
        if sizes != [before * kw, before * vw] {
            return wrong("a cache", sizes.to_vec(), format!("rows of {kw} and {vw} elements"));
        }
        let len = span.queries.len();
        let whole = Span { queries: 0..len, keys: 0..before + len, offset: before };
        bias.map_or(Ok(()), |bias| check_bias(bias, shape, &whole))?;
    }
    Ok(())
}

/// A tensor's elements as kernels read them: f32, unless they multiply in bf16.
enum Read<'a> {
    AsTheyLie(Floats<'a>),
    Wide(F32<'a>),
}

impl<'a> Read<'a> {
    fn of(tensor: &'a Tensor, pairs: Option<Pairs>) -> Result<Self> {
        Ok(match pairs {
            Some(_) => Self::AsTheyLie(Floats::of(OP, tensor)?),
            None => Self::Wide(F32::of(OP, tensor)?),
        })
    }

    fn elements(&self) -> Elements<'_> {
        match self {
            Self::AsTheyLie(floats) => floats.elements(),
            Self::Wide(floats) => Elements::F32(floats),
        }
    }
}

fn check(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    shape: &AttentionShape,
    spans: &[Span],
) -> Result<()> {
    let wrong = |what, found: Vec<usize>, must_be: String| {
        Err(Error::Shape { op: OP, what, found, must_be })
    };
    if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
        let must_be = "a number of query heads that its key/value heads divide".to_owned();
        return wrong("the head counts", vec![shape.heads, shape.kv_heads], must_be);
    }
    let sizes = [shape.heads, shape.head_dim, shape.value_dim];
    if sizes.contains(&0) {
        let must_be = "larger than 0".to_owned();
        return wrong("the heads' number, width and value width", sizes.to_vec(), must_be);
    }
    let (n, m) = (q.dims().first().copied(), k.dims().first().copied());
    let widths = [
        ("q", q, n, shape.heads * shape.head_dim),
        ("k", k, m, shape.kv_heads * shape.head_dim),
        ("v", v, m, shape.kv_heads * shape.value_dim),
    ];
    for (what, t, rows, width) in widths {
        let rows = rows.unwrap_or_default();
        if t.dims() != [rows, width] {
            return wrong(what, t.dims().to_vec(), format!("[{rows}, {width}]"));
        }
    }
    for span in spans {
        let inside = |r: &Range<usize>, n: usize| r.start <= r.end && r.end <= n;
        let (n, m) = (n.unwrap_or_default(), m.unwrap_or_default());
        let last = span.offset.checked_add(span.queries.len());
        if !inside(&span.queries, n) || !inside(&span.keys, m) || last.is_none() {
            let found = vec![span.queries.start, span.queries.end, span.keys.start, span.keys.end];
            return wrong("a span", found, format!("inside {n} queries and {m} keys"));
        }
        bias.map_or(Ok(()), |bias| check_bias(bias, shape, span))?;
    }
    check_apart(spans)
}

/// An error if a query row belongs to two of the spans.
fn check_apart(spans: &[Span]) -> Result<()> {
    let mut queries: Vec<_> = spans.iter().map(|s| &s.queries).filter(|q| !q.is_empty()).collect();
    queries.sort_by_key(|q| q.start);
    match queries.windows(2).find(|pair| pair[1].start < pair[0].end) {
        None => Ok(()),
        Some(pair) => {
            let found = vec![pair[0].start, pair[0].end, pair[1].start, pair[1].end];
            let must_be = "without rows in common".to_owned();
            Err(Error::Shape { op: OP, what: "the queries of two spans", found, must_be })
        }
    }
}

/// An error unless `bias` has an odd number of rows and reaches every distance inside `span`.
fn check_bias(bias: &Tensor, shape: &AttentionShape, span: &Span) -> Result<()> {
    let reach = span.keys.len().max(span.offset.saturating_add(span.queries.len()));
    let least = reach.saturating_mul(2).saturating_sub(1);
    match bias.dims() {
        &[rows, heads] if rows >= least && rows % 2 == 1 && heads == shape.heads => Ok(()),
        found => {
            let must_be = format!("an odd number of at least {least} rows of {}", shape.heads);
            Err(Error::Shape { op: OP, what: "the bias", found: found.to_vec(), must_be })
        }
    }
}
