//! How the work is cut into tasks: by its size alone, never by the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    Operands,
    head::{KEYS, visible},
    softmax,
};
use crate::ops::Span;

/// Query rows of a block.
pub(super) const ROWS: usize = 64;

/// Query rows between two places at which a sequence may be cut in two.
const STEP: usize = 32;

/// Products of two numbers that a task should hold at least: some twenty microseconds.
const TASK: usize = 1 << 20;

/// A block of query rows of one span.
pub(super) struct Block<'a> {
    pub(super) span: &'a Span,
    /// Its number among all spans.
    pub(super) index: usize,
    pub(super) rows: Range<usize>,
}

/// Blocks that follow each other in the packed tensors.
#[derive(Default)]
pub(super) struct Piece<'a> {
    pub(super) blocks: Vec<Block<'a>>,
    /// Their rows, from the first to the last.
    pub(super) rows: Range<usize>,
    /// Products of two numbers in all heads.
    work: usize,
}

/// Cuts spans into pieces: long ones into blocks, short ones put together.
pub(super) fn pieces<'a>(of: &Operands<'_>, spans: &'a [Span]) -> Vec<Piece<'a>> {
    let mut spans: Vec<(usize, &Span)> =
        spans.iter().enumerate().filter(|(_, s)| !s.queries.is_empty()).collect();
    spans.sort_by_key(|(_, span)| span.queries.start);
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    for (index, span) in spans {
        let n = span.queries.len();
        for rows in (0..n).step_by(ROWS).map(|first| first..(first + ROWS).min(n)) {
            let work = work(of, rows.len() * visible(of, span, &rows).len());
            let place = span.queries.start + rows.start..span.queries.start + rows.end;
            let block = Block { span, index, rows };
            match pieces.last_mut().filter(|piece| piece.work < TASK) {
                Some(piece) => {
                    piece.blocks.push(block);
                    piece.rows.end = place.end;
                    piece.work += work;
                }
                None => pieces.push(Piece { blocks: vec![block], rows: place, work }),
            }
        }
    }
    pieces
}

/// Products of two numbers in the forward pass, all heads, for so many scores.
fn work(of: &Operands<'_>, scores: usize) -> usize {
    scores * of.shape.heads * (of.shape.head_dim + of.shape.value_dim)
}

/// Ranges of heads whose work on a piece is worth a task.
pub(super) fn head_ranges(piece: &Piece<'_>, heads: usize) -> impl Iterator<Item = Range<usize>> {
    let tasks = (piece.work / TASK).clamp(1, heads);
    let each = heads.div_ceil(tasks);
    (0..heads).step_by(each).map(move |first| first..(first + each).min(heads))
}

/// Runs all tasks and returns what they return, in order; a single one without other threads.
pub(super) fn run<T: Sync, R: Send>(tasks: &[T], run: impl Fn(&T) -> R + Send + Sync) -> Vec<R> {
    match tasks {
        [task] => vec![run(task)],
        _ => tasks.par_iter().with_max_len(1).map(run).collect(),
    }
}

/// Spans whose backward pass shares no rows of any operand with that of other stretches.
#[derive(Default)]
pub(super) struct Stretch<'a> {
    pub(super) spans: Vec<&'a Span>,
    queries: Range<usize>,
    keys: Range<usize>,
    work: usize,
}

/// Whether no two sequences share keys, nor lie otherwise in these than in the queries.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
pub(super) fn are_apart(spans: &[Span]) -> bool {
    in_order(&by_queries(spans))
}

fn by_queries(spans: &[Span]) -> Vec<&Span> {
    let mut spans: Vec<_> = spans.iter().filter(|s| !s.queries.is_empty()).collect();
    spans.sort_by_key(|span| span.queries.start);
    spans
}

fn in_order(spans: &[&Span]) -> bool {
    spans.windows(2).all(|pair| pair[0].keys.end <= pair[1].keys.start)
}

/// Cuts spans into stretches, short ones put together; all are one where sequences share keys.
pub(super) fn stretches<'a>(of: &Operands<'_>, spans: &'a [Span]) -> Vec<Stretch<'a>> {
    let spans = by_queries(spans);
    let apart = in_order(&spans);
    let mut stretches: Vec<Stretch<'a>> = Vec::new();
    for span in spans {
        let work = work(of, span_scores(of, span, 0..span.keys.len()));
        match stretches.last_mut().filter(|stretch| !apart || stretch.work < TASK) {
            Some(stretch) => {
                stretch.spans.push(span);
                stretch.queries.end = span.queries.end;
                stretch.keys.start = stretch.keys.start.min(span.keys.start);
                stretch.keys.end = stretch.keys.end.max(span.keys.end);
                stretch.work += work;
            }
            None => stretches.push(Stretch {
                spans: vec![span],
                queries: span.queries.clone(),
                keys: span.keys.clone(),
                work,
            }),
        }
    }
    stretches
}

/// Scores of a span's queries with some of its keys.
fn span_scores(of: &Operands<'_>, span: &Span, keys: Range<usize>) -> usize {
    let n = span.queries.len();
    let seen = |first: usize| {
        let rows = first..(first + ROWS).min(n);
        let seen = visible(of, span, &rows);
        rows.len() * seen.end.min(keys.end).saturating_sub(seen.start.max(keys.start))
    };
    (0..n).step_by(ROWS).map(seen).sum()
}

/// Which of a span's keys a task is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    All,
    /// The first keys, up to about half of the work.
    First,
    Second,
}

impl Part {
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
    pub(super) fn is_half(self) -> bool {
        self != Self::All
    }

    /// Which of a span's queries a task is for, where tasks share keys.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
    pub(super) fn queries(self, of: &Operands<'_>, span: &Span) -> Range<usize> {
        let len = span.queries.len();
        if self == Self::All {
            return 0..len;
        }
        let scores = |rows: Range<usize>| {
            let seen = |row: usize| visible(of, span, &(row..row + 1)).len();
            rows.map(seen).sum::<usize>()
        };
        let half = scores(0..len) / 2;
        let cuts = (0..len).step_by(STEP).scan(0, |so_far, cut| {
            let before = *so_far;
            *so_far += scores(cut..(cut + STEP).min(len));
            Some((cut, before))
        });
        let split =
            cuts.min_by_key(|(_, before)| before.abs_diff(half)).map_or(len, |(cut, _)| cut);
        if self == Self::First { 0..split } else { split..len }
    }

    pub(super) fn of(self, of: &Operands<'_>, span: &Span) -> Range<usize> {
        let len = span.keys.len();
        if self == Self::All {
            return 0..len;
        }
        let half = span_scores(of, span, 0..len) / 2;
        let split =
            (0..len).step_by(KEYS).min_by_key(|&key| span_scores(of, span, 0..key).abs_diff(half));
        let split = split.unwrap_or(len);
        if self == Self::First { 0..split } else { split..len }
    }
}

impl Stretch<'_> {
    /// Ranges of key/value heads, and which keys of each span. Two tasks at most add to the same
    /// gradient, so that their order makes no difference to the sum.
    pub(super) fn tasks(
        &self,
        of: &Operands<'_>,
    ) -> impl Iterator<Item = (Range<usize>, Part)> + use<> {
        let kv_heads = of.shape.kv_heads;
        let each = if self.work < 2 * TASK { kv_heads } else { 1 };
        let halved = self.spans.len() == 1 && self.work / kv_heads >= 8 * TASK;
        let parts: &[Part] = if halved { &[Part::First, Part::Second] } else { &[Part::All] };
        (0..kv_heads)
            .step_by(each)
            .flat_map(move |first| parts.iter().map(move |part| (first..first + each, *part)))
    }
}

/// Rows of a packed gradient, from row `first` on.
pub(super) struct Sink<'a, T = f32> {
    data: &'a mut [T],
    first: usize,
}

impl Sink<'_> {
    /// Adds `factor` times one head's rows, from row `first` of the whole tensor on.
    pub(super) fn add(
        &mut self,
        first: usize,
        [heads, dim, head]: [usize; 3],
        factor: f32,
        from: &[f32],
    ) {
        let rows = self.data.chunks_exact_mut(heads * dim).skip(first - self.first);
        for (to, from) in rows.zip(from.chunks_exact(dim)) {
            softmax::add_scaled(&mut to[head * dim..(head + 1) * dim], factor, from);
        }
    }
}

impl<T> Sink<'_, T> {
    /// These columns of some rows of the whole tensor, of `width` elements each: from the first of
    /// them to the last, with what lies between.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
    pub(super) fn rows(
        &mut self,
        rows: Range<usize>,
        width: usize,
        columns: Range<usize>,
    ) -> &mut [T] {
        let (first, last) = (rows.start - self.first, rows.end - 1 - self.first);
        &mut self.data[first * width + columns.start..last * width + columns.end]
    }
}

/// A stretch's rows of the gradients.
pub(super) struct Gradients<'a, T = f32> {
    pub(super) q: Sink<'a, T>,
    pub(super) k: Sink<'a, T>,
    pub(super) v: Sink<'a, T>,
}

/// Each stretch's rows of the gradients.
pub(super) fn places<'a, T>(
    of: &Operands<'_>,
    stretches: &[Stretch<'_>],
    [q, k, v]: [&'a mut [T]; 3],
) -> Vec<Gradients<'a, T>> {
    let s = of.shape;
    let mut q = Remaining { data: q, at: 0, width: s.heads * s.head_dim };
    let mut k = Remaining { data: k, at: 0, width: s.kv_heads * s.head_dim };
    let mut v = Remaining { data: v, at: 0, width: s.kv_heads * s.value_dim };
    let place = |stretch: &Stretch<'_>| Gradients {
        q: q.cut(&stretch.queries),
        k: k.cut(&stretch.keys),
        v: v.cut(&stretch.keys),
    };
    stretches.iter().map(place).collect()
}

/// What is left of a packed tensor from row `at` on.
struct Remaining<'a, T> {
    data: &'a mut [T],
    at: usize,
    width: usize,
}

impl<'a, T> Remaining<'a, T> {
    /// Cuts rows off; a tensor that isn't wanted has none.
    fn cut(&mut self, rows: &Range<usize>) -> Sink<'a, T> {
        let data = std::mem::take(&mut self.data);
        let skipped = ((rows.start - self.at) * self.width).min(data.len());
        let len = (rows.len() * self.width).min(data.len() - skipped);
        let (front, back) = data.split_at_mut(skipped + len);
        (self.data, self.at) = (back, rows.end);
        Sink { data: &mut front[skipped..], first: rows.start }
    }
}
