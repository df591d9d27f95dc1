//! The forward pass over one block of query rows of one head.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    CHUNK, PANELS, copy_rows, copy_rows_in_order,
    softmax::{self, Running, Scale},
    way,
};
use crate::{
    kernels::{
        attention::{
            Operands,
            head::{Head, head_rows},
            scratch::Scratch as Buffers,
        },
        product::{Amx, Block, SIDE, Scratch, Turn},
    },
    ops::Span,
};

/// Keys as columns and values as rows of right factors, of all key/value heads.
pub(in super::super) struct KeysAndValues {
    amx: Amx,
    turns: Scratch,
    sizes: Sizes,
    kv_heads: usize,
    /// Each span's first chunk.
    first: Vec<usize>,
}

/// Turns of a panel of keys and panels of values.
#[derive(Clone, Copy)]
struct Sizes {
    keys: usize,
    values: usize,
}

impl Sizes {
    /// Turns of a chunk of one head: its panels of keys, then those of values.
    fn chunk(self) -> usize {
        PANELS * (self.keys + self.values)
    }
}

impl KeysAndValues {
    /// None where these operands go another way.
    pub(in super::super) fn pack(of: &Operands<'_>, spans: &[Span]) -> Option<Self> {
        let amx = way(of, spans)?;
        let shape = of.shape;
        let sizes = Sizes { keys: shape.head_dim / SIDE, values: shape.value_dim / SIDE };
        let (mut chunks, mut first) = (Vec::new(), Vec::with_capacity(spans.len()));
        for span in spans {
            first.push(chunks.len());
            let end = span.keys.end;
            chunks.extend(span.keys.clone().step_by(CHUNK).map(|key| key..(key + CHUNK).min(end)));
        }
        let all = sizes.chunk() * shape.kv_heads;
        let mut turns = Scratch::of_turns(chunks.len() * all);
        turns.turns_mut().par_chunks_mut(all.max(1)).zip(&chunks).for_each(|(to, keys)| {
            for (kv_head, to) in to.chunks_exact_mut(sizes.chunk()).enumerate() {
                pack_chunk(amx, of, keys, kv_head, sizes, to);
            }
        });
        Some(Self { amx, turns, sizes, kv_heads: shape.kv_heads, first })
    }

    /// A chunk of one head of the span of this number: its panels of keys and those of values.
    fn chunk(&self, span: usize, kv_head: usize, chunk: usize) -> (&[Turn], &[Turn]) {
        let first = self.first.get(span).copied().unwrap_or_default();
        let at = ((first + chunk) * self.kv_heads + kv_head) * self.sizes.chunk();
        self.turns.turns()[at..at + self.sizes.chunk()].split_at(PANELS * self.sizes.keys)
    }
}

/// Packs keys panel by panel, each a turn for 32 elements after another, and values by 32 columns,
/// each a turn for every panel.
fn pack_chunk(
    amx: Amx,
    of: &Operands<'_>,
    keys: &Range<usize>,
    kv_head: usize,
    sizes: Sizes,
    to: &mut [Turn],
) {
    let shape = of.shape;
    let (to_keys, to_values) = to.split_at_mut(PANELS * sizes.keys);
    let mut rows = vec![Turn::ZERO; sizes.keys.max(sizes.values)];
    for (panel, start) in keys.clone().step_by(SIDE).enumerate() {
        let n = keys.end - start;
        let head = |x, dim| head_rows(x, start, shape.kv_heads, dim, kv_head);
        copy_rows_in_order(head(of.k, shape.head_dim), n, shape.head_dim, &mut rows);
        let to = &mut to_keys[panel * sizes.keys..];
        rows.iter().zip(to).take(sizes.keys).for_each(|(rows, to)| amx.rows_to_columns(rows, to));
        copy_rows_in_order(head(of.v, shape.value_dim), n, shape.value_dim, &mut rows);
        for (i, rows) in rows.iter().take(sizes.values).enumerate() {
            amx.rows_to_right(rows, &mut to_values[i * PANELS + panel]);
        }
    }
}

impl Head<'_> {
    /// [`Head::forward`] where `packed` holds this head's keys and values; `span` is the number of
    /// its span.
    pub(in super::super) fn forward_in_tiles(
        &self,
        rows: &Range<usize>,
        packed: &KeysAndValues,
        span: usize,
        buffers: &mut Buffers,
    ) {
        let dim = self.of.shape.value_dim;
        // The next head's lie beside these.
        let next = Self { head: (self.head + 1).min(self.of.shape.heads - 1), ..*self };
        next.queries(rows.start).ask_for(0..rows.len(), self.of.shape.head_dim);
        let output = buffers.rows.room(rows.len() * dim);
        let max = buffers.max.room(rows.len());
        let sum = buffers.sum.room(rows.len());
        let mut room = Room::new(&packed.sizes);
        for start in (0..rows.len()).step_by(SIDE) {
            let of_block = start..(start + SIDE).min(rows.len());
            let block = rows.start + of_block.start..rows.start + of_block.end;
            let places = (&mut max[of_block.clone()], &mut sum[of_block.clone()]);
            let output = &mut output[of_block.start * dim..of_block.end * dim];
            self.forward_block(&block, packed, span, &mut room, places, output);
        }
    }

    fn forward_block(
        &self,
        rows: &Range<usize>,
        packed: &KeysAndValues,
        span: usize,
        room: &mut Room,
        (max, sum): (&mut [f32], &mut [f32]),
        output: &mut [f32],
    ) {
        let (shape, seen) = (self.of.shape, self.visible(rows));
        let (queries, sums) = (room.queries.turns_mut(), room.sums.blocks_mut());
        copy_rows(self.queries(rows.start), rows.len(), shape.head_dim, queries);
        // Turns the sums of as many probabilities as there may be into at most 1.
        let down = (seen.len() as f32).log2().ceil().max(0.0);
        let scale = Scale { scale: shape.scale, down };
        let mut so_far = Running::new();
        let mut blocks = packed.amx.begin();
        for (i, chunk) in chunks(&seen).enumerate() {
            let (keys, values) = packed.chunk(span, self.kv_head(), chunk.start / CHUNK);
            let panels = chunk.start % CHUNK / SIDE..(chunk.end - 1) % CHUNK / SIDE + 1;
            let scores = &mut room.scores.blocks_mut()[panels.clone()];
            let p = &mut room.p.turns_mut()[panels.clone()];
            let keys = keys.chunks_exact(packed.sizes.keys).skip(panels.start);
            for (to, keys) in scores.iter_mut().zip(keys) {
                blocks.multiply(to, false, queries, keys);
            }
            let first = chunk.start / SIDE * SIDE;
            let of_rows: [_; SIDE] = std::array::from_fn(|row| {
                let seen = if row < rows.len() { self.seen(rows.start + row) } else { 0..0 };
                seen.start.saturating_sub(first)..seen.end.saturating_sub(first)
            });
            let of_rows = &of_rows[..rows.len()];
            softmax::advance(packed.amx, scores, of_rows, scale, &mut so_far, p);
            for (to, values) in sums.iter_mut().zip(values.chunks_exact(PANELS)) {
                if i > 0 {
                    softmax::scale_rows(packed.amx, to, &so_far.keep);
                }
                blocks.multiply(to, i > 0, p, &values[panels.clone()]);
            }
        }
        if seen.is_empty() {
            sums.fill(Block::ZERO);
        }
        let inverses = so_far.sum.map(|sum| if sum == 0.0 { 0.0 } else { 1.0 / sum });
        for (column, block) in sums.iter_mut().enumerate() {
            softmax::scale_rows(packed.amx, block, &inverses);
            let rows = output.chunks_exact_mut(shape.value_dim).zip(block.rows());
            for (to, from) in rows {
                to[column * SIDE..][..SIDE].copy_from_slice(from);
            }
        }
        max.copy_from_slice(&so_far.max[..rows.len()]);
        sum.iter_mut().zip(so_far.sum).for_each(|(to, sum)| *to = sum * down.exp2());
    }
}

/// The parts of a range of keys that lie in one chunk each.
fn chunks(keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let keys = keys.clone();
    let first = keys.start / CHUNK * CHUNK;
    (first..keys.end.max(first))
        .step_by(CHUNK)
        .map(move |start| start.max(keys.start)..(start + CHUNK).min(keys.end))
        .filter(|chunk| !chunk.is_empty())
}

/// Buffers of one block.
struct Room {
    queries: Scratch,
    scores: Scratch,
    p: Scratch,
    /// Values in the making, by 32 columns.
    sums: Scratch,
}

impl Room {
    fn new(sizes: &Sizes) -> Self {
        Self {
            queries: Scratch::of_turns(sizes.keys),
            scores: Scratch::of_blocks(PANELS),
            p: Scratch::of_turns(PANELS),
            sums: Scratch::of_blocks(sizes.values),
        }
    }
}
