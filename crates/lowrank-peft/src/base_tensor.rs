//! One tensor of the base model, and the copies that adapters train in its place.

use std::sync::{PoisonError, RwLock};

use candle_core::{DType, Tensor};
use lowrank_autograd::{Parameter, Result, Value, Weight};

use crate::Pass;

/// Why an adapter has a copy of a base tensor of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyReason {
    /// The module is in `modules_to_save`.
    ModulesToSave,
    /// It is a bias that `bias: all` or `bias: lora_only` trains.
    Bias,
}

/// A tensor as a layer reads it.
pub(crate) enum Operand {
    Frozen(Weight),
    Trained(Value),
}

/// How a file holds a tensor, or some of its rows.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The name in the file.
    pub name: String,
    /// The numbers, as they stand.
    pub weight: Weight,
    /// The dtype that the file has.
    pub dtype: DType,
}

impl Stored {
    /// The shape in the file: `[in, out]` for a Conv1D.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = self.weight.dims().to_vec();
        if self.weight.is_transposed() {
            shape.reverse();
        }
        shape
    }

    /// The tensor as it is saved, in its file's dtype.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let weight = self.weight.clone();
        let weight = if weight.is_transposed() { weight.transpose() } else { weight };
        Ok(weight.to_tensor()?.to_dtype(self.dtype)?.contiguous()?)
    }
}

/// A named tensor of the base model.
///
/// Adapters never change it. One that trains the tensor itself (`modules_to_save`, `bias`) has a
/// copy, which takes its place in passes where that adapter is active.
#[derive(Debug)]
pub struct BaseTensor {
    name: String,
    tied_to: Option<String>,
    /// What it is called in the layer that computes with it, if it is another module's parameter.
    second_name: Option<String>,
    /// What files call it, if something else: one name, or one for each of as many equal parts.
    stored: Vec<String>,
    /// Whether it is one of those that no gradient is made for.
    buffer: bool,
    saved_dtype: DType,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    weight: Weight,
    /// What `weight` was before a merge.
    unmerged: Option<Weight>,
    /// A merge that can't be taken back has changed it.
    changed: bool,
    copies: Vec<(String, CopyReason, Parameter)>,
}

impl BaseTensor {
    /// A matrix, kept as it lies in its file.
    pub fn new(name: impl Into<String>, weight: Weight) -> Self {
        let saved_dtype = weight.dtype();
        let state =
            RwLock::new(State { weight, unmerged: None, changed: false, copies: Vec::new() });
        let (name, stored) = (name.into(), Vec::new());
        Self { name, tied_to: None, second_name: None, stored, buffer: false, saved_dtype, state }
    }

    /// A tensor that is widened to f32 once and written back in the dtype that it had.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn widened(name: impl Into<String>, weight: &Weight) -> Result<Self> {
        let wide = Weight::from_tensor(&weight.to_f32()?)?;
        Ok(Self { saved_dtype: weight.dtype(), ..Self::new(name, wide) })
    }

    /// A tensor that training leaves as it is, whatever is trained around it.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn buffer(name: impl Into<String>, weight: &Weight) -> Result<Self> {
        Ok(Self { buffer: true, ..Self::widened(name, weight)? })
    }

    /// Says what files call it, where that isn't its name in the model: one name, or one for each
    /// of as many parts of its rows.
    #[must_use]
    pub fn stored_as(self, stored: Vec<String>) -> Self {
        Self { stored, ..self }
    }

    /// Says what it is called in the layer that computes with it, where it is another module's.
    #[must_use]
    pub fn also_named(self, name: String) -> Self {
        Self { second_name: Some(name), ..self }
    }

    /// The same memory under a second name, as tied embeddings have it.
    pub fn tied(&self, name: impl Into<String>) -> Self {
        let tied_to = Some(self.tied_to.clone().unwrap_or_else(|| self.name.clone()));
        Self { tied_to, saved_dtype: self.saved_dtype, ..Self::new(name, self.weight()) }
    }

    /// Its name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its name in the layer that computes with it, if that isn't [`BaseTensor::name`].
    pub fn second_name(&self) -> Option<&str> {
        self.second_name.as_deref()
    }

    /// The name of the tensor whose memory it shares, as long as no merge has parted them.
    pub fn tied_to(&self) -> Option<&str> {
        self.tied_to.as_deref().filter(|_| !self.is_merged())
    }

    /// Whether a merge is in force, for the time being or for good: the tensor isn't what the base
    /// model's files hold.
    pub fn is_merged(&self) -> bool {
        self.read(|s| s.unmerged.is_some() || s.changed)
    }

    /// Whether training leaves it as it is; it doesn't count among the parameters.
    pub fn is_buffer(&self) -> bool {
        self.buffer
    }

    /// What files hold of it, part by part.
    ///
    /// # Errors
    /// When its rows don't fall into that many parts.
    pub fn stored(&self) -> Result<Vec<Stored>> {
        let (weight, dtype) = (self.weight(), self.saved_dtype);
        let part = |name: &String, weight| Stored { name: name.clone(), weight, dtype };
        match self.stored.as_slice() {
            [] => Ok(vec![part(&self.name, weight)]),
            [name] if weight.dims().len() < 3 => Ok(vec![part(name, weight)]),
            names => {
                let rows = weight.dims().iter().rev().skip(1).product::<usize>() / names.len();
                let of = |(i, name)| Ok(part(name, weight.rows(i * rows..(i + 1) * rows)?));
                names.iter().enumerate().map(of).collect()
            }
        }
    }

    /// The dtype in which it is saved. Vectors are f32 in memory, whatever their files hold.
    pub fn saved_dtype(&self) -> DType {
        self.saved_dtype
    }

    /// The base model's tensor as it stands (merged, if a merge is in force).
    pub fn weight(&self) -> Weight {
        self.read(|s| s.weight.clone())
    }

    /// Replaces the base model's tensor for good, e.g. by one that an adapter file carries.
    pub fn set_weight(&self, weight: Weight) {
        self.write(|s| s.weight = weight);
    }

    /// The tensor as it is saved: `[in, out]` for a Conv1D, in its file's dtype.
    ///
    /// # Errors
    /// Those of the conversion.
    pub fn to_saved(&self) -> Result<Tensor> {
        let (name, weight) = (self.name.clone(), self.weight());
        Stored { name, weight, dtype: self.saved_dtype }.to_tensor()
    }

    /// Gives `adapter` a copy to train, of what stands here or of `data`; `name` is the copy's
    /// in the adapter's file.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn add_copy(
        &self,
        adapter: &str,
        reason: CopyReason,
        name: String,
        data: Option<&Tensor>,
    ) -> Result<Parameter> {
        let data = match data {
            Some(data) => data.to_device(&self.weight().device())?,
            None => self.to_saved()?,
        };
        let parameter = Parameter::new(name, &data)?;
        self.write(|s| {
            s.copies.retain(|(name, _, _)| name != adapter);
            s.copies.push((adapter.to_owned(), reason, parameter.clone()));
        });
        Ok(parameter)
    }

    /// The copy that `adapter` trains.
    pub fn copy_of(&self, adapter: &str) -> Option<(CopyReason, Parameter)> {
        self.read(|s| {
            let found = s.copies.iter().find(|(name, _, _)| name == adapter);
            found.map(|(_, reason, p)| (*reason, p.clone()))
        })
    }

    /// Whether any adapter has a copy.
    pub(crate) fn copy_of_any(&self) -> bool {
        self.read(|s| !s.copies.is_empty())
    }

    /// Forgets the copy of `adapter`.
    pub fn remove_copy(&self, adapter: &str) {
        self.write(|s| s.copies.retain(|(name, _, _)| name != adapter));
    }

    /// What stands here in this pass: the copy of the first active adapter that has one.
    pub(crate) fn operand(&self, pass: &Pass) -> Operand {
        self.read(|s| {
            let active = |name: &String| pass.adapters().contains(name);
            match s.copies.iter().find(|(name, _, _)| active(name)) {
                Some((_, _, copy)) if s.unmerged.is_none() => {
                    Operand::Trained(copy.value(pass.records()))
                }
                _ => Operand::Frozen(s.weight.clone()),
            }
        })
    }

    /// [`BaseTensor::operand`] of a vector, as a value.
    pub(crate) fn value(&self, pass: &Pass) -> Result<Value> {
        match self.operand(pass) {
            Operand::Trained(value) => Ok(value),
            Operand::Frozen(weight) => Ok(Value::constant(weight.to_f32()?)),
        }
    }

    /// Puts `merged` (of the saved orientation, any dtype) in the tensor's place until
    /// [`BaseTensor::unmerge`]; rounded once to the tensor's dtype.
    pub(crate) fn merge(&self, merged: &Tensor) -> Result<()> {
        let before = self.weight();
        let weight = self.rounded(merged, &before)?;
        let weight = if before.is_transposed() { weight.transpose() } else { weight };
        self.put(before, weight);
        Ok(())
    }

    fn rounded(&self, merged: &Tensor, before: &Weight) -> Result<Weight> {
        Weight::from_tensor(&merged.to_dtype(self.saved_dtype)?.to_dtype(before.dtype())?)
    }

    fn put(&self, before: Weight, weight: Weight) {
        self.write(|s| {
            s.unmerged.get_or_insert(before);
            s.weight = weight;
        });
    }

    /// Merges the sum of each matrix of a stack `[experts, out, in]` and what `delta` says for it,
    /// one after another: beside the result there is never more than one.
    pub(crate) fn merge_sums(&self, delta: impl Fn(usize) -> Result<Tensor>) -> Result<()> {
        let before = self.weight();
        let (experts, height) = match *before.dims() {
            [experts, height, _] => (experts, height),
            _ => (0, 0),
        };
        let merged = |expert: usize| {
            let base = before.rows(expert * height..(expert + 1) * height)?.to_f32()?;
            self.rounded(&(base + delta(expert)?)?, &before)
        };
        let parts = (0..experts).map(merged).collect::<Result<_>>()?;
        let weight = Weight::stacked(parts, before.dims())?;
        self.put(before, weight);
        Ok(())
    }

    /// Merges the sum of what stands here and `delta`, both in the saved orientation.
    pub(crate) fn merge_sum(&self, delta: &Tensor) -> Result<()> {
        self.merge(&(self.to_saved()?.to_dtype(DType::F32)? + delta)?)
    }

    /// Restores exactly what stood here before merging.
    pub(crate) fn unmerge(&self) {
        self.write(|s| {
            if let Some(before) = s.unmerged.take() {
                s.weight = before;
            }
        });
    }

    /// Makes a merge final.
    pub(crate) fn keep_merge(&self) {
        self.write(|s| s.changed |= s.unmerged.take().is_some());
    }

    fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}
