//! The backward pass over a range of queries of one key/value head of one sequence.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use half::bf16;

use super::{block::QueryBlock, copy_rows_in_order, softmax, way};
use crate::{
    kernels::{
        Computed,
        attention::{
            Backward, Operands, Saved, Wanted,
            head::{Head, head_rows, visible},
            work::{self, Gradients, Sink},
        },
        buffer,
        product::{Amx, Block, SIDE, Scratch},
    },
    ops::Span,
};

/// Query rows of a block.
const ROWS: usize = 256;

/// The backward pass over all sequences and heads, with gradients rounded to bf16; none where these
/// operands go another way.
pub(in super::super) fn backward(
    of: Operands<'_>,
    spans: &[Span],
    saved: Saved<'_>,
    wanted: Wanted,
) -> Option<Backward> {
    let amx = way(&of, spans)?;
    let zeros = |wanted: bool, len: usize| buffer::zeros::<bf16>(if wanted { len } else { 0 });
    let mut q = zeros(wanted.q, of.q.len());
    let mut k = zeros(wanted.k, of.k.len());
    let mut v = zeros(wanted.v, of.v.len());
    let stretches = work::stretches(&of, spans);
    let places = work::places(&of, &stretches, [&mut q, &mut k, &mut v]);
    let places: Vec<_> = places
        .into_iter()
        .map(|to| {
            let waiting = (0..of.shape.kv_heads).map(|_| None).collect();
            Mutex::new(Place { to, waiting })
        })
        .collect();
    let tasks: Vec<_> = stretches
        .iter()
        .zip(&places)
        .flat_map(|(stretch, place)| {
            stretch.tasks(&of).map(move |(heads, part)| (stretch, place, heads, part))
        })
        .collect();
    work::run(&tasks, |(stretch, place, kv_heads, part)| {
        for span in &stretch.spans {
            let queries = part.queries(&of, span);
            for kv_head in kv_heads.clone() {
                let queries = queries.clone();
                let group = Group { amx, of, saved, wanted, span, kv_head, queries };
                let sums = group.backward(place);
                group.finish(sums, part.is_half(), place);
            }
        }
    });
    drop(tasks);
    drop(places);
    let [q, k, v] = [q, k, v].map(Computed::Bf16);
    Some(Backward { q, k, v, bias: Vec::new() })
}

/// A stretch's gradients. Those of keys and values have at most two parts, of which the first waits
/// for the second; which of them that is makes no difference to the sum.
pub(super) struct Place<'a> {
    pub(super) to: Gradients<'a, bf16>,
    waiting: Vec<Option<Sums>>,
}

pub(super) fn locked<'a, 'p>(place: &'a Mutex<Place<'p>>) -> MutexGuard<'a, Place<'p>> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gradients of keys and values before their scale, transposed.
pub(super) struct Sums {
    pub(super) dk: Transposed,
    pub(super) dv: Transposed,
}

/// For each panel of 32 keys a block for every 32 columns.
pub(super) struct Transposed {
    /// Panels of the span's keys.
    panels: Range<usize>,
    columns: usize,
    blocks: Scratch,
    /// Whether a panel has any yet.
    begun: Vec<bool>,
}

impl Transposed {
    fn new(panels: Range<usize>, columns: usize) -> Self {
        let blocks = Scratch::of_blocks(panels.len() * columns);
        Self { begun: vec![false; panels.len()], panels, columns, blocks }
    }

    /// A panel's blocks, and whether they hold something already; from now on they do.
    pub(super) fn begin(&mut self, panel: usize) -> (&mut [Block], bool) {
        let at = panel - self.panels.start;
        let begun = std::mem::replace(&mut self.begun[at], true);
        (&mut self.blocks.blocks_mut()[at * self.columns..][..self.columns], begun)
    }

    /// A panel's blocks, if they hold something.
    fn panel(&self, panel: usize) -> Option<&[Block]> {
        let at = panel.checked_sub(self.panels.start)?;
        let begun = self.begun.get(at).copied().unwrap_or_default();
        begun.then(|| &self.blocks.blocks()[at * self.columns..][..self.columns])
    }
}

/// One key/value head of one sequence, and the queries of it whose part is sought.
pub(super) struct Group<'a> {
    pub(super) amx: Amx,
    pub(super) of: Operands<'a>,
    pub(super) saved: Saved<'a>,
    pub(super) wanted: Wanted,
    pub(super) span: &'a Span,
    pub(super) kv_head: usize,
    pub(super) queries: Range<usize>,
}

impl Group<'_> {
    /// Puts the gradients of the queries at their place, and returns those of keys and values.
    fn backward(&self, place: &Mutex<Place<'_>>) -> Sums {
        let shape = self.of.shape;
        let packed = Packed::new(self);
        let sums = |wanted: bool, dim: usize| {
            Transposed::new(packed.panels.clone(), if wanted { dim / SIDE } else { 0 })
        };
        let mut sums = Sums {
            dk: sums(self.wanted.k, shape.head_dim),
            dv: sums(self.wanted.v, shape.value_dim),
        };
        let mut blocks = self.amx.begin();
        let group = shape.heads / shape.kv_heads;
        let heads = self.kv_head * group..(self.kv_head + 1) * group;
        let of_head = |head| Head { of: self.of, span: self.span, head };
        let end = self.queries.end;
        let all = heads.map(of_head).flat_map(|head| {
            let starts = self.queries.clone().step_by(ROWS);
            starts.map(move |start| (head, start..(start + ROWS).min(end)))
        });
        let mut all = all.peekable();
        while let Some((head, rows)) = all.next() {
            if let Some(block) = QueryBlock::new(self, head, rows, &packed) {
                block.backward(&mut blocks, &mut sums, place, all.peek());
            }
        }
        sums
    }

    /// Puts the gradients of keys and values at their place, once both parts are there if there are
    /// two.
    fn finish(&self, sums: Sums, is_half: bool, place: &Mutex<Place<'_>>) {
        let Place { to, waiting } = &mut *locked(place);
        let other = if is_half { waiting[self.kv_head].take() } else { None };
        if is_half && other.is_none() {
            waiting[self.kv_head] = Some(sums);
            return;
        }
        let parts = |of: fn(&Sums) -> &Transposed| [Some(of(&sums)), other.as_ref().map(of)];
        self.put(parts(|sums| &sums.dk), self.of.shape.scale, &mut to.k);
        self.put(parts(|sums| &sums.dv), 1.0, &mut to.v);
    }

    /// Puts the sum of parts.
    fn put(&self, parts: [Option<&Transposed>; 2], scale: f32, to: &mut Sink<'_, bf16>) {
        let keys = self.span.keys.clone();
        let mut turned = Block::ZERO;
        for (panel, start) in keys.clone().step_by(SIDE).enumerate() {
            let rows = start..(start + SIDE).min(keys.end);
            let mut found = parts.iter().flatten().filter_map(|part| part.panel(panel));
            let (Some(first), second) = (found.next(), found.next()) else { continue };
            for (column, block) in first.iter().enumerate() {
                let mut sum = *block;
                if let Some(other) = second.and_then(|blocks| blocks.get(column)) {
                    sum.0.iter_mut().zip(&other.0).for_each(|(sum, other)| *sum += other);
                }
                self.amx.transpose(&sum, &mut turned);
                let columns = (self.kv_head * first.len() + column) * SIDE;
                let width = self.of.shape.kv_heads * first.len() * SIDE;
                let to = to.rows(rows.clone(), width, columns..columns + SIDE);
                softmax::put_rows(self.amx, &turned, &[scale; SIDE], to, width);
            }
        }
    }
}

/// Keys and values as right factors: keys as columns, and as rows by 32 columns of them; values as
/// columns.
pub(super) struct Packed {
    /// Panels of the span's keys.
    pub(super) panels: Range<usize>,
    pub(super) columns: Scratch,
    pub(super) rows: Scratch,
    pub(super) values: Scratch,
}

impl Packed {
    /// Packs the keys that any of the group's queries sees.
    fn new(group: &Group<'_>) -> Self {
        let (shape, amx) = (group.of.shape, group.amx);
        let [of_keys, of_values] = [shape.head_dim, shape.value_dim].map(|dim| dim / SIDE);
        let panels = panels_of(&visible(&group.of, group.span, &group.queries));
        let n = panels.len();
        let [mut columns, mut rows, mut values] =
            [of_keys, of_keys, of_values].map(|turns| Scratch::of_turns(n * turns));
        let mut copies = Scratch::of_turns(of_keys.max(of_values));
        let copies = copies.turns_mut();
        for (at, panel) in panels.clone().enumerate() {
            let left = group.span.keys.len() - panel * SIDE;
            let first = group.span.keys.start + panel * SIDE;
            let head = |x, dim| head_rows(x, first, shape.kv_heads, dim, group.kv_head);
            copy_rows_in_order(head(group.of.k, shape.head_dim), left, shape.head_dim, copies);
            for (i, copy) in copies.iter().take(of_keys).enumerate() {
                amx.rows_to_columns(copy, &mut columns.turns_mut()[at * of_keys + i]);
                amx.rows_to_right(copy, &mut rows.turns_mut()[i * n + at]);
            }
            copy_rows_in_order(head(group.of.v, shape.value_dim), left, shape.value_dim, copies);
            for (i, copy) in copies.iter().take(of_values).enumerate() {
                amx.rows_to_columns(copy, &mut values.turns_mut()[at * of_values + i]);
            }
        }
        Self { panels, columns, rows, values }
    }
}

/// The panels of 32 keys that hold some of these.
pub(super) fn panels_of(keys: &Range<usize>) -> Range<usize> {
    if keys.is_empty() { 0..0 } else { keys.start / SIDE..keys.end.div_ceil(SIDE) }
}
