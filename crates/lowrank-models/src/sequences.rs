//! Batches: token ids packed end to end, without padding, and where each sequence lies.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{Value, ops::Span};
use lowrank_peft::{Pass, layers::Embedding};

use crate::{Error, Result};

/// Sequences packed end to end.
#[derive(Clone, Debug)]
pub struct Sequences {
    lengths: Vec<usize>,
    /// Position of each token in its sequence, as positional encodings see it.
    pub positions: Arc<[u32]>,
    /// Place of each token among its sequence's tokens, which padding before them doesn't move.
    pub places: Arc<[u32]>,
    /// Rows of each sequence.
    pub spans: Arc<[Span]>,
    /// For each sequence the length that scaled rotary embeddings go by.
    pub extents: Vec<usize>,
}

impl Sequences {
    /// Sequences whose positions count from 0.
    pub fn packed(lengths: &[usize]) -> Self {
        let positions = lengths.iter().flat_map(|&n| 0..n as u32).collect();
        Self::with_positions(lengths, positions, lengths.to_vec())
    }

    fn with_positions(lengths: &[usize], positions: Arc<[u32]>, extents: Vec<usize>) -> Self {
        let (places, spans) = (Arc::clone(&positions), Span::packed(lengths).into());
        Self { lengths: lengths.to_vec(), positions, places, spans, extents }
    }

    /// Sequences that go on from where a cache stands; each token's position is its place there.
    pub fn continued(lengths: &[usize], before: &[usize]) -> Self {
        let rows = lengths.iter().zip(before);
        let positions = rows.clone().flat_map(|(&n, &b)| b as u32..(b + n) as u32).collect();
        let reach = rows.map(|(n, b)| n + b).max().unwrap_or_default();
        Self::with_positions(lengths, positions, vec![reach; lengths.len()])
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// Length of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// First row of each sequence.
    pub fn starts(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().map(|s| s.queries.start)
    }

    /// Spans of these sequences as queries over the rows of `keys`, one to one.
    pub fn across(&self, keys: &Sequences) -> Arc<[Span]> {
        let pairs = self.spans.iter().zip(keys.spans.iter());
        pairs
            .map(|(q, k)| Span { queries: q.queries.clone(), keys: k.keys.clone(), offset: 0 })
            .collect()
    }
}

/// What a model reads: ids, their sequences, and segment ids where the model has them.
#[derive(Clone, Debug)]
pub struct Input {
    /// One id a token.
    pub ids: Arc<[u32]>,
    /// Where the sequences lie.
    pub sequences: Sequences,
    /// Positions in the place of those that the model counts itself, as transformers'
    /// `position_ids`; read where positions have a table.
    pub position_ids: Option<Arc<[u32]>>,
    /// BERT's segments, 0 where absent.
    pub token_types: Option<Arc<[u32]>>,
    /// LayoutLM's boxes of words on their page, `[x0, y0, x1, y1]`, 0 where absent.
    pub bbox: Option<Arc<[[u32; 4]]>>,
    /// An image for each sequence, `[sequences, channels, height, width]`, f32.
    pub images: Option<Tensor>,
    /// Vectors in the place of those that a table has for the ids, `[ids.len(), hidden_size]`.
    pub given: Option<Value>,
}

impl Input {
    /// Ids of these sequences, and nothing besides.
    pub fn new(ids: Arc<[u32]>, sequences: Sequences) -> Self {
        let (position_ids, token_types, bbox, images, given) = (None, None, None, None, None);
        Self { ids, sequences, position_ids, token_types, bbox, images, given }
    }

    /// The position of each token: one that is given, or its sequences'.
    pub fn positions(&self) -> &Arc<[u32]> {
        self.position_ids.as_ref().unwrap_or(&self.sequences.positions)
    }

    /// Sequences of ids, packed.
    pub fn packed<T: AsRef<[u32]>>(rows: &[T]) -> Self {
        let lengths: Vec<usize> = rows.iter().map(|r| r.as_ref().len()).collect();
        let ids = rows.iter().flat_map(|r| r.as_ref()).copied().collect();
        Self::new(ids, Sequences::packed(&lengths))
    }

    /// The rows that aren't padding, as sequences of their own whose positions are what they were,
    /// and where they lie here.
    pub fn without_padding(&self) -> (Self, Arc<[usize]>) {
        let spans = self.sequences.spans.iter();
        let rows: Arc<[usize]> = spans.clone().flat_map(|span| span.keys.clone()).collect();
        let lengths: Vec<usize> = spans.map(|span| span.keys.len()).collect();
        let pick = |of: &[u32]| rows.iter().filter_map(|&row| of.get(row).copied()).collect();
        let positions = pick(&self.sequences.positions);
        let sequences = Sequences { positions, ..Sequences::packed(&lengths) };
        (Self::new(pick(&self.ids), sequences), rows)
    }

    /// The vectors of the ids in a table, or those that are given in their place.
    ///
    /// # Errors
    /// When an id lies outside the table.
    pub fn embed(&self, table: &Embedding, pass: &Pass) -> lowrank_autograd::Result<Value> {
        self.given
            .as_ref()
            .map_or_else(|| table.forward(&self.ids, pass), |given| Ok(given.clone()))
    }

    /// The ids of each sequence.
    pub fn rows(&self) -> Vec<Vec<u32>> {
        let spans = self.sequences.spans.iter();
        spans.map(|s| self.ids.get(s.queries.clone()).unwrap_or_default().to_vec()).collect()
    }
}

/// A batch as Python programs pad it, `[rows, columns]`, and which of its places are real.
#[derive(Clone, Debug)]
pub struct Padded {
    rows: usize,
    columns: usize,
    /// Flat indices of the real places, row by row.
    real: Vec<usize>,
    lengths: Vec<usize>,
}

impl Padded {
    /// A batch with `mask` (one entry a place, 0 for padding); all real without one.
    ///
    /// # Errors
    /// When the mask has another size, or a row has no real place.
    pub fn new(rows: usize, columns: usize, mask: Option<&[i64]>) -> Result<Self> {
        let places = rows.saturating_mul(columns);
        if let Some(mask) = mask.filter(|m| m.len() != places) {
            let found = mask.len();
            return Err(Error::Input(format!("attention_mask has {found} entries, ids {places}")));
        }
        let is_real = |i: &usize| mask.is_none_or(|m| m.get(*i).is_some_and(|&v| v != 0));
        let real: Vec<usize> = (0..places).filter(is_real).collect();
        let mut lengths = vec![0; rows];
        for place in &real {
            if let Some(length) = lengths.get_mut(place / columns.max(1)) {
                *length += 1;
            }
        }
        if let Some(row) = lengths.iter().position(|&n| n == 0) {
            return Err(Error::Input(format!("attention_mask leaves nothing of row {row}")));
        }
        Ok(Self { rows, columns, real, lengths })
    }

    /// Flat indices of the real places.
    pub fn real(&self) -> &[usize] {
        &self.real
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The real entries of a padded array.
    pub fn pick<T: Copy>(&self, values: &[T]) -> Vec<T> {
        self.real.iter().filter_map(|&i| values.get(i).copied()).collect()
    }

    /// The sequences, with positions that count columns (padding included), as transformers'
    /// `forward` has them.
    pub fn sequences(&self) -> Sequences {
        let columns = self.columns.max(1);
        let positions = self.real.iter().map(|i| (i % columns) as u32).collect();
        let extents = vec![self.columns; self.rows];
        Sequences { positions, extents, ..Sequences::packed(&self.lengths) }
    }

    /// Every place, padding included, as rows that attend to their sequence's real places. In an
    /// encoder transformers computes padded places too, and some of its heads read them.
    ///
    /// # Errors
    /// When a row's real places aren't next to each other.
    pub fn every_place(&self) -> Result<Sequences> {
        let columns = self.columns;
        let mut real = self.real.iter().peekable();
        let mut spans = Vec::with_capacity(self.rows);
        for (row, &length) in self.lengths.iter().enumerate() {
            let first = real.peek().map_or(0, |&&place| place);
            let last = real.by_ref().take(length).last().copied().unwrap_or(first);
            if last + 1 - first != length {
                let what = format!("attention_mask has a hole in row {row}");
                return Err(Error::Input(what));
            }
            let queries = row * columns..(row + 1) * columns;
            spans.push(Span { queries, keys: first..last + 1, offset: 0 });
        }
        let lengths = vec![columns; self.rows];
        Ok(Sequences { spans: spans.into(), ..Sequences::packed(&lengths) })
    }

    /// The rows without their padding.
    pub fn rows_of<T: Copy>(&self, values: &[T]) -> Vec<Vec<T>> {
        let mut picked = self.pick(values).into_iter();
        self.lengths.iter().map(|&n| picked.by_ref().take(n).collect()).collect()
    }
}
