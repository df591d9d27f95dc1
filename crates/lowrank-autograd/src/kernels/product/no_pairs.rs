//! Machines that have no kernels for pairs of bf16: nothing of this can come to be.

use super::View;

#[derive(Clone, Copy)]
pub(crate) enum Pairs {}

pub(crate) enum Begun {}

impl Pairs {
    pub(crate) fn best() -> Option<Self> {
        None
    }

    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        Vec::new()
    }

    pub(crate) fn begin(&self) -> Begun {
        match *self {}
    }

    pub(crate) fn left_len(&self, _rows: usize, _inner: usize) -> usize {
        match *self {}
    }

    pub(crate) fn right_len(&self, _inner: usize, _columns: usize) -> usize {
        match *self {}
    }

    pub(crate) fn pack_left(&self, _from: View<'_>, _scale: f32, _out: &mut [u32]) {
        match *self {}
    }

    pub(crate) fn pack_right(&self, _from: View<'_>, _scale: f32, _out: &mut [u32]) {
        match *self {}
    }

    pub(crate) fn multiply(
        &self,
        _begun: &Begun,
        _to: &mut [f32],
        _stride: usize,
        _keep: bool,
        _size: [usize; 3],
        _factors: [&[u32]; 2],
    ) {
        match *self {}
    }
}
