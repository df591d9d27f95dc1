//! A convolution over the tokens of a sequence, zeros around it: it reads n-grams. Paper:
//! arXiv:2006.03654. Reference: transformers `models/deberta_v2/modeling_deberta_v2.py`,
//! `ConvLayer`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use lowrank_autograd::{
    Result, Value,
    ops::{self, Activation, Matrix},
};
use lowrank_peft::{Pass, layers::Bare};

use crate::{Builder, Config, Sequences};

/// `y[i] = b + Σ W[t]·x[i + t - (width-1)/2]`.
#[derive(Clone, Debug)]
pub struct Convolution {
    /// `[hidden_size, hidden_size, width]`
    weight: Bare,
    bias: Bare,
    width: usize,
    /// What its result goes through, in the end.
    pub activation: Activation,
}

impl Convolution {
    /// The convolution at `b`, with as many tokens in sight as `width` says.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or the config asks for another kind.
    pub fn build(hidden: usize, width: usize, c: &Config, b: &Builder) -> crate::Result<Self> {
        if width.is_multiple_of(2) {
            return Err(c.wrong("conv_kernel_size", "an odd number"));
        }
        if c.size_or("conv_groups", 1)? != 1 {
            return Err(c.not_implemented("conv_groups", "1"));
        }
        Ok(Self {
            weight: b.parameter("weight", &[hidden, hidden, width])?,
            bias: b.parameter("bias", &[hidden])?,
            width,
            activation: c.activation("conv_act", "tanh")?,
        })
    }

    /// `x` `[n, hidden_size]` → the same, before the activation.
    ///
    /// # Errors
    /// When `x` doesn't fit.
    pub fn forward(&self, x: &Value, sequences: &Sequences, pass: &Pass) -> Result<Value> {
        let hidden = x.dims().last().copied().unwrap_or_default();
        let weight = self.weight.rows(pass)?;
        let bias = self.bias.value(pass)?;
        let mut sum: Option<Value> = None;
        for tap in 0..self.width {
            let weight = ops::columns(&weight, tap..tap + 1)?;
            let value = &ops::reshape(&weight, &[hidden, hidden])?;
            let matrix = Matrix::Trained { value, transposed: false };
            let neighbours = neighbours(x, tap, self.width / 2, sequences)?;
            let bias = (tap == 0).then_some(&bias);
            let part = ops::linear(&neighbours, matrix, bias, Vec::new())?;
            sum = Some(sum.map_or(Ok(part.clone()), |sum| ops::add(&sum, &part))?);
        }
        sum.map_or(Ok(x.clone()), Ok)
    }
}

/// The row `tap - middle` places after each row, zeros beyond the sequence.
fn neighbours(x: &Value, tap: usize, middle: usize, sequences: &Sequences) -> Result<Value> {
    if tap == middle {
        return Ok(x.clone());
    }
    let width = x.dims().last().copied().unwrap_or_default();
    let mut rows = Vec::with_capacity(x.dims().first().copied().unwrap_or_default());
    let mut inside = Vec::with_capacity(rows.capacity() * width);
    for span in sequences.spans.iter() {
        for row in span.queries.clone() {
            let found = (row + tap).checked_sub(middle).filter(|row| span.queries.contains(row));
            rows.push(found.unwrap_or(row));
            let factor = if found.is_some() { 1.0f32 } else { 0.0 };
            inside.extend(std::iter::repeat_n(factor, width));
        }
    }
    let rows: Arc<[usize]> = rows.into();
    let inside = Tensor::from_vec(inside, x.dims(), &Device::Cpu)?;
    ops::mul(&ops::select_rows(x, &rows)?, &Value::constant(inside))
}
