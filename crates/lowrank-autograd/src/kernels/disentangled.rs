//! Disentangled attention, a head at a time: every head goes over the sequences in their order, so
//! that the sums over distances have one order too.

use rayon::prelude::*;

use super::product::{Target, View, product};
use crate::{Dropout, ops::Span};

/// Operands: `q`, `k` and `v` `[n, width]`, tables `[rows, width]` or empty.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    /// What queries meet.
    pub(crate) keys: &'a [f32],
    /// What keys meet.
    pub(crate) queries: &'a [f32],
    /// The row of each distance, the middle one for 0; ascending.
    pub(crate) rows: &'a [u32],
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) scale: f32,
    pub(crate) dropout: Option<&'a Dropout>,
}

/// Attends: `[n, width]`.
pub(crate) fn forward(of: Operands<'_>, spans: &[Span]) -> Vec<f32> {
    let heads = (0..of.heads).into_par_iter().map(|head| {
        let mut output = vec![0.0; of.q.len() / of.heads];
        for span in spans {
            Head { of, span, head }.forward(&mut output);
        }
        output
    });
    interleaved(&heads.collect::<Vec<_>>(), of.dim())
}

/// Gradients of `q`, `k`, `v`, the table of keys and that of queries; those of tables only where
/// wanted.
pub(crate) fn backward(
    of: Operands<'_>,
    spans: &[Span],
    dy: &[f32],
    wanted: [bool; 5],
) -> Vec<Vec<f32>> {
    let wanted = Tables { keys: wanted[3], queries: wanted[4] };
    let heads = (0..of.heads).into_par_iter().map(|head| {
        let zeros = |like: &[f32]| vec![0.0; like.len() / of.heads];
        let mut gradients = [of.q, of.k, of.v, of.keys, of.queries].map(zeros);
        for span in spans {
            Head { of, span, head }.backward(dy, wanted, &mut gradients);
        }
        gradients
    });
    let heads: Vec<[Vec<f32>; 5]> = heads.collect();
    let of_operand = |i: usize| heads.iter().map(move |head| &head[i]).collect::<Vec<_>>();
    (0..5).map(|i| interleaved(&of_operand(i), of.dim())).collect()
}

/// Which tables' gradients are sought.
#[derive(Clone, Copy)]
struct Tables {
    keys: bool,
    queries: bool,
}

/// Heads `[n, dim]` side by side: `[n, heads·dim]`.
fn interleaved<T: AsRef<[f32]>>(heads: &[T], dim: usize) -> Vec<f32> {
    let rows = heads.first().map_or(0, |head| head.as_ref().len() / dim.max(1));
    let row = |i: usize| heads.iter().flat_map(move |head| &head.as_ref()[i * dim..][..dim]);
    (0..rows).flat_map(row).copied().collect()
}

impl<'a> Operands<'a> {
    fn dim(&self) -> usize {
        self.width / self.heads.max(1)
    }

    /// Rows of one head of an operand or table.
    fn view(&self, x: &'a [f32], head: usize, start: usize, rows: usize) -> View<'a> {
        let dim = self.dim();
        View::strided(&x[start * self.width + head * dim..], rows, dim, self.width, 1)
    }
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head<'a> {
    of: Operands<'a>,
    span: &'a Span,
    head: usize,
}

/// A sequence's rows of a table: the first one and their number.
#[derive(Clone, Copy)]
struct Window {
    first: usize,
    len: usize,
}

impl<'a> Head<'a> {
    fn len(&self) -> usize {
        self.span.keys.len()
    }

    /// This head's real rows of an operand.
    fn real(&self, x: &'a [f32]) -> View<'a> {
        self.of.view(x, self.head, self.span.keys.start, self.len())
    }

    /// The row of distance `i - j`.
    fn row(&self, i: usize, j: usize) -> usize {
        self.of.rows[self.of.rows.len() / 2 + i - j] as usize
    }

    fn window(&self) -> Window {
        let (first, last) = (self.row(0, self.len() - 1), self.row(self.len() - 1, 0));
        Window { first, len: last + 1 - first }
    }

    /// `scale·x·tableᵀ` over the window's rows: `[len, window]`.
    fn met(&self, x: &'a [f32], table: &'a [f32], window: Window) -> Vec<f32> {
        let mut met = vec![0.0; self.len() * window.len];
        let table = self.of.view(table, self.head, window.first, window.len);
        product(
            &mut Target::new(&mut met, window.len),
            false,
            self.of.scale,
            self.real(x),
            table.t(),
        );
        met
    }

    /// Probabilities before dropout, `[len, len]`.
    fn probabilities(&self) -> Vec<f32> {
        let n = self.len();
        let mut p = vec![0.0; n * n];
        let (q, k) = (self.real(self.of.q), self.real(self.of.k));
        product(&mut Target::new(&mut p, n), false, self.of.scale, q, k.t());
        if !self.of.keys.is_empty() {
            let window = self.window();
            let met = self.met(self.of.q, self.of.keys, window);
            self.each(&mut p, |score, i, _, row| {
                *score += met[i * window.len + row - window.first]
            });
        }
        if !self.of.queries.is_empty() {
            let window = self.window();
            let met = self.met(self.of.k, self.of.queries, window);
            self.each(&mut p, |score, _, j, row| {
                *score += met[j * window.len + row - window.first]
            });
        }
        p.chunks_exact_mut(n).for_each(softmax);
        p
    }

    /// Goes over a matrix of pairs with each one's query, key and row of distance.
    fn each(&self, pairs: &mut [f32], mut f: impl FnMut(&mut f32, usize, usize, usize)) {
        let n = self.len();
        for (i, line) in pairs.chunks_exact_mut(n).enumerate() {
            for (j, pair) in line.iter_mut().enumerate() {
                f(pair, i, j, self.row(i, j));
            }
        }
    }

    /// Applies this head's dropout to a matrix of pairs.
    fn drop(&self, pairs: &mut [f32]) {
        let Some(dropout) = self.of.dropout else { return };
        let own = Dropout { key: dropout.key.with(self.head as u64), ..dropout.clone() };
        let mut factors = vec![0.0; self.len()];
        for (row, line) in self.span.keys.clone().zip(pairs.chunks_exact_mut(self.len())) {
            own.factors(row, 0, &mut factors);
            line.iter_mut().zip(&factors).for_each(|(p, factor)| *p *= factor);
        }
    }

    /// Rows that are padding.
    fn padding(&self) -> impl Iterator<Item = usize> + use<> {
        let Span { queries, keys, .. } = self.span.clone();
        (queries.start..keys.start).chain(keys.end..queries.end)
    }

    /// Writes this sequence's rows of `output` `[n, dim]`.
    fn forward(&self, output: &mut [f32]) {
        let (n, dim) = (self.len(), self.of.dim());
        let mut p = self.probabilities();
        self.drop(&mut p);
        let to = &mut output[self.span.keys.start * dim..][..n * dim];
        let v = self.real(self.of.v);
        product(&mut Target::new(to, dim), false, 1.0, View::new(&p, n, n), v);
        let all = self.span.queries.clone();
        let value = |row: usize| &self.of.v[row * self.of.width + self.head * dim..][..dim];
        for row in self.padding() {
            let to = &mut output[row * dim..][..dim];
            all.clone().for_each(|from| add(to, value(from), 1.0));
            to.iter_mut().for_each(|y| *y /= all.len() as f32);
        }
    }

    /// Adds this sequence's part to the gradients of `q`, `k`, `v` and both tables, `[…, dim]`.
    fn backward(&self, dy: &'a [f32], wanted: Tables, gradients: &mut [Vec<f32>; 5]) {
        let (n, dim, scale) = (self.len(), self.of.dim(), self.of.scale);
        let (q, k, v) = (self.real(self.of.q), self.real(self.of.k), self.real(self.of.v));
        let start = self.span.keys.start * dim;
        let [dq, dk, dv, dkeys, dqueries] = gradients;
        let p = self.probabilities();
        let mut dropped = p.clone();
        self.drop(&mut dropped);
        let dy_rows = self.real(dy);
        let seen_by = View::new(&dropped, n, n).t();
        product(&mut Target::new(&mut dv[start..], dim), true, 1.0, seen_by, dy_rows);
        let mut ds = dropped;
        product(&mut Target::new(&mut ds, n), false, 1.0, dy_rows, v.t());
        self.drop(&mut ds);
        for (ds, p) in ds.chunks_exact_mut(n).zip(p.chunks_exact(n)) {
            let mean: f32 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - mean));
        }
        let by_query = View::new(&ds, n, n);
        product(&mut Target::new(&mut dq[start..], dim), true, scale, by_query, k);
        product(&mut Target::new(&mut dk[start..], dim), true, scale, by_query.t(), q);
        if !self.of.keys.is_empty() {
            let window = self.window();
            let mut sums = vec![0.0; n * window.len];
            self.each(&mut ds, |d, i, _, row| sums[i * window.len + row - window.first] += *d);
            let into = wanted.keys.then_some(dkeys);
            self.spread(&sums, window, (self.of.q, self.of.keys), (&mut dq[start..], into));
        }
        if !self.of.queries.is_empty() {
            let window = self.window();
            let mut sums = vec![0.0; n * window.len];
            self.each(&mut ds, |d, _, j, row| sums[j * window.len + row - window.first] += *d);
            let into = wanted.queries.then_some(dqueries);
            self.spread(&sums, window, (self.of.k, self.of.queries), (&mut dk[start..], into));
        }
        for row in self.padding() {
            let (all, dy) =
                (self.span.queries.clone(), &dy[row * self.of.width + self.head * dim..]);
            let share = (all.len() as f32).recip();
            all.for_each(|to| add(&mut dv[to * dim..][..dim], &dy[..dim], share));
        }
    }

    /// The gradient of [`Head::met`]: `sums` is that of its result.
    fn spread(
        &self,
        sums: &[f32],
        window: Window,
        (x, table): (&'a [f32], &'a [f32]),
        (dx, dtable): (&mut [f32], Option<&mut Vec<f32>>),
    ) {
        let dim = self.of.dim();
        let sums = View::new(sums, self.len(), window.len);
        let rows = self.of.view(table, self.head, window.first, window.len);
        product(&mut Target::new(dx, dim), true, self.of.scale, sums, rows);
        if let Some(dtable) = dtable {
            let to = &mut dtable[window.first * dim..];
            product(&mut Target::new(to, dim), true, self.of.scale, sums.t(), self.real(x));
        }
    }
}

/// `to += factor·from`
fn add(to: &mut [f32], from: &[f32], factor: f32) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, score| max.max(*score));
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}
