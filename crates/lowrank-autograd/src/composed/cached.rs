//! Attention over what a cache holds.

use candle_core::{DType, Device, Tensor};

use super::{
    attention::{Setting, assembled},
    on,
};
use crate::{
    Result,
    ops::{AttentionShape, Span},
};

/// Keys `[rows, kv_heads·head_dim]` and values of one sequence on a device.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// Elements of keys and of values.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        [self.keys.elem_count(), self.values.elem_count()]
    }

    /// A cache with further rows.
    fn appended(before: Option<&Self>, k: Tensor, v: Tensor) -> Result<Self> {
        Ok(match before {
            None => Self { keys: k.contiguous()?, values: v.contiguous()? },
            Some(before) => Self {
                keys: Tensor::cat(&[&before.keys, &k], 0)?,
                values: Tensor::cat(&[&before.values, &v], 0)?,
            },
        })
    }
}

/// [`crate::ops::attention_cached`].
pub(crate) fn attention_cached(
    [q, k, v]: [&Tensor; 3],
    bias: Option<&Tensor>,
    shape: &AttentionShape,
    spans: &[Span],
    caches: &mut [&mut Option<Cache>],
    device: &Device,
) -> Result<Tensor> {
    let (q, k, v) = (on(device, q)?, on(device, k)?, on(device, v)?);
    let bias = bias.map(|bias| on(device, bias)).transpose()?;
    let setting = Setting { shape, bias: bias.as_ref(), dropout: None };
    let mut output = Vec::with_capacity(spans.len());
    let mut grown = Vec::with_capacity(spans.len());
    for (span, cache) in spans.iter().zip(caches.iter()) {
        let rows = |x: &Tensor| x.narrow(0, span.queries.start, span.queries.len());
        let cache = Cache::appended(cache.as_ref(), rows(&k)?, rows(&v)?)?;
        let (len, all) = (span.queries.len(), cache.keys.dim(0)?);
        let whole = Span { queries: 0..len, keys: 0..all, offset: all - len };
        let operands = [rows(&q)?, cache.keys.clone(), cache.values.clone()];
        let y = setting.forward(&operands, &whole)?;
        output.push((span.queries.clone(), y));
        grown.push(Some(cache));
    }
    let width = shape.heads * shape.value_dim;
    let y = assembled(output, q.dim(0)?, width, DType::F32, device)?;
    caches.iter_mut().zip(grown).for_each(|(cache, grown)| **cache = grown);
    Ok(y)
}
