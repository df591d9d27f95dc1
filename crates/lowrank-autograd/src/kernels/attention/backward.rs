//! The backward pass over a range of keys of one key/value head of one sequence.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Operands, Saved, Wanted,
    head::{Head, Tile, lanes},
    pairs::{PackedBlock, PackedGroup, untranspose},
    scratch::Scratch,
    softmax::{self, Known},
    tile::{Left, Rows, Size, multiply},
    work::{Gradients, ROWS},
};
use crate::{Dropout, ops::Span};

/// One key/value head of one sequence, and the keys of it whose gradients are sought.
pub(super) struct Group<'a> {
    pub(super) of: Operands<'a>,
    pub(super) saved: Saved<'a>,
    pub(super) wanted: Wanted,
    pub(super) span: &'a Span,
    pub(super) kv_head: usize,
    pub(super) keys: Range<usize>,
}

/// Buffers of the gradients of the keys and values.
struct Sums<'a> {
    dk: &'a mut [f32],
    dv: &'a mut [f32],
}

impl Group<'_> {
    /// Adds all gradients: those of `q`, `k` and `v` by `add`, those of the bias to `dbias`.
    pub(super) fn backward(
        &self,
        scratch: &mut Scratch,
        dbias: &mut [f32],
        to: &Mutex<Gradients<'_>>,
    ) {
        let shape = self.of.shape;
        let group = shape.heads / shape.kv_heads;
        let mut buffers = (std::mem::take(&mut scratch.dk), std::mem::take(&mut scratch.dv));
        let keys = |wanted: bool| if wanted { self.keys.len() } else { 0 };
        let mut sums = Sums {
            dk: buffers.0.filled(keys(self.wanted.k) * shape.head_dim, 0.0),
            dv: buffers.1.filled(keys(self.wanted.v) * shape.value_dim, 0.0),
        };
        let first = Head { of: self.of, span: self.span, head: self.kv_head * group };
        let packed = self.of.pairs.map(|pairs| PackedGroup::pack(&first, &self.keys, pairs));
        for head in self.kv_head * group..(self.kv_head + 1) * group {
            let head = Head { of: self.of, span: self.span, head };
            let dropout = head.dropout();
            let n = self.span.queries.len();
            for rows in (0..n).step_by(ROWS).map(|first| first..(first + ROWS).min(n)) {
                let (dropout, packed) = (dropout.as_ref(), packed.as_ref());
                let block = Block { group: self, head, rows, dropout, packed };
                if block.backward(scratch, &mut sums, dbias) && self.wanted.q {
                    let dq = scratch.rows.room(block.rows.len() * shape.head_dim);
                    let first = self.span.queries.start + block.rows.start;
                    let head = [shape.heads, shape.head_dim, head.head];
                    locked(to).q.add(first, head, shape.scale, dq);
                }
            }
        }
        let first = self.span.keys.start + self.keys.start;
        let head = |dim| [shape.kv_heads, dim, self.kv_head];
        locked(to).k.add(first, head(shape.head_dim), shape.scale, sums.dk);
        locked(to).v.add(first, head(shape.value_dim), 1.0, sums.dv);
        (scratch.dk, scratch.dv) = buffers;
    }
}

fn locked<'a, 'g>(gradients: &'a Mutex<Gradients<'g>>) -> MutexGuard<'a, Gradients<'g>> {
    gradients.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block of query rows of one head.
struct Block<'a> {
    group: &'a Group<'a>,
    head: Head<'a>,
    rows: Range<usize>,
    dropout: Option<&'a Dropout>,
    packed: Option<&'a PackedGroup>,
}

impl Block<'_> {
    /// With probabilities `p`, dropout factors `f`, `D = Σ dy·y` of the row and `dp = f·(dy·vᵀ)`:
    /// `ds = p·(dp - D)`, `dq = s·ds·k`, `dk += s·dsᵀ·q`, `dv += (f·p)ᵀ·dy`. `dq/s` is left in
    /// `scratch.rows`; false if the rows see none of the keys.
    fn backward(&self, scratch: &mut Scratch, sums: &mut Sums<'_>, dbias: &mut [f32]) -> bool {
        let mut tiles = self.head.tiles(&self.rows, self.group.keys.clone()).peekable();
        if tiles.peek().is_none() {
            return false;
        }
        self.load(scratch);
        self.ask_for_next();
        let packed = self.packed.map(|packed| {
            let queries = self.head.queries(self.rows.start);
            let dy = self.head.outputs(self.group.saved.dy, self.rows.start);
            (packed, packed.block(queries, dy, self.rows.len(), &self.group.of))
        });
        for (i, tile) in tiles.enumerate() {
            match &packed {
                None => self.scores(&tile, scratch),
                Some((packed, block)) => {
                    let [scores, dp] = [&mut scratch.scores, &mut scratch.ds];
                    packed.scores(&tile, block, scores.room(tile.len()), dp.room(tile.len()));
                }
            }
            self.differentiate(&tile, scratch, dbias);
            match &packed {
                None => self.products(&tile, i > 0, scratch, sums),
                Some((packed, block)) => {
                    self.packed_products(&tile, i > 0, packed, block, scratch, sums);
                }
            }
        }
        if packed.is_some() && self.group.wanted.q {
            let (lanes, dim) = (lanes(&self.rows), self.group.of.shape.head_dim);
            let to = scratch.rows.room(self.rows.len() * dim);
            untranspose(scratch.transposed.room(dim * lanes), lanes, dim, to);
        }
        true
    }

    /// Asks for what the next block of this head reads first.
    fn ask_for_next(&self) {
        let (shape, saved, n) = (self.group.of.shape, &self.group.saved, self.rows.len());
        let left = self.head.span.queries.len() - self.rows.end;
        let next = n..n + left.min(ROWS);
        self.head.queries(self.rows.start).ask_for(next.clone(), shape.head_dim);
        for rows in [saved.dy, saved.output] {
            self.head.outputs(rows, self.rows.start).ask_for(next.clone(), shape.value_dim);
        }
    }

    /// What all tiles of the block read.
    fn load(&self, scratch: &mut Scratch) {
        let (shape, rows, saved) = (self.group.of.shape, &self.rows, &self.group.saved);
        let lanes = lanes(rows);
        let (queries, dy) =
            (self.head.queries(rows.start), self.head.outputs(saved.dy, rows.start));
        if self.packed.is_none() {
            let to = scratch.queries.room(lanes * shape.head_dim);
            queries.wide().transpose(rows.len(), shape.head_dim, shape.scale, to);
            let to = scratch.dy.room(lanes * shape.value_dim);
            dy.wide().transpose(rows.len(), shape.value_dim, 1.0, to);
        }
        let output = self.head.outputs(saved.output, rows.start);
        let [max, inverse, dot] = [&mut scratch.max, &mut scratch.sum, &mut scratch.keep]
            .map(|buffer| buffer.filled(lanes, 0.0));
        let first = self.head.span.queries.start + rows.start;
        for r in 0..rows.len() {
            let at = (first + r) * shape.heads + self.head.head;
            let row = saved.rows.get(at).copied().unwrap_or_default();
            (max[r], inverse[r]) = (row.max, 1.0 / row.sum);
            dot[r] = dy.dot(output, r, shape.value_dim);
        }
    }

    /// Leaves `q·kᵀ` in `scratch.scores` and `dy·vᵀ` in `scratch.ds`.
    fn scores(&self, tile: &Tile, scratch: &mut Scratch) {
        let (shape, lanes) = (self.group.of.shape, tile.lanes());
        let queries = scratch.queries.room(lanes * shape.head_dim);
        self.head.products(tile, queries, scratch.scores.room(tile.len()));
        let size = Size { m: tile.keys.len(), n: lanes, k: shape.value_dim };
        let values = self.head.values(tile.keys.start).wide().left();
        let dy = Rows { data: scratch.dy.room(lanes * shape.value_dim), stride: lanes };
        multiply(scratch.ds.room(tile.len()), lanes, false, size, values, dy);
    }

    /// Leaves `f·p` in `scratch.scores` and the scores' gradients in `scratch.ds`.
    fn differentiate(&self, tile: &Tile, scratch: &mut Scratch, dbias: &mut [f32]) {
        let (shape, lanes, len) = (self.group.of.shape, tile.lanes(), tile.len());
        let (scores, ds) = (scratch.scores.room(len), scratch.ds.room(len));
        let capped = shape.softcap.is_some();
        let slopes = scratch.slopes.room(if capped { len } else { 0 });
        self.head.finish(tile, scores, slopes, &mut scratch.line);
        let factors = scratch.factors.room(if self.dropout.is_some() { len } else { 0 });
        if let Some(dropout) = self.dropout {
            self.head.factors(dropout, tile, &mut scratch.line, factors);
        }
        let known = Known {
            max: scratch.max.room(lanes),
            inverse: scratch.sum.room(lanes),
            dot: scratch.keep.room(lanes),
        };
        softmax::differentiate(scores, ds, factors, known);
        if !dbias.is_empty() {
            self.head.add_bias_gradient(tile, ds, &mut scratch.line, dbias);
        }
        softmax::scale_by(ds, slopes);
    }

    fn products(&self, tile: &Tile, keep: bool, scratch: &mut Scratch, sums: &mut Sums<'_>) {
        let (shape, lanes, wanted) = (self.group.of.shape, tile.lanes(), self.group.wanted);
        let (rows, keys) = (self.rows.len(), tile.keys.len());
        let start = tile.keys.start - self.group.keys.start;
        let ds: &[f32] = scratch.ds.room(tile.len());
        if wanted.q {
            let size = Size { m: rows, n: shape.head_dim, k: keys };
            let left = Left { data: ds, row: 1, column: lanes };
            let to = scratch.rows.room(rows * shape.head_dim);
            let right = self.head.keys(tile.keys.start).wide();
            multiply(to, shape.head_dim, keep, size, left, right);
        }
        if wanted.k {
            let size = Size { m: keys, n: shape.head_dim, k: rows };
            let left = Left { data: ds, row: lanes, column: 1 };
            let to = &mut sums.dk[start * shape.head_dim..];
            let right = self.head.queries(self.rows.start).wide();
            multiply(to, shape.head_dim, true, size, left, right);
        }
        if wanted.v {
            let size = Size { m: keys, n: shape.value_dim, k: rows };
            let p = scratch.scores.room(tile.len());
            let left = Left { data: p, row: lanes, column: 1 };
            let to = &mut sums.dv[start * shape.value_dim..];
            let right = self.head.outputs(self.group.saved.dy, self.rows.start).wide();
            multiply(to, shape.value_dim, true, size, left, right);
        }
    }

    fn packed_products(
        &self,
        tile: &Tile,
        keep: bool,
        packed: &PackedGroup,
        block: &PackedBlock,
        scratch: &mut Scratch,
        sums: &mut Sums<'_>,
    ) {
        let (shape, wanted) = (self.group.of.shape, self.group.wanted);
        let start = tile.keys.start - self.group.keys.start;
        let (ds, dim) = (scratch.ds.room(tile.len()), shape.head_dim);
        if wanted.q {
            let to = scratch.transposed.room(dim * tile.lanes());
            packed.queries(tile, dim, ds, keep, to);
        }
        if wanted.k {
            packed.keys(tile, dim, ds, &block.queries, &mut sums.dk[start * dim..]);
        }
        if wanted.v {
            let (p, dim) = (scratch.scores.room(tile.len()), shape.value_dim);
            packed.keys(tile, dim, p, &block.dy, &mut sums.dv[start * dim..]);
        }
    }
}
