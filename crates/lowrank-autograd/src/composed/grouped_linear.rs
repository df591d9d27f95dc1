//! Linear layers side by side, one after the other.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};

use super::{data, product};
use crate::{
    Result, Value, Weight,
    kept::Kept,
    ops::{LowRankStack, expert_pieces},
};

/// [`crate::ops::grouped_linear`] for the matrices `w`, which are `trained` if they are a value's.
pub(crate) fn grouped_linear(
    x: &Value,
    groups: &Arc<[Range<usize>]>,
    (w, trained): (Weight, Option<&Value>),
    terms: &[LowRankStack],
    device: &Device,
) -> Result<Value> {
    let (x_data, half) = (data(device, x)?, w.dtype() == DType::BF16);
    let terms_of = terms.iter().map(|term| SavedTerm::of(term, device));
    let saved = Saved {
        device: device.clone(),
        groups: Arc::clone(groups),
        out: w.dims().get(1).copied().unwrap_or_default(),
        need_x: x.needs_gradient(),
        need_matrix: trained.map(Value::needs_gradient),
        terms: terms_of.collect::<Result<_>>()?,
        w,
    };
    let parts = saved.used().map(|(e, rows)| saved.forward(e, &rows_of(&x_data, &rows)?));
    let y = cat_rows(parts.collect::<Result<_>>()?, saved.out, device)?;
    let mut parents = vec![x];
    parents.extend(trained);
    parents.extend(terms.iter().flat_map(|t| [&t.a, &t.b]));
    let y = Value::record_many("grouped_linear", y, &parents, |_| {
        // An adapter's `h` is made again of `x`.
        let reads_x = saved.need_matrix == Some(true)
            || saved.terms.iter().any(|term| term.need_a || term.need_b);
        let kept = reads_x.then(|| Kept::composed(x, &x_data));
        move |dy: Tensor| {
            let x = kept.map(|kept| kept.tensor()).transpose()?;
            saved.gradients(&dy.contiguous()?, x.as_ref())
        }
    });
    Ok(y.halved_if(half))
}

fn rows_of(x: &Tensor, rows: &Range<usize>) -> Result<Tensor> {
    Ok(x.narrow(0, rows.start, rows.len())?)
}

fn cat_rows(parts: Vec<Tensor>, columns: usize, device: &Device) -> Result<Tensor> {
    match parts.is_empty() {
        true => Ok(Tensor::zeros((0, columns), DType::F32, device)?),
        false => Ok(Tensor::cat(&parts, 0)?),
    }
}

struct Saved {
    device: Device,
    groups: Arc<[Range<usize>]>,
    w: Weight,
    /// Rows of one matrix.
    out: usize,
    need_x: bool,
    need_matrix: Option<bool>,
    terms: Vec<SavedTerm>,
}

struct SavedTerm {
    /// `[experts·r, in]`
    a: Tensor,
    /// `[out, r·experts]`
    b: Tensor,
    scale: f64,
    need_a: bool,
    need_b: bool,
}

impl SavedTerm {
    fn of(term: &LowRankStack, device: &Device) -> Result<Self> {
        Ok(Self {
            a: data(device, &term.a)?,
            b: data(device, &term.b)?,
            scale: f64::from(term.scale),
            need_a: term.a.needs_gradient(),
            need_b: term.b.needs_gradient(),
        })
    }

    /// `A_e` `[r, in]` and `B_e` `[out, r]`.
    fn of_expert(&self, e: usize, experts: usize) -> Result<[Tensor; 2]> {
        let ((out, width), r) = (self.b.dims2()?, self.a.dim(0)? / experts);
        let b = self.b.reshape((out, width / experts, experts))?;
        let b = b.narrow(2, e, 1)?.squeeze(2)?;
        Ok([self.a.narrow(0, e * r, r)?, b.contiguous()?])
    }
}

/// Gradients by expert: of the matrix, and of A and B of each term.
type Found = Vec<Option<[Option<Tensor>; 2]>>;

impl Saved {
    /// The experts that have rows.
    fn used(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.groups.iter().cloned().enumerate().filter(|(_, rows)| !rows.is_empty())
    }

    fn experts(&self) -> usize {
        self.groups.len()
    }

    /// The pieces that make up an expert's matrix and their rows, on the device.
    fn pieces(&self, e: usize) -> Result<Vec<(Range<usize>, Tensor)>> {
        let pieces = expert_pieces(&self.w, self.out, e)?.into_iter();
        pieces.map(|(rows, piece)| Ok((rows, piece.on(&self.device)?))).collect()
    }

    /// `x·W_eᵀ`
    fn times_matrix(&self, e: usize, x: &Tensor) -> Result<Tensor> {
        let parts = self.pieces(e)?.into_iter().map(|(_, w)| product(x, &w.t()?, DType::F32));
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// `dy·W_e`
    fn input_gradient(&self, e: usize, dy: &Tensor) -> Result<Tensor> {
        let mut dx = None;
        for (rows, w) in self.pieces(e)? {
            let dy = dy.narrow(1, rows.start, rows.len())?.contiguous()?;
            let part = product(&dy, &w, DType::F32)?;
            dx = Some(match dx {
                Some(dx) => (dx + part)?,
                None => part,
            });
        }
        let columns = self.w.dims().last().copied().unwrap_or_default();
        let zeros = || Tensor::zeros((dy.dim(0)?, columns), DType::F32, &self.device);
        Ok(dx.map_or_else(zeros, Ok)?)
    }

    fn forward(&self, e: usize, x: &Tensor) -> Result<Tensor> {
        let mut y = self.times_matrix(e, x)?;
        for term in &self.terms {
            let [a, b] = term.of_expert(e, self.experts())?;
            y = (y + (x.matmul(&a.t()?)? * term.scale)?.matmul(&b.t()?)?)?;
        }
        Ok(y)
    }

    /// In the order of the parents: x, matrix, then A and B of each term.
    fn gradients(&self, dy: &Tensor, x: Option<&Tensor>) -> Result<Vec<Option<Tensor>>> {
        let mut dx = Vec::new();
        let mut matrices: Vec<Option<Tensor>> = vec![None; self.experts()];
        let mut terms: Vec<Found> = self.terms.iter().map(|_| vec![None; self.experts()]).collect();
        for (e, rows) in self.used() {
            let dy = rows_of(dy, &rows)?;
            let x = x.map(|x| rows_of(x, &rows)).transpose()?;
            let mut own = self.need_x.then(|| self.input_gradient(e, &dy)).transpose()?;
            if let (Some(x), Some(true)) = (&x, self.need_matrix) {
                matrices[e] = Some(dy.t()?.matmul(x)?);
            }
            for (term, found) in self.terms.iter().zip(&mut terms) {
                let [a, b] = term.of_expert(e, self.experts())?;
                let dh = (dy.matmul(&b)? * term.scale)?;
                own = own.map(|own| own + dh.matmul(&a)?).transpose()?;
                let Some(x) = &x else { continue };
                let da = term.need_a.then(|| dh.t()?.matmul(x)).transpose()?;
                let h = (x.matmul(&a.t()?)? * term.scale)?;
                let db = term.need_b.then(|| dy.t()?.matmul(&h)).transpose()?;
                found[e] = Some([da, db]);
            }
            dx.extend(own);
        }
        let columns = self.w.dims().last().copied().unwrap_or_default();
        let dx = self.need_x.then(|| cat_rows(dx, columns, &self.device)).transpose()?;
        let mut all = vec![dx];
        if let Some(needed) = self.need_matrix {
            let whole = || self.stacked(matrices, &[self.out, columns], 0);
            all.push(needed.then(whole).transpose()?);
        }
        for (term, found) in self.terms.iter().zip(terms) {
            let (a, b) = found.into_iter().map(|f| f.map_or((None, None), |[a, b]| (a, b))).unzip();
            let r = term.a.dim(0)? / self.experts();
            let da = || Ok(self.stacked(a, &[r, columns], 0)?.flatten_to(1)?);
            let db = || Ok(self.stacked(b, &[self.out, r], 2)?.flatten_from(1)?);
            let (da, db): (Option<Result<_>>, Option<Result<_>>) =
                (term.need_a.then(da), term.need_b.then(db));
            all.extend([da.transpose()?, db.transpose()?]);
        }
        Ok(all)
    }

    /// What the experts found, zeros for those without rows, along a new dimension.
    fn stacked(&self, found: Vec<Option<Tensor>>, shape: &[usize], dim: usize) -> Result<Tensor> {
        let zeros = || Ok(Tensor::zeros(shape, DType::F32, &self.device)?);
        let all = found.into_iter().map(|one| one.map_or_else(zeros, Ok));
        Ok(Tensor::stack(&all.collect::<Result<Vec<_>>>()?, dim)?)
    }
}
