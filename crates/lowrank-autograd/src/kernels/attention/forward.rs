//! The forward pass over one block of query rows of one head.

use std::ops::Range;

use half::bf16;

use super::{
    SoftmaxRow,
    head::{Head, Tile, lanes},
    pairs::{PackedHead, untranspose},
    scratch::Scratch,
    softmax::{self, LANES, Running},
    tile::{Left, Size, multiply},
};
use crate::{Dropout, kernels::elementwise::narrow, ops::AttentionShape};

/// Where a block's results go: the first row's elements and softmax of this head, rows of all
/// heads apart.
pub(super) struct Place<'a, T> {
    pub(super) output: &'a mut [T],
    pub(super) softmax: &'a mut [SoftmaxRow],
}

/// An element of the output.
pub(crate) trait Put: Copy + Default + Send {
    /// Puts as many elements, rounded to this type.
    fn put(to: &mut [Self], from: &[f32]);
}

impl Put for f32 {
    fn put(to: &mut [Self], from: &[f32]) {
        to.copy_from_slice(from);
    }
}

impl Put for bf16 {
    fn put(to: &mut [Self], from: &[f32]) {
        narrow(to, from);
    }
}

impl<T> Place<'_, T> {
    /// The place from its row `first` on.
    pub(super) fn starting_at(&mut self, first: usize, shape: &AttentionShape) -> Place<'_, T> {
        Place {
            output: &mut self.output[first * shape.heads * shape.value_dim..],
            softmax: &mut self.softmax[first * shape.heads..],
        }
    }
}

impl Head<'_> {
    /// Computes a block's output in `scratch.rows` (`[rows, value_dim]`), its maxima in
    /// `scratch.max` and its sums in `scratch.sum`; `packed` is this head's if products are of bf16.
    pub(super) fn forward(
        &self,
        rows: &Range<usize>,
        packed: Option<PackedHead<'_>>,
        scratch: &mut Scratch,
    ) {
        let dropout = self.dropout();
        match (rows.len(), packed) {
            (1, None) => self.forward_row(rows.start, dropout.as_ref(), scratch),
            (_, None) => self.forward_rows(rows, dropout.as_ref(), scratch),
            (_, Some(packed)) => self.forward_pairs(rows, &packed, dropout.as_ref(), scratch),
        }
    }

    fn forward_rows(&self, rows: &Range<usize>, dropout: Option<&Dropout>, scratch: &mut Scratch) {
        let (shape, lanes) = (self.of.shape, lanes(rows));
        let dim = shape.value_dim;
        let queries = scratch.queries.room(lanes * shape.head_dim);
        self.queries(rows.start).wide().transpose(rows.len(), shape.head_dim, shape.scale, queries);
        scratch.begin_softmax(lanes);
        scratch.rows.filled(rows.len() * dim, 0.0);
        for (i, tile) in self.tiles(rows, 0..usize::MAX).enumerate() {
            let queries = scratch.queries.room(lanes * shape.head_dim);
            self.products(&tile, queries, scratch.scores.room(tile.len()));
            self.advance(&tile, dropout, scratch);
            let output = scratch.rows.room(rows.len() * dim);
            if i > 0 {
                softmax::scale_rows(output, dim, scratch.keep.room(lanes));
            }
            let size = Size { m: rows.len(), n: dim, k: tile.keys.len() };
            let p = Left { data: scratch.scores.room(tile.len()), row: 1, column: lanes };
            multiply(output, dim, i > 0, size, p, self.values(tile.keys.start).wide());
        }
    }

    /// The same in products of bf16, the output transposed until its end.
    fn forward_pairs(
        &self,
        rows: &Range<usize>,
        packed: &PackedHead<'_>,
        dropout: Option<&Dropout>,
        scratch: &mut Scratch,
    ) {
        let (shape, lanes) = (self.of.shape, lanes(rows));
        let dim = shape.value_dim;
        let queries = packed.queries(self, rows);
        scratch.begin_softmax(lanes);
        let mut tiles = self.tiles(rows, 0..usize::MAX).peekable();
        if tiles.peek().is_none() {
            scratch.transposed.filled(dim * lanes, 0.0);
        }
        for (i, tile) in tiles.enumerate() {
            packed.scores(&tile, shape.head_dim, &queries, scratch.scores.room(tile.len()));
            self.advance(&tile, dropout, scratch);
            let output = scratch.transposed.room(dim * lanes);
            if i > 0 {
                let keep = scratch.keep.room(lanes);
                output.chunks_exact_mut(lanes).for_each(|row| softmax::scale_by(row, keep));
            }
            packed.output(&tile, dim, scratch.scores.room(tile.len()), i > 0, output);
        }
        let output = scratch.rows.room(rows.len() * dim);
        untranspose(scratch.transposed.room(dim * lanes), lanes, dim, output);
    }

    /// Turns a tile's products into probabilities over all keys so far.
    fn advance(&self, tile: &Tile, dropout: Option<&Dropout>, scratch: &mut Scratch) {
        let lanes = tile.lanes();
        let p = scratch.scores.room(tile.len());
        self.finish(tile, p, &mut [], &mut scratch.line);
        let [max, sum, keep] = [&mut scratch.max, &mut scratch.sum, &mut scratch.keep]
            .map(|buffer| buffer.room(lanes));
        softmax::advance(p, Running { max, sum, keep });
        if let Some(dropout) = dropout {
            let factors = scratch.factors.room(tile.len());
            self.factors(dropout, tile, &mut scratch.line, factors);
            softmax::scale_by(p, factors);
        }
    }

    /// One query row, as in decoding: keys are read as they lie, in inner products.
    fn forward_row(&self, row: usize, dropout: Option<&Dropout>, scratch: &mut Scratch) {
        let (shape, rows) = (self.of.shape, row..row + 1);
        let keys = self.visible(&rows);
        let scores = scratch.scores.room(keys.len());
        let query = self.queries(row).wide().row(0, shape.head_dim);
        softmax::row_scores(query, self.keys(keys.start).wide(), shape.scale, scores);
        if let Some(cap) = shape.softcap {
            softmax::cap_scores(scores, &mut [], cap);
        }
        if let Some(bias) = self.of.bias {
            for (key, score) in keys.clone().zip(scores.iter_mut()) {
                let tile = Tile { rows: rows.clone(), keys: key..key + 1 };
                let at = self.bias_index(bias.len(), &tile, 0);
                *score += at.and_then(|at| bias.get(at)).unwrap_or(&0.0);
            }
        }
        let [max, sum] = softmax::row_softmax(scores);
        scratch.max.filled(LANES, max);
        scratch.sum.filled(LANES, sum);
        if let Some(dropout) = dropout {
            let factors = scratch.factors.room(keys.len());
            dropout.factors(self.span.queries.start + row, keys.start, factors);
            softmax::scale_by(scores, factors);
        }
        let size = Size { m: 1, n: shape.value_dim, k: keys.len() };
        let p = Left { data: scores, row: keys.len(), column: 1 };
        let output = scratch.rows.room(shape.value_dim);
        multiply(output, shape.value_dim, false, size, p, self.values(keys.start).wide());
    }

    /// Puts a block's results where they belong.
    pub(super) fn place<T: Put>(
        &self,
        rows: &Range<usize>,
        scratch: &mut Scratch,
        place: Place<'_, T>,
    ) {
        let (heads, dim) = (self.of.shape.heads, self.of.shape.value_dim);
        let from = scratch.rows.room(rows.len() * dim);
        let to = place.output.chunks_mut(heads * dim);
        for (to, from) in to.zip(from.chunks_exact(dim)) {
            T::put(&mut to[self.head * dim..(self.head + 1) * dim], from);
        }
        let (max, sum) = (scratch.max.room(rows.len()), scratch.sum.room(rows.len()));
        let to = place.softmax.chunks_mut(heads);
        for ((to, &max), &sum) in to.zip(max.iter()).zip(sum.iter()) {
            to[self.head] = SoftmaxRow::of(max, sum);
        }
    }
}
