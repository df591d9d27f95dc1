//! Tensors that training changes.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use candle_core::{DType, Tensor};

use crate::{Result, Value, tape::Node};

/// Identity of a [`Parameter`]; ordered by creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParameterId(u64);

/// A named f32 tensor that an optimizer may replace. Clones are the same parameter.
#[derive(Clone)]
pub struct Parameter(Arc<Inner>);

struct Inner {
    id: ParameterId,
    name: String,
    data: RwLock<Tensor>,
    trainable: AtomicBool,
}

impl fmt::Debug for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parameter({} {:?})", self.0.name, self.data().dims())
    }
}

impl Parameter {
    /// A trainable parameter; `data` is converted to f32 and copied where it shares storage.
    ///
    /// # Errors
    /// When the conversion fails.
    pub fn new(name: impl Into<String>, data: &Tensor) -> Result<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let data = data.to_dtype(DType::F32)?.force_contiguous()?;
        Ok(Self(Arc::new(Inner {
            id: ParameterId(IDS.fetch_add(1, Ordering::Relaxed)),
            name: name.into(),
            data: RwLock::new(data),
            trainable: AtomicBool::new(true),
        })))
    }

    /// Its identity.
    pub fn id(&self) -> ParameterId {
        self.0.id
    }

    /// Its name, as in the file that it is saved to.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The tensor as it stands; shares storage with the parameter.
    pub fn data(&self) -> Tensor {
        self.0.data.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the tensor by another of the same shape; it stays on its device.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when the shapes differ.
    pub fn set(&self, data: &Tensor) -> Result<()> {
        let mut place = self.0.data.write().unwrap_or_else(PoisonError::into_inner);
        if place.dims() != data.dims() {
            return Err(crate::Error::Shape {
                op: "parameter",
                what: "the new tensor",
                found: data.dims().to_vec(),
                must_be: format!("{:?} as `{}` is", place.dims(), self.0.name),
            });
        }
        *place = data.to_dtype(DType::F32)?.to_device(place.device())?.force_contiguous()?;
        Ok(())
    }

    /// Whether it trains at present.
    pub fn trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or unfreezes it.
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The parameter as an operand: on the tape if `record` is set and it trains.
    pub fn value(&self, record: bool) -> Value {
        if record && self.trainable() {
            Value::with_node(self.data(), Node::parameter(self.0.id))
        } else {
            Value::constant(self.data())
        }
    }
}
