//! One head of one sequence: where its rows lie, which keys a query sees, and its scores.

use std::ops::Range;

use half::bf16;

use super::{
    Operands,
    scratch::Buffer,
    softmax::{self, LANES},
    tile::{Left, Rows, Size, multiply},
};
use crate::{
    Dropout,
    elements::Elements,
    kernels::{
        elementwise::narrow,
        product::{self, View},
        simd::ask_for,
    },
    ops::Span,
};

/// Keys of a tile.
pub(super) const KEYS: usize = 64;

/// One query head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) of: Operands<'a>,
    pub(super) span: &'a Span,
    pub(super) head: usize,
}

/// A tile of scores: these keys (rows of the tile) by these query rows (its lanes), both counted
/// from the start of the span.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Tile {
    /// Query rows, filled up to whole vectors.
    pub(super) fn lanes(&self) -> usize {
        lanes(&self.rows)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len() * self.lanes()
    }
}

/// Query rows, filled up to whole vectors.
pub(super) fn lanes(rows: &Range<usize>) -> usize {
    rows.len().next_multiple_of(LANES)
}

/// Rows of one head of a packed tensor, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct HeadRows<'a> {
    data: Elements<'a>,
    stride: usize,
}

/// The rows of this head from row `first` on.
pub(super) fn head_rows(
    x: Elements<'_>,
    first: usize,
    heads: usize,
    dim: usize,
    head: usize,
) -> HeadRows<'_> {
    let stride = heads * dim;
    HeadRows { data: x.slice((first * stride + head * dim).min(x.len())..x.len()), stride }
}

impl<'a> HeadRows<'a> {
    /// The rows for kernels of f32, which are given no others.
    pub(super) fn wide(self) -> Rows<'a> {
        let data = match self.data {
            Elements::F32(data) => data,
            _ => &[],
        };
        Rows { data, stride: self.stride }
    }

    pub(super) fn view(self, rows: usize, columns: usize) -> View<'a> {
        View::strided_over(self.data, rows, columns, self.stride, 1)
    }

    /// Asks for the first `len` elements of rows that will be read soon: a head's rows are too short
    /// for the machine to foresee the next one.
    pub(super) fn ask_for(self, rows: Range<usize>, len: usize) {
        let stride = self.stride;
        let row = |row: usize| self.data.slice(row * stride..row * stride + len);
        rows.map(row).for_each(|row| match row {
            Elements::F32(row) => ask_for(row),
            Elements::Bf16(row) => ask_for(row),
            Elements::F16(row) => ask_for(row),
        });
    }

    /// The rows from row `first` on.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
    pub(super) fn starting_at(self, first: usize) -> Self {
        let start = (first * self.stride).min(self.data.len());
        Self { data: self.data.slice(start..self.data.len()), ..self }
    }

    /// Puts elements of a row, from `first` on, as bf16.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "of tiles of AMX"))]
    pub(super) fn put<const N: usize>(self, row: usize, first: usize, to: &mut [bf16; N]) {
        let start = row * self.stride + first;
        match self.data.slice(start..start + N) {
            Elements::Bf16(from) => *to = *from.first_chunk().unwrap_or(&[bf16::ZERO; N]),
            from => narrow(to, &from.wide()),
        }
    }

    /// `Σ x·y` over the first `len` elements of row `i` of both.
    pub(super) fn dot(self, other: Self, i: usize, len: usize) -> f32 {
        let row = |of: Self| of.data.slice(i * of.stride..i * of.stride + len);
        match (row(self), row(other)) {
            (Elements::Bf16(x), Elements::Bf16(y)) => softmax::dot_of_bf16(x, y),
            (x, y) => softmax::dot(&x.wide(), &y.wide()),
        }
    }
}

impl<'a> Head<'a> {
    pub(super) fn kv_head(&self) -> usize {
        self.head / (self.of.shape.heads / self.of.shape.kv_heads)
    }

    pub(super) fn queries(&self, row: usize) -> HeadRows<'a> {
        let s = self.of.shape;
        head_rows(self.of.q, self.span.queries.start + row, s.heads, s.head_dim, self.head)
    }

    pub(super) fn keys(&self, key: usize) -> HeadRows<'a> {
        let (s, head) = (self.of.shape, self.kv_head());
        head_rows(self.of.k, self.span.keys.start + key, s.kv_heads, s.head_dim, head)
    }

    pub(super) fn values(&self, key: usize) -> HeadRows<'a> {
        let (s, head) = (self.of.shape, self.kv_head());
        head_rows(self.of.v, self.span.keys.start + key, s.kv_heads, s.value_dim, head)
    }

    /// This head's rows of the output or its gradient, from the span's query `row` on.
    pub(super) fn outputs<'x>(&self, x: Elements<'x>, row: usize) -> HeadRows<'x> {
        let s = self.of.shape;
        head_rows(x, self.span.queries.start + row, s.heads, s.value_dim, self.head)
    }

    /// The keys that one query row sees.
    pub(super) fn seen(&self, row: usize) -> Range<usize> {
        row_visible(&self.of, self.span, row)
    }

    /// The keys that any of these query rows sees.
    pub(super) fn visible(&self, rows: &Range<usize>) -> Range<usize> {
        visible(&self.of, self.span, rows)
    }

    /// The tiles of a block of query rows in which something is seen, cut at every [`KEYS`] of
    /// `among`.
    pub(super) fn tiles(
        &self,
        rows: &Range<usize>,
        among: Range<usize>,
    ) -> impl Iterator<Item = Tile> + use<> {
        let (seen, end) = (self.visible(rows), among.end.min(self.span.keys.len()));
        let first = seen.start.saturating_sub(among.start) / KEYS * KEYS + among.start;
        let rows = rows.clone();
        (first..seen.end.min(end).max(first))
            .step_by(KEYS)
            .map(move |first| Tile { rows: rows.clone(), keys: first..(first + KEYS).min(end) })
    }

    /// `scores = keys·queriesᵀ` of a tile; `queries` are transposed and scaled.
    pub(super) fn products(&self, tile: &Tile, queries: &[f32], scores: &mut [f32]) {
        let lanes = tile.lanes();
        let size = Size { m: tile.keys.len(), n: lanes, k: self.of.shape.head_dim };
        let keys = self.keys(tile.keys.start).wide().left();
        multiply(scores, lanes, false, size, keys, Rows { data: queries, stride: lanes });
    }

    /// Applies cap and bias to a tile's products; what isn't seen becomes -∞. `slopes` receives the
    /// cap's derivative unless it is empty.
    pub(super) fn finish(
        &self,
        tile: &Tile,
        out: &mut [f32],
        slopes: &mut [f32],
        line: &mut Buffer,
    ) {
        let (lanes, shape) = (tile.lanes(), self.of.shape);
        if let Some(cap) = shape.softcap {
            softmax::cap_scores(out, slopes, cap);
        }
        if let Some(bias) = self.of.bias {
            let line = line.room(tile.keys.len() + lanes);
            self.bias_line(bias, tile, line);
            for (scores, line) in out.chunks_exact_mut(lanes).zip(shifted(tile, line)) {
                softmax::add(scores, line);
            }
        }
        self.hide(tile, out);
    }

    /// What `bias` adds, from the distance of the tile's last key and first row downwards: each key
    /// finds its rows in a window of it ([`shifted`]).
    fn bias_line(&self, bias: &[f32], tile: &Tile, line: &mut [f32]) {
        for (i, b) in line.iter_mut().enumerate() {
            let at = self.bias_index(bias.len(), tile, i);
            *b = at.and_then(|at| bias.get(at)).copied().unwrap_or_default();
        }
    }

    pub(super) fn bias_index(&self, len: usize, tile: &Tile, i: usize) -> Option<usize> {
        let heads = self.of.shape.heads;
        let middle = len / heads / 2;
        let row = (middle + tile.keys.end - 1).checked_sub(self.span.offset + tile.rows.start + i);
        row.map(|row| row * heads + self.head)
    }

    /// Adds the gradients of a tile's scores to the head's column of `dbias`.
    pub(super) fn add_bias_gradient(
        &self,
        tile: &Tile,
        ds: &[f32],
        line: &mut Buffer,
        dbias: &mut [f32],
    ) {
        let (lanes, rows) = (tile.lanes(), tile.rows.len());
        let line = line.filled(tile.keys.len() + lanes, 0.0);
        for (c, ds) in ds.chunks_exact(lanes).enumerate() {
            let start = tile.keys.len() - 1 - c;
            softmax::add(&mut line[start..start + rows], &ds[..rows]);
        }
        for (i, g) in line.iter().enumerate() {
            if let Some(to) = self.bias_index(dbias.len(), tile, i).and_then(|at| dbias.get_mut(at))
            {
                *to += g;
            }
        }
    }

    /// Whether each of these query rows sees all these keys.
    pub(super) fn all_seen(&self, rows: &Range<usize>, keys: &Range<usize>) -> bool {
        self.seen(rows.start).end >= keys.end && self.seen(rows.end - 1).start <= keys.start
    }

    /// Sets what isn't seen to -∞: the tile's rows that see a key follow each other.
    fn hide(&self, tile: &Tile, scores: &mut [f32]) {
        if self.all_seen(&tile.rows, &tile.keys) {
            return;
        }
        let shape = self.of.shape;
        let position = self.span.offset + tile.rows.start;
        for (key, scores) in tile.keys.clone().zip(scores.chunks_exact_mut(tile.lanes())) {
            let from = if shape.causal { key.saturating_sub(position) } else { 0 };
            let to = match shape.window {
                Some(window) => key.saturating_add(window).saturating_sub(position),
                None => scores.len(),
            };
            let to = to.min(scores.len());
            scores[..from.min(to)].fill(f32::NEG_INFINITY);
            scores[to..].fill(f32::NEG_INFINITY);
        }
    }

    /// Dropout factors of a tile.
    pub(super) fn factors(
        &self,
        dropout: &Dropout,
        tile: &Tile,
        line: &mut Buffer,
        out: &mut [f32],
    ) {
        let lanes = tile.lanes();
        let line = line.room(tile.keys.len());
        for (r, row) in tile.rows.clone().enumerate() {
            dropout.factors(self.span.queries.start + row, tile.keys.start, line);
            out.iter_mut().skip(r).step_by(lanes).zip(line.iter()).for_each(|(o, f)| *o = *f);
        }
    }

    /// The stream of factors that is this head's own.
    pub(super) fn dropout(&self) -> Option<Dropout> {
        let own = |d: &Dropout| Dropout { key: d.key.with(self.head as u64), ..d.clone() };
        self.of.dropout.map(own)
    }
}

impl<'a> Rows<'a> {
    /// The same rows as a left factor.
    pub(super) fn left(self) -> Left<'a> {
        Left { data: self.data, row: self.stride, column: 1 }
    }

    /// The first `len` elements of row `i`.
    pub(super) fn row(&self, i: usize, len: usize) -> &'a [f32] {
        let start = i * self.stride;
        self.data.get(start..start + len).unwrap_or_default()
    }

    /// `rows` rows of `dim` elements, transposed and scaled: `[dim, lanes]`, zeros beyond `rows`.
    pub(super) fn transpose(&self, rows: usize, dim: usize, scale: f32, out: &mut [f32]) {
        let lanes = rows.next_multiple_of(LANES);
        product::transpose(View::strided(self.data, rows, dim, self.stride, 1), scale, lanes, out);
    }
}

/// Each key's window of a line of the tile's distances.
fn shifted<'a>(tile: &Tile, line: &'a [f32]) -> impl Iterator<Item = &'a [f32]> + use<'a> {
    let (keys, lanes) = (tile.keys.len(), tile.lanes());
    (0..keys).map(move |c| &line[keys - 1 - c..keys - 1 - c + lanes])
}

/// The keys that any of these query rows sees.
pub(super) fn visible(of: &Operands<'_>, span: &Span, rows: &Range<usize>) -> Range<usize> {
    if rows.is_empty() {
        return 0..0;
    }
    let first = row_visible(of, span, rows.start).start;
    let last = row_visible(of, span, rows.end - 1).end;
    first..last.max(first)
}

/// The keys that one query row sees.
fn row_visible(of: &Operands<'_>, span: &Span, row: usize) -> Range<usize> {
    let position = span.offset + row;
    let keys = span.keys.len();
    let end = if of.shape.causal { (position + 1).min(keys) } else { keys };
    let start = match of.shape.window {
        Some(window) => (position + 1).saturating_sub(window),
        None => 0,
    };
    start.min(end)..end
}
