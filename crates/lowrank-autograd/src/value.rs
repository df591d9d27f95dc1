//! A tensor and, if a trainable parameter leads to it, its place on the tape.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use crate::{
    Error, Gradients, Result,
    kept::Half,
    tape::{Backward, Node},
};

/// A tensor that the backward pass may come through. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Value {
    data: Tensor,
    trace: Trace,
    /// Set where weights of bf16 lead here: then results are bf16 unless they are sums, and what is
    /// kept is (see [`Kept`](crate::kept::Kept)).
    half: Option<Half>,
}

/// What leads to a value.
#[derive(Clone, Debug)]
enum Trace {
    /// Nothing trainable.
    Constant,
    /// A place on the tape.
    Recorded(Arc<Node>),
    /// An input of a block that is run without being recorded, of which only is known whether
    /// anything trainable leads here.
    Unrecorded { trains: bool },
}

impl Value {
    /// A value that nothing trainable leads to: operations on it record and save nothing.
    pub fn constant(data: Tensor) -> Self {
        Self { data, trace: Trace::Constant, half: None }
    }

    pub(crate) fn with_node(data: Tensor, node: Arc<Node>) -> Self {
        Self { data, trace: Trace::Recorded(node), half: None }
    }

    /// An input of a block that isn't to be recorded: neither is any operation that it leads to,
    /// while [`Value::needs_gradient`] of their results is what it would be.
    pub(crate) fn unrecorded(&self) -> Self {
        let trace = Trace::Unrecorded { trains: self.needs_gradient() };
        Self { data: self.data.clone(), trace, half: self.half.clone() }
    }

    pub(crate) fn is_unrecorded(&self) -> bool {
        matches!(self.trace, Trace::Unrecorded { .. })
    }

    /// The tensor itself: f32, or bf16 where weights of bf16 lead here.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// The shape's dimensions.
    pub fn dims(&self) -> &[usize] {
        self.data.dims()
    }

    /// Whether a trainable parameter leads here.
    pub fn needs_gradient(&self) -> bool {
        !matches!(self.trace, Trace::Constant | Trace::Unrecorded { trains: false })
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        match &self.trace {
            Trace::Recorded(node) => Some(node),
            Trace::Constant | Trace::Unrecorded { .. } => None,
        }
    }

    /// The same place on the tape, with the tensor laid out row by row as kernels read it.
    pub(crate) fn contiguous(&self) -> Result<Self> {
        Ok(Self { data: self.data.contiguous()?, ..self.clone() })
    }

    /// The same tensor, cut off from the tape.
    pub fn detach(&self) -> Self {
        Self { trace: Trace::Constant, ..self.clone() }
    }

    /// The same tensor at another place of the tape.
    pub(crate) fn at(&self, node: Arc<Node>) -> Self {
        Self { trace: Trace::Recorded(node), ..self.clone() }
    }

    /// The value as one of weights of bf16, if `half`.
    pub(crate) fn halved_if(self, half: bool) -> Self {
        if half { Self { half: Some(Half::default()), ..self } } else { self }
    }

    /// The value with its bf16 version, if one was made with it.
    pub(crate) fn with_narrow(self, narrow: Option<Tensor>) -> Self {
        if let (Some(place), Some(narrow)) = (&self.half, narrow) {
            place.get_or_init(|| narrow);
        }
        self
    }

    pub(crate) fn half(&self) -> Option<&Half> {
        self.half.as_ref()
    }

    /// Whether its tensor is bf16.
    pub(crate) fn is_narrow(&self) -> bool {
        self.data.dtype() == DType::BF16
    }

    /// The mark of what these lead to.
    fn half_of(parents: &[&Value]) -> Option<Half> {
        parents.iter().any(|p| p.half.is_some()).then(Half::default)
    }

    /// The result of an operation on a fixed number of parents.
    ///
    /// `save` is asked which parents need gradients and returns the backward function, which holds
    /// exactly what it will need; it is not called at all when no parent needs one. The function
    /// maps the gradient of the result to the gradients of the parents; `None` means zero, and
    /// entries of parents that need none are dropped.
    pub fn record<const N: usize, B>(
        op: &'static str,
        data: Tensor,
        parents: [&Value; N],
        save: impl FnOnce([bool; N]) -> B,
    ) -> Value
    where
        B: FnOnce(Tensor) -> Result<[Option<Tensor>; N]> + Send + 'static,
    {
        let half = Self::half_of(&parents);
        if let Some(trace) = Self::without_record(&parents) {
            return Self { data, trace, half };
        }
        let backward = save(parents.map(Value::needs_gradient));
        let backward: Backward = Box::new(move |dy, _| Ok(backward(dy)?.into()));
        Value { data, trace: Trace::Recorded(Node::operation(op, &parents, backward)), half }
    }

    /// [`Value::record`] for a number of parents that is known only at run time.
    pub fn record_many<B>(
        op: &'static str,
        data: Tensor,
        parents: &[&Value],
        save: impl FnOnce(&[bool]) -> B,
    ) -> Value
    where
        B: FnOnce(Tensor) -> Result<Vec<Option<Tensor>>> + Send + 'static,
    {
        let half = Self::half_of(parents);
        if let Some(trace) = Self::without_record(parents) {
            return Self { data, trace, half };
        }
        let needs: Vec<bool> = parents.iter().map(|p| p.needs_gradient()).collect();
        let backward = save(&needs);
        let backward: Backward = Box::new(move |dy, _| backward(dy));
        Value { data, trace: Trace::Recorded(Node::operation(op, parents, backward)), half }
    }

    /// The trace of an operation's result where there is nothing to record.
    fn without_record(parents: &[&Value]) -> Option<Trace> {
        let trains = parents.iter().any(|p| p.needs_gradient());
        if parents.iter().any(|p| p.is_unrecorded()) {
            return Some(Trace::Unrecorded { trains });
        }
        (!trains).then_some(Trace::Constant)
    }

    /// Adds `seed · ∂self/∂p` to the buffer of every trainable parameter `p` that leads here.
    /// `self` is a scalar; a loss that is a sum is divided by choosing `seed`.
    ///
    /// # Errors
    /// When `self` isn't one number, when nothing trainable leads here, or when the pass was
    /// already made.
    pub fn backward(&self, seed: f32, gradients: &mut Gradients) -> Result<()> {
        if self.data.elem_count() != 1 {
            return Err(Error::Shape {
                op: "backward",
                what: "the value",
                found: self.dims().to_vec(),
                must_be: "a single number".to_owned(),
            });
        }
        let dy = Tensor::full(seed, self.data.shape(), self.data.device())?;
        crate::tape::backward(self, dy, gradients).map(drop)
    }
}
