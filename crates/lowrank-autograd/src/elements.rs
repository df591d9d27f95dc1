//! Numbers as they lie in memory.

use std::{borrow::Cow, ops::Range};

use half::{bf16, f16};

use crate::kernels::elementwise::widened;

/// A tensor's elements in the dtype in which they lie.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl Elements<'_> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::Bf16(data) => data.len(),
            Self::F16(data) => data.len(),
        }
    }
}

impl<'a> Elements<'a> {
    /// All of them in f32.
    pub(crate) fn wide(&self) -> Cow<'a, [f32]> {
        match self {
            Self::F32(data) => Cow::Borrowed(data),
            Self::Bf16(data) => Cow::Owned(widened(data)),
            Self::F16(data) => Cow::Owned(data.iter().map(|v| v.to_f32()).collect()),
        }
    }

    /// Those of a range.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(data) => Self::F32(data.get(range).unwrap_or_default()),
            Self::Bf16(data) => Self::Bf16(data.get(range).unwrap_or_default()),
            Self::F16(data) => Self::F16(data.get(range).unwrap_or_default()),
        }
    }
}
