//! New buffers, filled in pieces on all threads.
//!
//! `vec![0.0; n]` sends a whole buffer through memory once before anything is written to it. Here
//! each piece is zeroed just before it is filled, while it fits the first-level cache, so that it
//! costs next to nothing and what a kernel is handed is always a plain slice.

use std::{cell::RefCell, mem::MaybeUninit};

use half::bf16;
use rayon::prelude::*;

use super::{
    Computed,
    simd::{nearest_bf16, vectorized},
};

/// Elements of a piece: two or three slices of that length fit the first-level cache.
pub(crate) const PIECE: usize = 4096;

/// How many rows of `columns` elements make a piece: at least one.
pub(crate) fn piece_rows(columns: usize) -> usize {
    (PIECE / columns.max(1)).max(1)
}

/// A new buffer of `len` elements in pieces of `piece`, the last of which may be shorter. `fill` is
/// given the index of each piece's first element, and the piece, which is zero.
pub(crate) fn filled<T: Copy + Default + Send>(
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let piece = piece.max(1);
    let mut buffer = Vec::with_capacity(len);
    let slots = pieces(&mut buffer, len, piece).enumerate();
    slots.for_each(|(i, slots)| fill(i * piece, zeroed(slots)));
    finish(buffer, len)
}

/// Zeros, written on all threads.
pub(crate) fn zeros<T: Copy + Default + Send>(len: usize) -> Vec<T> {
    filled(len, PIECE, |_, _| {})
}

/// Two new buffers of one length, filled together as in [`filled`].
pub(crate) fn filled_pair(
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> [Vec<f32>; 2] {
    let piece = piece.max(1);
    let [mut first, mut second] = [Vec::with_capacity(len), Vec::with_capacity(len)];
    let slots = pieces(&mut first, len, piece).zip(pieces(&mut second, len, piece)).enumerate();
    slots.for_each(|(i, (a, b))| fill(i * piece, zeroed(a), zeroed(b)));
    [finish(first, len), finish(second, len)]
}

/// As [`filled`], rounded to bf16 if `narrow`: then `fill` finds whatever an earlier use left in the
/// piece.
pub(crate) fn computed(
    narrow: bool,
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Computed {
    if !narrow {
        return Computed::F32(filled(len, piece, fill));
    }
    let piece = piece.max(1);
    let mut buffer = Vec::with_capacity(len);
    pieces(&mut buffer, len, piece).enumerate().for_each(|(i, slots)| {
        with_rooms(slots.len(), |[room, _]| {
            fill(i * piece, room);
            round(slots, room);
        });
    });
    Computed::Bf16(finish(buffer, len))
}

/// Two new buffers of one length, filled together as in [`computed`].
pub(crate) fn computed_pair(
    narrow: bool,
    len: usize,
    piece: usize,
    fill: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> [Computed; 2] {
    if !narrow {
        return filled_pair(len, piece, fill).map(Computed::F32);
    }
    let piece = piece.max(1);
    let [mut first, mut second] = [Vec::with_capacity(len), Vec::with_capacity(len)];
    let slots = pieces(&mut first, len, piece).zip(pieces(&mut second, len, piece)).enumerate();
    slots.for_each(|(i, (a, b))| {
        with_rooms(a.len(), |[x, y]| {
            fill(i * piece, x, y);
            round(a, x);
            round(b, y);
        });
    });
    [first, second].map(|buffer| Computed::Bf16(finish(buffer, len)))
}

thread_local! {
    static ROOMS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Calls `run` with two buffers of the thread; it doesn't wait for other tasks.
fn with_rooms(len: usize, run: impl FnOnce([&mut [f32]; 2])) {
    ROOMS.with_borrow_mut(|rooms| {
        run(rooms.each_mut().map(|room| {
            if room.len() < len {
                room.resize(len, 0.0);
            }
            &mut room[..len]
        }));
    });
}

vectorized! {
    /// The nearest bf16 of every element.
    fn round(to: &mut [MaybeUninit<bf16>], from: &[f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            to.write(bf16::from_bits(nearest_bf16(*from)));
        }
    }
}

/// A new buffer in parts of these lengths, each filled by a task of its own, and what the tasks
/// return. `fill` is given the number of each part, and the part, which is zero.
pub(crate) fn filled_parts<T: Copy + Default + Send, R: Send>(
    lens: &[usize],
    fill: impl Fn(usize, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let len = lens.iter().sum();
    let mut buffer = Vec::with_capacity(len);
    let mut rest = &mut buffer.spare_capacity_mut()[..len];
    let mut parts = Vec::with_capacity(lens.len());
    for len in lens {
        let (part, behind) = rest.split_at_mut(*len);
        parts.push(part);
        rest = behind;
    }
    let parts = parts.into_par_iter().enumerate();
    let found = parts.map(|(i, slots)| fill(i, zeroed(slots))).collect();
    (finish(buffer, len), found)
}

/// A thread that has nothing left to do takes a piece.
type Slots<'a, T> = rayon::iter::MaxLen<rayon::slice::ChunksMut<'a, MaybeUninit<T>>>;

fn pieces<T: Send>(buffer: &mut Vec<T>, len: usize, piece: usize) -> Slots<'_, T> {
    buffer.spare_capacity_mut()[..len].par_chunks_mut(piece).with_max_len(1)
}

#[expect(unsafe_code, reason = "memory that has just been written becomes a slice of numbers")]
fn zeroed<T: Copy + Default>(slots: &mut [MaybeUninit<T>]) -> &mut [T] {
    slots.fill(MaybeUninit::new(T::default()));
    // SAFETY: every slot has been written by the line above.
    unsafe { slots.assume_init_mut() }
}

#[expect(unsafe_code, reason = "a buffer's length is set once all of it has been written")]
fn finish<T>(mut buffer: Vec<T>, len: usize) -> Vec<T> {
    debug_assert!(buffer.is_empty() && buffer.capacity() >= len);
    // SAFETY: the capacity is at least `len`, and all of the first `len` slots have been cut into
    // pieces, each of which `zeroed` or `round` has written.
    unsafe { buffer.set_len(len) };
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_filled_once_and_what_is_left_out_is_zero() {
        for (len, piece) in [(0, 5), (1, 5), (5, 5), (23, 5), (10_001, 4_096), (7, 0)] {
            let count = |start: usize, piece: &mut [f32]| {
                assert!(piece.iter().all(|v| *v == 0.0));
                piece.iter_mut().zip(start..).for_each(|(v, i)| *v += i as f32 + 1.0);
            };
            let expected: Vec<f32> = (0..len).map(|i| i as f32 + 1.0).collect();
            assert_eq!(filled(len, piece, count), expected);
            let [first, second] = filled_pair(len, piece, |start, a, b| {
                count(start, b);
                a.iter_mut().take(1).for_each(|v| *v = 2.0);
            });
            assert_eq!(second, expected);
            let step = piece.max(1);
            let expected = (0..len).map(|i| if i % step == 0 { 2.0 } else { 0.0 });
            assert_eq!(first, expected.collect::<Vec<_>>());
        }
    }

    /// Numbers between those of bf16, halfway ones and those beyond its range among them.
    fn number(i: usize) -> f32 {
        match i % 5 {
            0 => f32::from_bits(0x3F80_8000 + ((i as u32 % 64) << 16)), // halfway: to the even one
            1 => f32::MAX,
            2 => -(i as f32) * 1e-40,
            3 => f32::NEG_INFINITY,
            _ => (i as f32).sin(),
        }
    }

    #[test]
    fn what_is_computed_is_filled_once_and_rounded_to_the_nearest() {
        for (len, piece) in [(0, 5), (1, 5), (23, 5), (10_001, 4_096), (7, 0), (40_000, 30_000)] {
            let count = |start: usize, piece: &mut [f32]| {
                piece.iter_mut().zip(start..).for_each(|(v, i)| *v = number(i));
            };
            let expected: Vec<f32> = (0..len).map(number).collect();
            let negated: Vec<f32> = expected.iter().map(|v| -v).collect();
            let nearest =
                |x: &[f32]| -> Vec<bf16> { x.iter().map(|v| bf16::from_f32(*v)).collect() };
            let pair = |start: usize, a: &mut [f32], b: &mut [f32]| {
                assert_eq!(a.len(), b.len());
                count(start, a);
                count(start, b);
                b.iter_mut().for_each(|v| *v = -*v);
            };
            for narrow in [false, true] {
                let one = computed(narrow, len, piece, count);
                let [first, second] = computed_pair(narrow, len, piece, pair);
                for (found, wide) in [(one, &expected), (first, &expected), (second, &negated)] {
                    match found {
                        Computed::F32(found) => assert!(!narrow && found == *wide),
                        Computed::Bf16(found) => assert!(narrow && found == nearest(wide)),
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_none_when_it_is_rounded() {
        for bits in [0x7F80_0001, 0x7FFF_FFFF, 0xFFC0_0000] {
            let found = computed(true, 9, 4, |_, piece| piece.fill(f32::from_bits(bits)));
            assert!(matches!(found, Computed::Bf16(found) if found.iter().all(|v| v.is_nan())));
        }
    }

    #[test] // of the whole piece: a kernel may add to it only where nothing is rounded
    fn what_is_left_out_is_zero_unless_it_is_rounded() {
        let fill = |_: usize, piece: &mut [f32]| piece.iter_mut().take(1).for_each(|v| *v = 2.0);
        let Computed::F32(found) = computed(false, 5, 3, fill) else { panic!("f32") };
        assert_eq!(found, [2.0, 0.0, 0.0, 2.0, 0.0]);
        let fill = |start: usize, a: &mut [f32], b: &mut [f32]| {
            fill(start, a);
            b.fill(1.0);
        };
        let [first, second] = computed_pair(false, 5, 3, fill).map(Computed::wide);
        assert_eq!((first, second), (vec![2.0, 0.0, 0.0, 2.0, 0.0], vec![1.0; 5]));
    }
}
