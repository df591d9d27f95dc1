//! Factors of the tiles' products as pairs of bf16, where the operands come from bf16 weights and
//! the machine is fast at them. Every product has a left factor by rows and a right one whose rows
//! are woven in pairs: keys and values are packed once for all that read them, a block's queries
//! and gradients once for all its tiles, and of a tile only its probabilities and their gradients.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Operands,
    head::{Head, HeadRows, KEYS, Tile, head_rows},
};
use crate::{
    kernels::product::{self, Begun, Pairs, Scratch, View},
    ops::Span,
};

/// Keys (by rows) and values (by columns) of all key/value heads, for the forward pass.
pub(super) struct KeysAndValues {
    pairs: Pairs,
    lanes: Scratch,
    /// Lanes of a tile of keys and of one of values.
    sizes: [usize; 2],
    kv_heads: usize,
    /// Each span's first tile.
    first: Vec<usize>,
}

impl KeysAndValues {
    pub(super) fn pack(of: &Operands<'_>, spans: &[Span], pairs: Pairs) -> Self {
        let shape = of.shape;
        let mut tiles = Vec::new();
        let mut first = Vec::with_capacity(spans.len());
        for span in spans {
            first.push(tiles.len());
            let keys = span.keys.clone();
            tiles.extend(keys.clone().step_by(KEYS).map(|key| key..(key + KEYS).min(keys.end)));
        }
        let sizes = [pairs.left_len(KEYS, shape.head_dim), pairs.left_len(shape.value_dim, KEYS)];
        let size = sizes[0] + sizes[1];
        let mut lanes = Scratch::take(tiles.len() * shape.kv_heads * size);
        lanes.par_chunks_mut((size * shape.kv_heads).max(1)).zip(&tiles).for_each(|(to, keys)| {
            for (kv_head, to) in to.chunks_exact_mut(size).enumerate() {
                let (k, v) = to.split_at_mut(sizes[0]);
                let rows = |x, dim| {
                    head_rows(x, keys.start, shape.kv_heads, dim, kv_head).view(keys.len(), dim)
                };
                pairs.pack_left(rows(of.k, shape.head_dim), 1.0, k);
                pairs.pack_left(rows(of.v, shape.value_dim).t(), 1.0, v);
            }
        });
        Self { pairs, lanes, sizes, kv_heads: shape.kv_heads, first }
    }

    /// The packed tiles of one head of the span of this number.
    pub(super) fn head(&self, span: usize, kv_head: usize) -> PackedHead<'_> {
        let first = self.first.get(span).copied().unwrap_or_default();
        PackedHead { of: self, first, kv_head, begun: self.pairs.begin() }
    }
}

/// Products of one head's keys and values.
pub(super) struct PackedHead<'a> {
    of: &'a KeysAndValues,
    first: usize,
    kv_head: usize,
    begun: Begun,
}

impl PackedHead<'_> {
    fn tile(&self, tile: &Tile) -> (&[u32], &[u32]) {
        let at = (self.first + tile.keys.start / KEYS) * self.of.kv_heads + self.kv_head;
        let size = self.of.sizes[0] + self.of.sizes[1];
        let lanes = self.of.lanes.get(at * size..(at + 1) * size).unwrap_or_default();
        lanes.split_at(self.of.sizes[0].min(lanes.len()))
    }

    /// A block's queries, scaled, for [`Self::scores`].
    pub(super) fn queries(&self, head: &Head<'_>, rows: &Range<usize>) -> Scratch {
        let shape = head.of.shape;
        let queries = head.queries(rows.start).view(rows.len(), shape.head_dim);
        right(self.of.pairs, queries.t(), shape.head_dim, rows.len(), shape.scale)
    }

    /// `scores = keys·queriesᵀ`, `[keys, lanes]`.
    pub(super) fn scores(&self, tile: &Tile, dim: usize, queries: &Scratch, scores: &mut [f32]) {
        let size = [tile.keys.len(), tile.lanes(), dim];
        let factors = [self.tile(tile).0, queries];
        self.of.pairs.multiply(&self.begun, scores, tile.lanes(), false, size, factors);
    }

    /// `output [+]= valuesᵀ·p`, `[dim, lanes]`.
    pub(super) fn output(&self, tile: &Tile, dim: usize, p: &[f32], keep: bool, to: &mut [f32]) {
        let (keys, lanes) = (tile.keys.len(), tile.lanes());
        let p = right(self.of.pairs, View::new(p, keys, lanes), keys, lanes, 1.0);
        let factors = [self.tile(tile).1, &p];
        self.of.pairs.multiply(&self.begun, to, lanes, keep, [dim, lanes, keys], factors);
    }
}

/// `[dim, lanes]` to `[rows, dim]`.
pub(super) fn untranspose(from: &[f32], lanes: usize, dim: usize, to: &mut [f32]) {
    let rows = to.len() / dim.max(1);
    product::transpose(View::strided(from, dim, rows, lanes, 1), 1.0, dim, to);
}

/// Packs `[inner, columns]`, of which fewer columns may exist.
fn right(pairs: Pairs, from: View<'_>, inner: usize, columns: usize, scale: f32) -> Scratch {
    let mut lanes = Scratch::take(pairs.right_len(inner, columns));
    pairs.pack_right(from, scale, &mut lanes);
    lanes
}

/// Keys by rows and by columns and values by rows, of one key/value head in the backward pass.
pub(super) struct PackedGroup {
    pairs: Pairs,
    begun: Begun,
    lanes: Scratch,
    sizes: [usize; 3],
    first_key: usize,
}

impl PackedGroup {
    /// Packs these keys of the span, counted from its start.
    pub(super) fn pack(head: &Head<'_>, keys: &Range<usize>, pairs: Pairs) -> Self {
        let shape = head.of.shape;
        let (dk, dv) = (shape.head_dim, shape.value_dim);
        let sizes = [pairs.left_len(KEYS, dk), pairs.left_len(dk, KEYS), pairs.left_len(KEYS, dv)];
        let size: usize = sizes.iter().sum();
        let mut lanes = Scratch::take(keys.len().div_ceil(KEYS) * size);
        for (start, to) in keys.clone().step_by(KEYS).zip(lanes.chunks_exact_mut(size.max(1))) {
            let n = KEYS.min(keys.end - start);
            let (by_rows, rest) = to.split_at_mut(sizes[0]);
            let (by_columns, values) = rest.split_at_mut(sizes[1]);
            let k = head.keys(start).view(n, dk);
            pairs.pack_left(k, 1.0, by_rows);
            pairs.pack_left(k.t(), 1.0, by_columns);
            pairs.pack_left(head.values(start).view(n, dv), 1.0, values);
        }
        Self { pairs, begun: pairs.begin(), lanes, sizes, first_key: keys.start }
    }

    fn tile(&self, tile: &Tile) -> [&[u32]; 3] {
        let size: usize = self.sizes.iter().sum();
        let at = (tile.keys.start - self.first_key) / KEYS * size;
        let lanes = self.lanes.get(at..at + size).unwrap_or_default();
        let (by_rows, rest) = lanes.split_at(self.sizes[0].min(lanes.len()));
        let (by_columns, values) = rest.split_at(self.sizes[1].min(rest.len()));
        [by_rows, by_columns, values]
    }

    /// A block's query rows and the gradients of its output.
    pub(super) fn block(
        &self,
        queries: HeadRows<'_>,
        dy: HeadRows<'_>,
        rows: usize,
        of: &Operands<'_>,
    ) -> PackedBlock {
        let (dk, dv) = (of.shape.head_dim, of.shape.value_dim);
        let (queries, dy) = (queries.view(rows, dk), dy.view(rows, dv));
        let pack = |view, inner, columns, scale| right(self.pairs, view, inner, columns, scale);
        PackedBlock {
            queries_t: pack(queries.t(), dk, rows, of.shape.scale),
            dy_t: pack(dy.t(), dv, rows, 1.0),
            queries: pack(queries, rows, dk, 1.0),
            dy: pack(dy, rows, dv, 1.0),
            dims: [dk, dv],
        }
    }

    /// `scores = keys·queriesᵀ` and `dp = values·dyᵀ`, `[keys, lanes]`.
    pub(super) fn scores(
        &self,
        tile: &Tile,
        block: &PackedBlock,
        scores: &mut [f32],
        dp: &mut [f32],
    ) {
        let (keys, lanes, [dk, dv]) = (tile.keys.len(), tile.lanes(), block.dims);
        let [by_rows, _, values] = self.tile(tile);
        let multiply = |to, dim, factors| {
            self.pairs.multiply(&self.begun, to, lanes, false, [keys, lanes, dim], factors);
        };
        multiply(scores, dk, [by_rows, &block.queries_t]);
        multiply(dp, dv, [values, &block.dy_t]);
    }

    /// `to [+]= keysᵀ·ds`, `[dim, lanes]`.
    pub(super) fn queries(&self, tile: &Tile, dim: usize, ds: &[f32], keep: bool, to: &mut [f32]) {
        let (keys, lanes) = (tile.keys.len(), tile.lanes());
        let ds = right(self.pairs, View::new(ds, keys, lanes), keys, lanes, 1.0);
        let factors = [self.tile(tile)[1], &ds];
        self.pairs.multiply(&self.begun, to, lanes, keep, [dim, lanes, keys], factors);
    }

    /// `to += x·rows`, `[keys, dim]`, with `x` `[keys, lanes]` and a block's woven rows.
    pub(super) fn keys(&self, tile: &Tile, dim: usize, x: &[f32], rows: &Scratch, to: &mut [f32]) {
        let (keys, n) = (tile.keys.len(), tile.rows.len());
        let mut left = Scratch::take(self.pairs.left_len(keys, n));
        self.pairs.pack_left(View::strided(x, keys, n, tile.lanes(), 1), 1.0, &mut left);
        self.pairs.multiply(&self.begun, to, dim, true, [keys, dim, n], [&left, rows]);
    }
}

/// What the tiles of a block read.
pub(super) struct PackedBlock {
    queries_t: Scratch,
    dy_t: Scratch,
    pub(super) queries: Scratch,
    pub(super) dy: Scratch,
    dims: [usize; 2],
}
