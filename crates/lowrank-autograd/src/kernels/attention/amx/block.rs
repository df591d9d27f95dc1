//! A block of query rows in the backward pass.

use std::{ops::Range, sync::Mutex};

use half::bf16;

use super::{
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

/// What the products of a block leave: probabilities and the gradients of scores as right factors,
/// panel by panel of keys, 32 rows after another; the latter as a left factor too, the other way
/// round.
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
        let dy = copy(group.outputs(group.saved.dy, &head, rows.start), shape.value_dim);
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
        let scores = self.scores(blocks, next);
        if self.group.wanted.q {
            self.put_queries(blocks, &scores.ds_left, place);
        }
        for panel in 0..self.packed.panels.len() {
            let sees = |seen: &Range<usize>| seen.contains(&panel);
            let Some(first) = self.seen.iter().position(sees) else { continue };
            let last = self.seen.iter().rposition(sees).unwrap_or(first);
            let n = self.seen.len();
            for (sums, left, right) in [
                (&mut sums.dk, &self.queries.columns, &scores.ds),
                (&mut sums.dv, &self.dy.columns, &scores.p),
            ] {
                let right = &right.turns()[panel * n..][first..=last];
                let (sums, begun) = sums.begin(self.packed.panels.start + panel);
                for (sum, left) in sums.iter_mut().zip(left.turns().chunks_exact(n)) {
                    blocks.multiply(sum, begun, &left[first..=last], right);
                }
            }
        }
    }

    fn scores(&self, blocks: &mut Blocks, next: Option<&(Head<'_>, Range<usize>)>) -> Scores {
        let (n, panels) = (self.seen.len(), self.packed.panels.len());
        let shape = self.head.of.shape;
        let [of_keys, of_values] = [shape.head_dim / SIDE, shape.value_dim / SIDE];
        let [mut p, mut ds, mut ds_left] = [(); 3].map(|()| Scratch::of_turns(n * panels));
        let (mut scores, mut dp) = (Block::ZERO, Block::ZERO);
        for (i, (seen, known)) in self.seen.iter().zip(&self.known).enumerate() {
            if let Some((head, rows)) = next {
                self.group.ask_for(head, (rows.start + i * SIDE).min(rows.end)..rows.end);
            }
            let queries = &self.queries.rows.turns()[i * of_keys..][..of_keys];
            let dy = &self.dy.rows.turns()[i * of_values..][..of_values];
            for panel in seen.clone() {
                let keys = &self.packed.columns.turns()[panel * of_keys..][..of_keys];
                blocks.multiply(&mut scores, false, queries, keys);
                let values = &self.packed.values.turns()[panel * of_values..][..of_values];
                blocks.multiply(&mut dp, false, dy, values);
                let to = Factors {
                    p: &mut p.turns_mut()[panel * n + i],
                    ds: &mut ds.turns_mut()[panel * n + i],
                    ds_left: &mut ds_left.turns_mut()[i * panels + panel],
                };
                let seen = self.seen_in(i, self.packed.panels.start + panel);
                let of = [&scores, &dp];
                softmax::differentiate(self.group.amx, shape.scale, of, known, &seen, to);
            }
        }
        Scores { p, ds, ds_left }
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

    fn put_queries(&self, blocks: &mut Blocks, ds_left: &Scratch, place: &Mutex<Place<'_>>) {
        let (shape, panels) = (self.head.of.shape, self.packed.panels.len());
        let columns = shape.head_dim / SIDE;
        let width = shape.heads * shape.head_dim;
        let mut dq = Scratch::of_blocks(columns);
        for (i, seen) in self.seen.iter().enumerate().filter(|(_, seen)| !seen.is_empty()) {
            let ds = &ds_left.turns()[i * panels..][seen.clone()];
            for (column, dq) in dq.blocks_mut().iter_mut().enumerate() {
                let keys = &self.packed.rows.turns()[column * panels..][seen.clone()];
                blocks.multiply(dq, false, ds, keys);
            }
            let first = self.head.span.queries.start + self.rows.start + i * SIDE;
            let rows = first..first + SIDE.min(self.rows.len() - i * SIDE);
            let mut place = locked(place);
            for (column, dq) in dq.blocks().iter().enumerate() {
                let start = self.head.head * shape.head_dim + column * SIDE;
                let to = place.to.q.rows(rows.clone(), width, start..start + SIDE);
                softmax::put_rows(self.group.amx, dq, &[shape.scale; SIDE], to, width);
            }
        }
    }
}

impl Group<'_> {
    /// Asks for what up to 32 of these rows of a head are read for.
    fn ask_for(&self, head: &Head<'_>, rows: Range<usize>) {
        let (shape, n) = (self.of.shape, rows.len().min(SIDE));
        head.queries(rows.start).ask_for(0..n, shape.head_dim);
        for x in [self.saved.dy, self.saved.output] {
            self.outputs(x, head, rows.start).ask_for(0..n, shape.value_dim);
        }
    }
}

/// What the forward pass left of up to 32 of these rows, whose `dy` is given.
fn known_of(group: &Group<'_>, head: &Head<'_>, rows: Range<usize>, dy: &[Turn]) -> Known {
    let shape = head.of.shape;
    let mut known = Known { max: [0.0; SIDE], inverse: [0.0; SIDE], dot: [0.0; SIDE] };
    let output = group.outputs(group.saved.output, head, rows.start);
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
