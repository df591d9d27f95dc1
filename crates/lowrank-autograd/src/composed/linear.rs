//! Linear layers with low-rank adapters.

use candle_core::{DType, Device, Tensor};

use super::{add_product, data, factor, floats, masked, matmul, on, product, wide};
use crate::{Dropout, Result, Value, Weight, kept::Kept, ops::LowRank};

/// [`crate::ops::linear`] for the matrix `w`, which is `trained` if it is a value's; the result may be
/// bf16 if `narrow`.
pub(crate) fn linear(
    x: &Value,
    w: &Weight,
    trained: Option<&Value>,
    bias: Option<&Value>,
    terms: &[LowRank],
    narrow: bool,
    device: &Device,
) -> Result<Value> {
    let (x_data, matrix) = (floats(device, x)?, w.on(device)?);
    // What is added to the product is added in f32.
    let alone = narrow && bias.is_none() && terms.is_empty();
    let dtype = if alone { DType::BF16 } else { DType::F32 };
    let mut y = product(&factor(device, x, w.dtype())?, &matrix.t()?, dtype)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&data(device, bias)?)?;
    }
    let mut parents = vec![x];
    parents.extend(trained);
    parents.extend(bias);
    let mut kept = Vec::with_capacity(terms.len());
    let adapted = if terms.is_empty() { x_data.clone() } else { wide(&x_data)? };
    for term in terms {
        let saved;
        (y, saved) = SavedTerm::added(y, term, &adapted)?;
        kept.push(saved);
        parents.extend([&term.a, &term.b]);
        parents.extend(&term.bias);
    }
    let y = Value::record_many("linear", y, &parents, |_| {
        let need_matrix = trained.map(Value::needs_gradient);
        let reads_x = need_matrix == Some(true) || kept.iter().any(|t| t.need_a);
        let saved = Saved {
            x: reads_x.then(|| Kept::composed(x, &x_data)),
            transposed: w.is_transposed(),
            need_x: x.needs_gradient().then_some(x.data().dtype()),
            need_matrix,
            need_bias: bias.map(Value::needs_gradient),
            terms: kept,
            matrix,
        };
        move |dy: Tensor| saved.gradients(&dy.contiguous()?)
    });
    Ok(y.halved_if(w.dtype() == DType::BF16))
}

struct Saved {
    /// Kept only if a matrix or an `A` trains.
    x: Option<Kept>,
    /// `[out, in]`
    matrix: Tensor,
    transposed: bool,
    /// The dtype of `x`.
    need_x: Option<DType>,
    need_matrix: Option<bool>,
    need_bias: Option<bool>,
    terms: Vec<SavedTerm>,
}

struct SavedTerm {
    a: Tensor,
    b: Tensor,
    /// `s·h`, kept only if `B` trains.
    h: Option<Tensor>,
    scale: f32,
    dropout: Option<Dropout>,
    need_a: bool,
    need_bias: Option<bool>,
}

impl SavedTerm {
    /// `y` with what the term adds to it, and what its gradients need.
    fn added(y: Tensor, term: &LowRank, x: &Tensor) -> Result<(Tensor, Self)> {
        let (device, scale) = (x.device(), term.scale);
        let (a, b) = (data(device, &term.a)?, data(device, &term.b)?);
        let h = matmul(&masked(x, term.dropout.as_ref())?, &a.t()?, scale)?;
        let mut y = add_product(y, &h, &b.t()?, 1.0)?;
        if let Some(bias) = &term.bias {
            y = y.broadcast_add(&(data(device, bias)? * f64::from(scale))?)?;
        }
        let saved = Self {
            h: term.b.needs_gradient().then_some(h),
            dropout: term.dropout.clone(),
            need_a: term.a.needs_gradient(),
            need_bias: term.bias.as_ref().map(Value::needs_gradient),
            a,
            b,
            scale,
        };
        Ok((y, saved))
    }

    /// `s·dy·B`
    fn hidden_gradient(&self, dy: &Tensor) -> Result<Tensor> {
        matmul(dy, &self.b, self.scale)
    }

    /// Gradients of A, B and B's bias.
    fn gradients(
        &self,
        dy: &Tensor,
        x: Option<&Tensor>,
        dh: Option<&Tensor>,
    ) -> Result<Vec<Option<Tensor>>> {
        let da = match (x, dh) {
            (Some(x), Some(dh)) if self.need_a => {
                Some(matmul(&dh.t()?, &masked(x, self.dropout.as_ref())?, 1.0)?)
            }
            _ => None,
        };
        let db = self.h.as_ref().map(|h| matmul(&dy.t()?, h, 1.0)).transpose()?;
        let mut found = vec![da, db];
        if let Some(needed) = self.need_bias {
            found.push(needed.then(|| dy.sum(0)? * f64::from(self.scale)).transpose()?);
        }
        Ok(found)
    }
}

impl Saved {
    /// In the order of the parents: x, matrix, bias, then A, B and bias of each term.
    fn gradients(&self, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dy = &on(self.matrix.device(), dy)?;
        let x = self.x.as_ref().map(Kept::tensor).transpose()?;
        let narrow = self.terms.is_empty() && self.matrix.dtype() == DType::BF16;
        let dtype = |of_x| if narrow { of_x } else { DType::F32 };
        let dx = self.need_x.map(|of_x| product(dy, &self.matrix, dtype(of_x)));
        let mut dx = dx.transpose()?;
        let summed = [self.need_matrix, self.need_bias].contains(&Some(true));
        let dy = &if summed || !self.terms.is_empty() { wide(dy)? } else { dy.clone() };
        let mut rest = Vec::new();
        if let Some(needed) = self.need_matrix {
            let dw = |x: &Tensor| match self.transposed {
                true => matmul(&x.t()?, dy, 1.0),
                false => matmul(&dy.t()?, x, 1.0),
            };
            rest.push(x.as_ref().filter(|_| needed).map(dw).transpose()?);
        }
        if let Some(needed) = self.need_bias {
            rest.push(needed.then(|| dy.sum(0)).transpose()?);
        }
        for term in &self.terms {
            let needed = self.need_x.is_some() || term.need_a;
            let dh = needed.then(|| term.hidden_gradient(dy)).transpose()?;
            if let (Some(sum), Some(dh)) = (dx.take(), &dh) {
                dx = Some(match &term.dropout {
                    None => add_product(sum, dh, &term.a, 1.0)?,
                    mask => (sum + masked(&matmul(dh, &term.a, 1.0)?, mask.as_ref())?)?,
                });
            }
            rest.extend(term.gradients(dy, x.as_ref(), dh.as_ref())?);
        }
        Ok(std::iter::once(dx).chain(rest).collect())
    }
}
