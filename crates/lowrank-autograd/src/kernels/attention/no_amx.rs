//! Machines that have no tiles of AMX: nothing of this can come to be.

use std::ops::Range;

use super::{Backward, Operands, Saved, Wanted, head::Head, scratch::Scratch};
use crate::ops::Span;

pub(super) enum KeysAndValues {}

impl KeysAndValues {
    pub(super) fn pack(_of: &Operands<'_>, _spans: &[Span]) -> Option<Self> {
        None
    }
}

impl Head<'_> {
    pub(super) fn forward_in_tiles(
        &self,
        _rows: &Range<usize>,
        packed: &KeysAndValues,
        _span: usize,
        _buffers: &mut Scratch,
    ) {
        match *packed {}
    }
}

pub(super) fn backward(
    _of: Operands<'_>,
    _spans: &[Span],
    _saved: Saved<'_>,
    _wanted: Wanted,
) -> Option<Backward> {
    None
}

#[cfg(test)]
pub(super) fn takes(_of: &Operands<'_>, _spans: &[Span]) -> bool {
    false
}
