//! A block of query rows in the backward pass.

use std::{ops::Range, sync::Mutex};

use half::bf16;

use super::{
    PANELS,
    backward::{Group, Packed, Place, Sums, locked, panels_of},
    copy_rows,
    softmax::{self, Factors, Known},
};
use crate::kernels::{
    attention::head::{Head, HeadRows},
    product::{Block, Blocks, SIDE, Scratch, Turn},
};

/// Query rows of one head, and what all their products read.
pub(super) struct QueryBlock<'a> {
    group: &'a Group<'a>,
    head: Head<'a>,
    packed: &'a Packed,
    rows: Range<usize>,
    /// For each 32 rows: the panels of keys in which any of them sees one, counted from the first
    /// that is packed.
    seen: Vec<Range<usize>>,
    known: Vec<Known>,
    queries: Rows,
    dy: Rows,
}

/// Rows of 32 columns after another as a left factor, 32 rows after another; and their columns as
/// rows of one, 32 columns after another.
struct Rows {
    rows: Scratch,
    columns: Scratch,
}

/// What the scores of a block with up to [`PANELS`] panels of keys leave: probabilities and the
/// gradients of scores as right factors, panel by panel, 32 rows after another; the latter as a left
/// factor too, the other way round.
struct Scores {
    p: Scratch,
    ds: Scratch,
    ds_left: Scratch,
}

impl<'a> QueryBlock<'a> {
    /// None if the rows see no keys.
    pub(super) fn new(
        group: &'a Group<'a>,
        head: Head<'a>,
        rows: Range<usize>,
        packed: &'a Packed,
    ) -> Option<Self> {
        let panels = |start: usize| {
            let seen = panels_of(&head.visible(&(start..(start + SIDE).min(rows.end))));
            let first = packed.panels.start;
            seen.start.saturating_sub(first)..seen.end.saturating_sub(first)
        };
        let seen: Vec<_> = rows.clone().step_by(SIDE).map(panels).collect();
        if seen.iter().all(Range::is_empty) {
            return None;
        }
        let shape = head.of.shape;
        let copy = |from: HeadRows<'_>, dim: usize| {
            let (n, of_row) = (seen.len(), dim / SIDE);
            let [mut copies, mut columns] = [(); 2].map(|()| Scratch::of_turns(n * of_row));
            for (i, copy) in copies.turns_mut().chunks_exact_mut(of_row).enumerate() {
                let first = i * SIDE;
                copy_rows(from.starting_at(first), rows.len() - first, dim, copy);
                for (column, copy) in copy.iter().enumerate() {
                    group.amx.columns_to_left(copy, &mut columns.turns_mut()[column * n + i]);
                }
            }
            Rows { rows: copies, columns }
        };
        let queries = copy(head.queries(rows.start), shape.head_dim);
        let dy = copy(head.outputs(group.saved.dy, rows.start), shape.value_dim);
        let of_row = shape.value_dim / SIDE;
        let known = rows.clone().step_by(SIDE).zip(dy.rows.turns().chunks_exact(of_row));
        let known = known.map(|(row, dy)| known_of(group, &head, row..rows.end, dy)).collect();
        Some(Self { group, head, packed, rows, seen, known, queries, dy })
    }

    /// Adds the gradients of the keys and values to `sums`, and puts that of the queries at its place;
    /// meanwhile asks for what the `next` rows of a head are read for.
    pub(super) fn backward(
        &self,
        blocks: &mut Blocks,
        sums: &mut Sums,
        place: &Mutex<Place<'_>>,
        next: Option<&(Head<'_>, Range<usize>)>,
    ) {
        let (n, columns) = (self.seen.len(), self.head.of.shape.head_dim / SIDE);
        let [p, ds, ds_left] = [(); 3].map(|()| Scratch::of_turns(n * PANELS));
        let mut scores = Scores { p, ds, ds_left };
        let mut dq = Scratch::of_blocks(if self.group.wanted.q { n * columns } else { 0 });
        let mut begun = vec![false; n];
        let mut next = next.cloned();
        for first in (0..self.packed.panels.len()).step_by(PANELS) {
            let seen: Vec<_> = self.seen.iter().map(|seen| within(seen, first)).collect();
            if seen.iter().all(Range::is_empty) {
                continue;
            }
            self.differentiate(blocks, first, &seen, &mut scores, next.take());
            self.add_queries(blocks, first, &seen, &scores.ds_left, &mut begun, dq.blocks_mut());
            self.add_keys_and_values(blocks, first, &seen, &scores, sums);
        }
        if self.group.wanted.q {
            self.put_queries(&begun, dq.blocks(), place);
        }
    }

    /// Fills `scores` for the panels from `first` on, of which rows see `seen`.
    fn differentiate(
        &self,
        blocks: &mut Blocks,
        first: usize,
        seen: &[Range<usize>],
        scores: &mut Scores,
        next: Option<(Head<'_>, Range<usize>)>,
    ) {
        let (n, shape) = (seen.len(), self.head.of.shape);
        let [of_keys, of_values] = [shape.head_dim / SIDE, shape.value_dim / SIDE];
        let (mut products, mut dp) = (Block::ZERO, Block::ZERO);
        for (i, (seen, known)) in seen.iter().zip(&self.known).enumerate() {
            if let Some((head, rows)) = &next {
                self.group.ask_for(head, (rows.start + i * SIDE).min(rows.end)..rows.end);
            }
            let queries = &self.queries.rows.turns()[i * of_keys..][..of_keys];
            let dy = &self.dy.rows.turns()[i * of_values..][..of_values];
            for panel in seen.clone() {
                let keys = &self.packed.columns.turns()[(first + panel) * of_keys..][..of_keys];
                blocks.multiply(&mut products, false, queries, keys);
                let values = &self.packed.values.turns()[(first + panel) * of_values..];
                blocks.multiply(&mut dp, false, dy, &values[..of_values]);
                let to = Factors {
                    p: &mut scores.p.turns_mut()[panel * n + i],
                    ds: &mut scores.ds.turns_mut()[panel * n + i],
                    ds_left: &mut scores.ds_left.turns_mut()[i * PANELS + panel],
                };
                let seen = self.seen_in(i, self.packed.panels.start + first + panel);
                let of = [&products, &dp];
                softmax::differentiate(self.group.amx, shape.scale, of, known, &seen, to);
            }
        }
    }

    /// Adds to the queries' gradient before its scale: 32 rows after another, by 32 columns.
    fn add_queries(
        &self,
        blocks: &mut Blocks,
        first: usize,
        seen: &[Range<usize>],
        ds_left: &Scratch,
        begun: &mut [bool],
        to: &mut [Block],
    ) {
        let panels = self.packed.panels.len();
        let of_rows = to.chunks_exact_mut((to.len() / seen.len()).max(1));
        for (i, (seen, to)) in seen.iter().zip(of_rows).enumerate() {
            if seen.is_empty() {
                continue;
            }
            let ds = &ds_left.turns()[i * PANELS..][seen.clone()];
            let add = std::mem::replace(&mut begun[i], true);
            for (to, keys) in to.iter_mut().zip(self.packed.rows.turns().chunks_exact(panels)) {
                blocks.multiply(to, add, ds, &keys[first..][seen.clone()]);
            }
        }
    }

    fn add_keys_and_values(
        &self,
        blocks: &mut Blocks,
        first: usize,
        seen: &[Range<usize>],
        scores: &Scores,
        sums: &mut Sums,
    ) {
        let n = seen.len();
        for panel in 0..PANELS {
            let sees = |seen: &Range<usize>| seen.contains(&panel);
            let Some(from) = seen.iter().position(sees) else { continue };
            let to = seen.iter().rposition(sees).unwrap_or(from);
            for (sums, left, right) in [
                (&mut sums.dk, &self.queries.columns, &scores.ds),
                (&mut sums.dv, &self.dy.columns, &scores.p),
            ] {
                let right = &right.turns()[panel * n..][from..=to];
                let (sums, begun) = sums.begin(self.packed.panels.start + first + panel);
                for (sum, left) in sums.iter_mut().zip(left.turns().chunks_exact(n)) {
                    blocks.multiply(sum, begun, &left[from..=to], right);
                }
            }
        }
    }

    /// Which keys of a panel of the span each of the 32 rows of this number sees, a bit each.
    fn seen_in(&self, i: usize, panel: usize) -> [u32; SIDE] {
        let first = self.rows.start + i * SIDE;
        let keys = panel * SIDE..(panel + 1) * SIDE;
        let rows = first..(first + SIDE).min(self.rows.end);
        if self.head.all_seen(&rows, &keys) {
            return [u32::MAX; SIDE];
        }
        std::array::from_fn(|row| match first + row < rows.end {
            true => softmax::seen_of_panel(&self.head.seen(first + row), panel),
            false => 0,
        })
    }

    fn put_queries(&self, begun: &[bool], blocks: &[Block], place: &Mutex<Place<'_>>) {
        let shape = self.head.of.shape;
        let width = shape.heads * shape.head_dim;
        let mut place = locked(place);
        for (i, blocks) in blocks.chunks_exact(shape.head_dim / SIDE).enumerate() {
            let first = self.head.span.queries.start + self.rows.start + i * SIDE;
            let rows = first..first + SIDE.min(self.rows.len() - i * SIDE);
            for (column, block) in blocks.iter().enumerate().filter(|_| begun[i]) {
                let start = self.head.head * shape.head_dim + column * SIDE;
                let to = place.to.q.rows(rows.clone(), width, start..start + SIDE);
                softmax::put_rows(self.group.amx, block, &[shape.scale; SIDE], to, width);
            }
        }
    }
}

/// The panels of a range among the [`PANELS`] from `first` on, counted from there.
fn within(panels: &Range<usize>, first: usize) -> Range<usize> {
    let at = |panel: usize| panel.saturating_sub(first).min(PANELS);
    at(panels.start)..at(panels.end)
}

impl Group<'_> {
    /// Asks for what up to 32 of these rows of a head are read for.
    fn ask_for(&self, head: &Head<'_>, rows: Range<usize>) {
        let (shape, n) = (self.of.shape, rows.len().min(SIDE));
        head.queries(rows.start).ask_for(0..n, shape.head_dim);
        for x in [self.saved.dy, self.saved.output] {
            head.outputs(x, rows.start).ask_for(0..n, shape.value_dim);
        }
    }
}

/// What the forward pass left of up to 32 of these rows, whose `dy` is given.
fn known_of(group: &Group<'_>, head: &Head<'_>, rows: Range<usize>, dy: &[Turn]) -> Known {
    let shape = head.of.shape;
    let mut known = Known { max: [0.0; SIDE], inverse: [0.0; SIDE], dot: [0.0; SIDE] };
    let output = head.outputs(group.saved.output, rows.start);
    for (i, row) in rows.take(SIDE).enumerate() {
        let at = (head.span.queries.start + row) * shape.heads + head.head;
        let of_row = group.saved.rows.get(at).copied().unwrap_or_default();
        known.max[i] = of_row.max;
        known.inverse[i] = 1.0 / of_row.sum;
        for (column, dy) in dy.iter().enumerate() {
            let mut y = [bf16::ZERO; SIDE];
            output.put(i, column * SIDE, &mut y);
            known.dot[i] += softmax::dot(group.amx, &y, &dy.rows()[i]);
        }
    }
    known
}
