//! The same in tiles of AMX, where operands are bf16 as they lie and nothing is added to the scores
//! or taken from them: 32 query rows by 32 keys at a time, one query in each row. Products find
//! both factors laid out in turns of 32 ([`Turn`]): keys and values once for all queries of a pass,
//! queries and gradients once for all keys, probabilities and their gradients as the softmax leaves
//! them.

use half::bf16;

use super::{Operands, head::HeadRows, work};
use crate::{
    elements::Elements,
    kernels::product::{Amx, SIDE, Turn},
    ops::Span,
};

mod backward;
mod block;
mod forward;
mod softmax;

pub(super) use backward::backward;
pub(super) use forward::KeysAndValues;

/// Keys whose scores a forward block holds at once, and whose gradients a backward block adds up.
const CHUNK: usize = 256;

/// Panels of 32 keys of a chunk.
const PANELS: usize = CHUNK / SIDE;

/// The way for these operands, if it is one: sequences that share keys would add to the same
/// gradients.
fn way(of: &Operands<'_>, spans: &[Span]) -> Option<Amx> {
    let s = of.shape;
    let plain = of.bias.is_none() && of.dropout.is_none() && s.softcap.is_none();
    let whole = s.head_dim.is_multiple_of(SIDE) && s.value_dim.is_multiple_of(SIDE);
    let narrow = [of.q, of.k, of.v].iter().all(|x| matches!(x, Elements::Bf16(_)));
    let amx = of.pairs.and_then(Amx::of);
    amx.filter(|_| plain && whole && narrow && s.scale > 0.0 && work::are_apart(spans))
}

#[cfg(test)]
pub(super) fn takes(of: &Operands<'_>, spans: &[Span]) -> bool {
    way(of, spans).is_some()
}

/// [`copy_rows`], asking for the rows after them.
fn copy_rows_in_order(from: HeadRows<'_>, rows: usize, dim: usize, to: &mut [Turn]) {
    from.ask_for(SIDE.min(rows)..(2 * SIDE).min(rows), dim);
    copy_rows(from, rows, dim, to);
}

/// Copies up to 32 rows of `dim` elements as a left factor, one turn for each 32 of them; rows that
/// don't exist become zeros.
fn copy_rows(from: HeadRows<'_>, rows: usize, dim: usize, to: &mut [Turn]) {
    let rows = rows.min(SIDE);
    for (column, turn) in to.iter_mut().enumerate().take(dim / SIDE) {
        for (row, to) in turn.rows_mut().iter_mut().enumerate().take(rows) {
            from.put(row, column * SIDE, to);
        }
        turn.rows_mut()[rows..].fill([bf16::ZERO; SIDE]);
    }
}
