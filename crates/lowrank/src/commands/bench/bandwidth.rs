//! How fast memory is: the measure of anything that reads every weight once a token.

use std::{hint::black_box, time::Instant};

use rayon::prelude::*;
use serde::Serialize;

/// Bytes of a buffer, far beyond any cache.
const BYTES: usize = 256 << 20;
/// Sums side by side, so that an addition needn't wait for the one before.
const LANES: usize = 32;

/// Best of several times, all threads at once, in 10^9 bytes a second.
#[derive(Debug, Serialize)]
pub(super) struct Bandwidth {
    /// From one buffer to another; bytes read and bytes written both count, as in STREAM.
    copy_gigabytes_per_second: f64,
    /// Adding up a buffer.
    read_gigabytes_per_second: f64,
}

impl Bandwidth {
    /// Copies and reads once uncounted and `passes` times with the clock running.
    pub(super) fn measure(passes: usize) -> Self {
        // Not zeros: untouched pages of zeros would all be one page in a cache.
        let from = vec![1u64; BYTES / 8];
        let mut to = vec![2u64; BYTES / 8];
        let share = from.len().div_ceil(rayon::current_num_threads());
        let copy = best(passes, || {
            let parts = to.par_chunks_mut(share).zip(from.par_chunks(share));
            parts.for_each(|(to, from)| to.copy_from_slice(from));
            black_box(&mut to);
        });
        let read = best(passes, || {
            black_box(from.par_chunks(share).map(sum).sum::<u64>());
        });
        Self {
            copy_gigabytes_per_second: 2.0 * BYTES as f64 / copy / 1e9,
            read_gigabytes_per_second: BYTES as f64 / read / 1e9,
        }
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        let (copy, read) = (self.copy_gigabytes_per_second, self.read_gigabytes_per_second);
        format!("memory: copy {copy:.1} GB/s (read + written), read {read:.1} GB/s")
    }
}

fn best(passes: usize, mut run: impl FnMut()) -> f64 {
    run();
    let times = (0..passes).map(|_| {
        let begun = Instant::now();
        run();
        begun.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn sum(numbers: &[u64]) -> u64 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let mut sums = [0u64; LANES];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, number)| *sum = sum.wrapping_add(*number));
    }
    sums.iter().chain(rest).fold(0, |all, number| all.wrapping_add(*number))
}
