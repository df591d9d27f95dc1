//! Scaled dot-product attention over packed sequences in tiles (FlashAttention-2,
//! arXiv:2307.08691): a block of query rows goes over the keys that it sees, a tile at a time, with
//! a running softmax; the backward pass computes the tiles again from the saved maximum and sum of
//! each row. Tiles hold one query row in each lane ([`softmax`]); keys, values, queries and
//! gradients are read where they lie ([`tile`]), only a block's queries are transposed. What is
//! wholly masked is never computed.

use std::sync::{Mutex, PoisonError};

use crate::{
    Dropout,
    elements::Elements,
    kernels::{Computed, buffer, product::Pairs},
    ops::{AttentionShape, Span},
};

#[cfg_attr(not(target_arch = "x86_64"), path = "attention/no_amx.rs")]
mod amx;
mod backward;
mod forward;
mod head;
mod pairs;
mod scratch;
mod softmax;
#[cfg(test)]
mod tests;
mod tile;
mod work;

use backward::Group;
use forward::{Place, Put};
use head::Head;
use pairs::KeysAndValues;

/// Operands of one attention: `q` `[n, heads·head_dim]`, `k` `[m, kv_heads·head_dim]`, `v`
/// `[m, kv_heads·value_dim]`.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    pub(crate) q: Elements<'a>,
    pub(crate) k: Elements<'a>,
    pub(crate) v: Elements<'a>,
    /// `[distances, heads]`: what is added to a score, by key position less query position; the
    /// middle row is distance 0.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) shape: &'a AttentionShape,
    pub(crate) dropout: Option<&'a Dropout>,
    /// Kernels that multiply in bf16, if the operands are worth no more. Without them they are f32.
    pub(crate) pairs: Option<Pairs>,
}

/// What turns the scores `s` of a row into probabilities `exp(s - max)/sum`. As one number,
/// `max + log(sum)`, the sum would be lost beside a large maximum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftmaxRow {
    max: f32,
    sum: f32,
}

impl Default for SoftmaxRow {
    /// A row that sees no key: its scores of -∞ become zeros.
    fn default() -> Self {
        Self { max: 0.0, sum: 1.0 }
    }
}

impl SoftmaxRow {
    /// The sum of a row that sees something is at least 1, or no number.
    fn of(max: f32, sum: f32) -> Self {
        if sum == 0.0 { Self::default() } else { Self { max, sum } }
    }
}

/// Keys and values, packed for all queries.
enum Packed {
    Tiles(amx::KeysAndValues),
    Pairs(KeysAndValues),
    /// They are read as they lie.
    Not,
}

impl Packed {
    fn of(of: &Operands<'_>, spans: &[Span]) -> Self {
        match (amx::KeysAndValues::pack(of, spans), of.pairs) {
            (Some(packed), _) => Self::Tiles(packed),
            (_, Some(pairs)) => Self::Pairs(KeysAndValues::pack(of, spans, pairs)),
            _ => Self::Not,
        }
    }
}

/// Attends: writes the rows that `spans` cover of `output` `[n, heads·value_dim]`, and returns the
/// softmax of each query row and head, `[n, heads]`.
pub(crate) fn forward<T: Put>(
    of: Operands<'_>,
    spans: &[Span],
    output: &mut [T],
) -> Vec<SoftmaxRow> {
    let (heads, width) = (of.shape.heads, of.shape.heads * of.shape.value_dim);
    let mut softmax = vec![SoftmaxRow::default(); output.len() / width * heads];
    let packed = Packed::of(&of, spans);
    let pieces = work::pieces(&of, spans);
    let (mut rows_left, mut softmax_left, mut at) = (output, &mut softmax[..], 0);
    let mut tasks = Vec::new();
    let mut places = Vec::with_capacity(pieces.len());
    for (i, piece) in pieces.iter().enumerate() {
        let (skipped, len) = (piece.rows.start - at, piece.rows.len());
        let output = cut(&mut rows_left, skipped * width, len * width);
        let softmax = cut(&mut softmax_left, skipped * heads, len * heads);
        places.push(Mutex::new(Place { output, softmax }));
        tasks.extend(work::head_ranges(piece, heads).map(|heads| (i, heads)));
        at = piece.rows.end;
    }
    work::run(&tasks, |(i, heads)| {
        let (piece, place) = (&pieces[*i], &places[*i]);
        scratch::with(|scratch| {
            for block in &piece.blocks {
                let first = block.span.queries.start + block.rows.start - piece.rows.start;
                for head in heads.clone() {
                    let head = Head { of, span: block.span, head };
                    match &packed {
                        Packed::Tiles(packed) => {
                            head.forward_in_tiles(&block.rows, packed, block.index, scratch);
                        }
                        Packed::Pairs(packed) => {
                            let packed = packed.head(block.index, head.kv_head());
                            head.forward(&block.rows, Some(packed), scratch);
                        }
                        Packed::Not => head.forward(&block.rows, None, scratch),
                    }
                    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
                    head.place(&block.rows, scratch, place.starting_at(first, of.shape));
                }
            }
        });
    });
    softmax
}

/// Cuts the next `len` elements off the front of `rest`, after skipping some.
fn cut<'a, T>(rest: &mut &'a mut [T], skipped: usize, len: usize) -> &'a mut [T] {
    let (front, back) = std::mem::take(rest).split_at_mut(skipped + len);
    *rest = back;
    &mut front[skipped..]
}

/// What the forward pass left behind, and the gradient that came.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub(crate) output: Elements<'a>,
    /// `[n, heads]`
    pub(crate) rows: &'a [SoftmaxRow],
    pub(crate) dy: Elements<'a>,
}

/// Whose gradients are sought.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) q: bool,
    pub(crate) k: bool,
    pub(crate) v: bool,
    pub(crate) bias: bool,
}

/// Gradients of the operands, in their shapes; empty where not wanted.
pub(crate) struct Backward {
    pub(crate) q: Computed,
    pub(crate) k: Computed,
    pub(crate) v: Computed,
    pub(crate) bias: Vec<f32>,
}

/// The backward pass over all sequences and heads.
pub(crate) fn backward(
    of: Operands<'_>,
    spans: &[Span],
    saved: Saved<'_>,
    wanted: Wanted,
) -> Backward {
    if let Some(found) = amx::backward(of, spans, saved, wanted) {
        return found;
    }
    let zeros = |wanted: bool, len: usize| buffer::zeros(if wanted { len } else { 0 });
    let bias = of.bias.filter(|_| wanted.bias).unwrap_or_default();
    let mut q = zeros(wanted.q, of.q.len());
    let mut k = zeros(wanted.k, of.k.len());
    let mut v = zeros(wanted.v, of.v.len());
    let mut sum_of_bias = zeros(true, bias.len());
    let stretches = work::stretches(&of, spans);
    let places = work::places(&of, &stretches, [&mut q, &mut k, &mut v]);
    let places: Vec<_> = places.into_iter().map(Mutex::new).collect();
    let tasks: Vec<_> = stretches
        .iter()
        .zip(&places)
        .flat_map(|(stretch, place)| {
            stretch.tasks(&of).map(move |(heads, keys)| (stretch, place, heads, keys))
        })
        .collect();
    let parts = work::run(&tasks, |(stretch, place, kv_heads, half)| {
        let mut dbias = vec![0.0; bias.len()];
        scratch::with(|scratch| {
            for span in &stretch.spans {
                for kv_head in kv_heads.clone() {
                    let keys = half.of(&of, span);
                    let group = Group { of, saved, wanted, span, kv_head, keys };
                    group.backward(scratch, &mut dbias, place);
                }
            }
        });
        dbias
    });
    drop(tasks);
    drop(places);
    for part in parts {
        softmax::add(&mut sum_of_bias, &part);
    }
    let [q, k, v] = [q, k, v].map(Computed::F32);
    Backward { q, k, v, bias: sum_of_bias }
}
