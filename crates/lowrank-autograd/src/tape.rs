//! The tape: nodes that know their parents, and the walk back from a result.
//!
//! Nodes are numbered in the order in which they were made, so that a consumer always has a larger
//! number than what it consumed. The walk takes the largest pending number first; the order in
//! which gradients are added up is thus fixed, and with it every bit of the sum.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Tensor};

use crate::{
    Error, Gradients, ParameterId, Result, Value, composed,
    kernels::elementwise::{add_assign, combine},
    profile,
};

/// Gradient of a node's result → gradients of its parents. The second argument receives what a
/// recomputed block finds for parameters inside it.
pub(crate) type Backward =
    Box<dyn FnOnce(Tensor, &mut Gradients) -> Result<Vec<Option<Tensor>>> + Send>;

pub(crate) enum Kind {
    /// A trainable parameter: its gradient goes to its buffer.
    Parameter(ParameterId),
    /// An input of a recomputed block: its gradient is handed back to the caller.
    Input,
    /// An operation; the function is taken out by the pass, and its saved tensors go with it.
    Operation { op: &'static str, backward: Mutex<Option<Backward>> },
}

pub(crate) struct Node {
    number: u64,
    parents: Vec<Option<Arc<Node>>>,
    kind: Kind,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Parameter(id) => write!(f, "#{} parameter {id:?}", self.number),
            Kind::Input => write!(f, "#{} input", self.number),
            Kind::Operation { op, .. } => write!(f, "#{} {op}", self.number),
        }
    }
}

impl Drop for Node {
    /// Frees a chain of nodes one after another: by recursion a long one would overflow the stack.
    fn drop(&mut self) {
        let mut parents = std::mem::take(&mut self.parents);
        while let Some(parent) = parents.pop() {
            if let Some(mut node) = parent.and_then(Arc::into_inner) {
                parents.append(&mut node.parents);
            }
        }
    }
}

impl Node {
    fn new(parents: Vec<Option<Arc<Node>>>, kind: Kind) -> Arc<Self> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self { number: NUMBERS.fetch_add(1, Ordering::Relaxed), parents, kind })
    }

    pub(crate) fn parameter(id: ParameterId) -> Arc<Self> {
        Self::new(Vec::new(), Kind::Parameter(id))
    }

    pub(crate) fn input() -> Arc<Self> {
        Self::new(Vec::new(), Kind::Input)
    }

    pub(crate) fn operation(op: &'static str, parents: &[&Value], backward: Backward) -> Arc<Self> {
        let parents = parents.iter().map(|p| p.node().cloned()).collect();
        Self::new(parents, Kind::Operation { op, backward: Mutex::new(Some(backward)) })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// Walks back from `root` with its gradient `dy`. Parameters' gradients are added to `gradients`;
/// those of block inputs are returned by node number.
pub(crate) fn backward(
    root: &Value,
    dy: Tensor,
    gradients: &mut Gradients,
) -> Result<BTreeMap<u64, Tensor>> {
    let start = root.node().ok_or(Error::NothingToDifferentiate)?;
    let first = Pending { node: Arc::clone(start), gradient: dy, own: false };
    let mut pending = BTreeMap::from([(start.number, first)]);
    let mut inputs = BTreeMap::new();
    while let Some((number, Pending { node, gradient: dy, .. })) = pending.pop_last() {
        match &node.kind {
            Kind::Parameter(id) => gradients.add(*id, &dy)?,
            Kind::Input => {
                inputs.insert(number, dy);
            }
            Kind::Operation { op, backward } => {
                let _time = profile::backward(op);
                let taken = backward.lock().unwrap_or_else(PoisonError::into_inner).take();
                let backward = taken.ok_or(Error::AlreadyDifferentiated { op })?;
                let widen = composed::device([&dy]).is_some() && !composed::reads_narrow(op);
                let dy = if widen { dy.to_dtype(DType::F32)? } else { dy };
                for (parent, gradient) in node.parents.iter().zip(backward(dy, gradients)?) {
                    if let (Some(parent), Some(gradient)) = (parent, gradient) {
                        add_pending(&mut pending, parent, gradient)?;
                    }
                }
            }
        }
    }
    Ok(inputs)
}

/// A node that gradients have flowed to.
struct Pending {
    node: Arc<Node>,
    /// Their sum so far.
    gradient: Tensor,
    /// Whether the sum is a tensor that was made here, so that nobody else can hold its memory.
    own: bool,
}

fn add_pending(
    pending: &mut BTreeMap<u64, Pending>,
    node: &Arc<Node>,
    gradient: Tensor,
) -> Result<()> {
    match pending.entry(node.number) {
        Entry::Vacant(place) => {
            place.insert(Pending { node: Arc::clone(node), gradient, own: false });
        }
        Entry::Occupied(mut place) => {
            let sum = place.get_mut();
            if composed::device([&sum.gradient]).is_some() {
                sum.gradient = composed::added(&sum.gradient, &gradient)?;
            } else if sum.own {
                add_assign(&sum.gradient, &gradient.contiguous()?)?;
            } else {
                sum.gradient = combine("add", &sum.gradient, &gradient, |a, b| a + b)?;
                sum.own = true;
            }
        }
    }
    Ok(())
}
