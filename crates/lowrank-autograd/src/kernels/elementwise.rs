//! Sums, scalings and their like over whole tensors.

use std::{cell::RefCell, ops::Range};

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::{
    F32, Floats,
    buffer::{PIECE, filled, piece_rows},
    product::Element,
    simd::{nearest_bf16, vectorized},
};
use crate::{Result, elements::Elements};

/// Partial sums that a sum over a row is made of, so that it can be vectorized.
const LANES: usize = 32;
/// Least number of rows that make a partial sum over rows: beside them it needs little memory.
const ROWS: usize = 32;

/// `f` of every element. `f` has to be simple, or the compiler may not vectorize it.
pub(crate) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    vectorized! {
        fn run[F: Fn(f32) -> f32](y: &mut [f32], x: &[f32], f: &F) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = f(*x);
            }
        }
    }
    filled(x.len(), PIECE, |start, y| run(y, &x[start..start + y.len()], &f))
}

/// `f` of every pair of elements of two slices of one length; `f` as in [`map`].
pub(crate) fn zip(
    a: Elements<'_>,
    b: Elements<'_>,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Vec<f32> {
    vectorized! {
        fn run[F: Fn(f32, f32) -> f32](y: &mut [f32], a: &[f32], b: &[f32], f: &F) {
            for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
                *y = f(*a, *b);
            }
        }
    }
    filled(a.len().min(b.len()), PIECE, |start, y| {
        with_pieces([a, b], start..start + y.len(), |[a, b]| run(y, a, b, &f));
    })
}

/// The nearest bf16 of every element.
pub(crate) fn narrowed(x: &[f32]) -> Vec<bf16> {
    filled(x.len(), PIECE, |start, y| narrow(y, &x[start..start + y.len()]))
}

vectorized! {
    /// The nearest bf16 of every element.
    pub(crate) fn narrow(y: &mut [bf16], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = bf16::from_bits(nearest_bf16(*x));
        }
    }
}

/// Every element in f32.
pub(crate) fn widened(x: &[bf16]) -> Vec<f32> {
    vectorized! {
        fn run(y: &mut [f32], x: &[bf16]) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = f32::from_bits(u32::from(x.to_bits()) << 16);
            }
        }
    }
    filled(x.len(), PIECE, |start, y| run(y, &x[start..start + y.len()]))
}

thread_local! {
    static ROOMS: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
}

/// Calls `run` with some of the elements of each, in f32: in buffers that the thread keeps, if they
/// aren't f32 where they lie. `run` neither reads pieces itself nor waits for other tasks.
pub(crate) fn with_pieces<const N: usize, R>(
    of: [Elements<'_>; N],
    range: Range<usize>,
    run: impl FnOnce([&[f32]; N]) -> R,
) -> R {
    with_pieces_of(of.map(|of| (of, range.clone())), run)
}

/// [`with_pieces`] with a range for each.
pub(crate) fn with_pieces_of<const N: usize, R>(
    of: [(Elements<'_>, Range<usize>); N],
    run: impl FnOnce([&[f32]; N]) -> R,
) -> R {
    const { assert!(N <= 3, "there are three buffers") };
    ROOMS.with_borrow_mut(|rooms| {
        let mut rooms = rooms.iter_mut();
        run(of.map(|(of, range)| rooms.next().map_or(&[][..], |room| piece(of, range, room))))
    })
}

pub(crate) fn piece<'p>(
    of: Elements<'p>,
    range: Range<usize>,
    room: &'p mut Vec<f32>,
) -> &'p [f32] {
    vectorized! {
        fn widen[T: Element](to: &mut [f32], from: &[T]) {
            T::widen(from, 1.0, to);
        }
    }
    if room.len() < range.len() {
        room.resize(range.len(), 0.0);
    }
    let room = &mut room[..range.len()];
    match of {
        Elements::F32(x) => return &x[range],
        Elements::Bf16(x) => widen(room, &x[range]),
        Elements::F16(x) => widen(room, &x[range]),
    }
    room
}

/// [`zip`] of two tensors of one shape, f32 in any case.
pub(crate) fn combine(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f32, f32) -> f32 + Sync,
) -> Result<Tensor> {
    super::check_dims(op, "the second operand", b, a.dims())?;
    let (x, y) = (a.contiguous()?, b.contiguous()?);
    let (x, y) = (Floats::of(op, &x)?, Floats::of(op, &y)?);
    super::tensor(zip(x.elements(), y.elements(), f), a.dims())
}

/// `factor·x` as a new tensor.
pub(crate) fn scaled(op: &'static str, x: &Tensor, factor: f32) -> Result<Tensor> {
    let data = x.contiguous()?;
    super::tensor(map(&F32::of(op, &data)?, |v| v * factor), x.dims())
}

/// `a += b`, both contiguous and of one shape, `a` f32; they must not share memory.
pub(crate) fn add_assign(a: &Tensor, b: &Tensor) -> Result<()> {
    super::check_dims("add_assign", "the second operand", b, a.dims())?;
    Ok(a.inplace_op2(b, &AddAssign)?)
}

/// `a *= factor`, f32, contiguous.
pub(crate) fn scale_assign(a: &Tensor, factor: f32) -> Result<()> {
    Ok(a.inplace_op1(&ScaleAssign(factor))?)
}

/// Sum of `f` of all elements, in f64.
#[inline(always)]
pub(crate) fn lanes_sum(x: &[f32], f: impl Fn(f32) -> f64) -> f64 {
    lanes_sums(x, x, |x, _| [f(x)])[0]
}

/// Sums of `f`'s numbers over all pairs of elements, in f64, in an order that vectors can keep.
#[inline(always)]
pub(crate) fn lanes_sums<const N: usize>(
    x: &[f32],
    y: &[f32],
    f: impl Fn(f32, f32) -> [f64; N],
) -> [f64; N] {
    let mut sums = [[0.0; LANES]; N];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            let terms = f(x[lane], y[lane]);
            for (sums, term) in sums.iter_mut().zip(terms) {
                sums[lane] += term;
            }
        }
    }
    for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        for (sums, term) in sums.iter_mut().zip(f(*x, *y)) {
            sums[lane] += term;
        }
    }
    sums.map(|mut lanes| {
        let mut width = LANES / 2;
        while width > 0 {
            let (low, high) = lanes.split_at_mut(width);
            low.iter_mut().zip(high).for_each(|(l, h)| *l += *h);
            width /= 2;
        }
        lanes[0]
    })
}

/// Sum of all elements, in f64.
pub(crate) fn sum(x: &[f32]) -> f64 {
    vectorized! {
        fn run(x: &[f32]) -> f64 {
            lanes_sum(x, f64::from)
        }
    }
    in_pieces(x, run)
}

/// Sum of squares of a contiguous tensor, in f64.
pub(crate) fn sum_of_squares(a: &Tensor) -> Result<f64> {
    vectorized! {
        fn run(x: &[f32]) -> f64 {
            lanes_sum(x, |v| f64::from(v) * f64::from(v))
        }
    }
    Ok(in_pieces(&F32::of("sum_of_squares", a)?, run))
}

/// The sum, in their order, of what `f` makes of pieces of fixed length.
fn in_pieces(x: &[f32], f: fn(&[f32]) -> f64) -> f64 {
    if x.len() <= PIECE {
        return f(x);
    }
    let parts: Vec<f64> = x.par_chunks(PIECE).map(f).collect();
    parts.iter().sum()
}

/// `out[j] = Σ_i rows[i, j]`.
pub(crate) fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    vectorized! {
        fn run(sums: &mut [f32], rows: &[f32]) {
            for row in rows.chunks_exact(sums.len()) {
                for (s, v) in sums.iter_mut().zip(row) {
                    *s += v;
                }
            }
        }
    }
    row_sums(rows.len(), columns, |start, end, sums| run(sums, &rows[start..end]))
}

/// Sums of rows: `add(start, end, sums)` adds rows `start/columns..end/columns` to `sums`
/// `[columns]`, and the sums of fixed numbers of rows are then added up in their order.
pub(crate) fn row_sums(
    len: usize,
    columns: usize,
    add: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    vectorized! {
        fn add_up(sums: &mut [f32], parts: &[f32], start: usize, columns: usize) {
            for part in parts.chunks_exact(columns) {
                for (s, v) in sums.iter_mut().zip(&part[start..]) {
                    *s += v;
                }
            }
        }
    }
    let piece = (piece_rows(columns).max(ROWS) * columns).max(1);
    let parts = filled(len.div_ceil(piece) * columns, columns, |start, sums| {
        let first = start / columns * piece;
        add(first, (first + piece).min(len), sums);
    });
    if parts.len() == columns {
        return parts;
    }
    filled(columns, PIECE, |start, sums| add_up(sums, &parts, start, columns))
}

struct AddAssign;

impl InplaceOp2 for AddAssign {
    fn name(&self) -> &'static str {
        "add_assign"
    }

    fn cpu_fwd(
        &self,
        a: &mut CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> candle_core::Result<()> {
        vectorized! {
            fn run(a: &mut [f32], b: &[f32]) {
                for (a, b) in a.iter_mut().zip(b) {
                    *a += b;
                }
            }
        }
        let b = match b {
            CpuStorage::BF16(b) => Elements::Bf16(slice(b, lb)?),
            b => Elements::F32(slice(b.as_slice()?, lb)?),
        };
        slice_mut(a, la)?.par_chunks_mut(PIECE).enumerate().for_each(|(i, a)| {
            with_pieces([b], i * PIECE..i * PIECE + a.len(), |[b]| run(a, b));
        });
        Ok(())
    }
}

struct ScaleAssign(f32);

impl InplaceOp1 for ScaleAssign {
    fn name(&self) -> &'static str {
        "scale_assign"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, la: &Layout) -> candle_core::Result<()> {
        vectorized! {
            fn run(a: &mut [f32], factor: f32) {
                for a in a {
                    *a *= factor;
                }
            }
        }
        slice_mut(a, la)?.par_chunks_mut(PIECE).for_each(|a| run(a, self.0));
        Ok(())
    }
}

fn not_contiguous() -> candle_core::Error {
    candle_core::Error::Msg("an in-place operand must be a contiguous f32 tensor".into())
}

fn slice<'a, T>(data: &'a [T], layout: &Layout) -> candle_core::Result<&'a [T]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(not_contiguous)?;
    data.get(start..end).ok_or_else(not_contiguous)
}

/// The elements of an in-place operand.
pub(crate) fn slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a mut [f32]> {
    let (start, end) = layout.contiguous_offsets().ok_or_else(not_contiguous)?;
    match storage {
        CpuStorage::F32(data) => data.get_mut(start..end).ok_or_else(not_contiguous),
        _ => Err(not_contiguous()),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn pieces_are_the_elements_of_their_ranges_in_f32() {
        let wide: Vec<f32> = (0..9_000).map(|i| (i as f32).sin()).collect();
        let bf16s: Vec<bf16> = wide.iter().map(|v| bf16::from_f32(*v)).collect();
        let f16s: Vec<f16> = wide.iter().map(|v| f16::from_f32(*v)).collect();
        let of = [Elements::F32(&wide), Elements::Bf16(&bf16s), Elements::F16(&f16s)];
        // The second turn finds buffers that are longer than what it asks for.
        for ranges in [[0..9_000, 17..8_001, 5..70], [8_999..9_000, 3..8, 1_000..1_000]] {
            let [a, b, c] = ranges.clone();
            let expected: [Vec<f32>; 3] = [
                wide[a.clone()].to_vec(),
                bf16s[b.clone()].iter().map(|v| v.to_f32()).collect(),
                f16s[c.clone()].iter().map(|v| v.to_f32()).collect(),
            ];
            let place = wide[a.clone()].as_ptr();
            with_pieces_of([(of[0], a), (of[1], b), (of[2], c)], |found| {
                assert_eq!(found, expected.each_ref().map(Vec::as_slice));
                assert_eq!(found[0].as_ptr(), place, "f32 is copied");
            });
            let [_, _, range] = ranges;
            let sum = with_pieces(of, range.clone(), |found| {
                assert!(found.iter().all(|found| found.len() == range.len()));
                found[1].iter().zip(found[2]).map(|(b, c)| b + c).sum::<f32>()
            });
            let expected = range.map(|i| bf16s[i].to_f32() + f16s[i].to_f32()).sum::<f32>();
            assert_eq!(sum, expected);
        }
    }

    #[test]
    fn two_operands_of_one_dtype_have_buffers_of_their_own() {
        let [a, b] = [[1.0f32, 2.0, 3.0], [5.0, 6.0, 7.0]].map(|x| narrowed(&x));
        with_pieces([Elements::Bf16(&a), Elements::Bf16(&b)], 1..3, |found| {
            assert_eq!(found, [[2.0, 3.0], [6.0, 7.0]]);
        });
    }
}
