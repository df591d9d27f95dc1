//! Which samples share a sequence. Reference: LLaMA-Factory 0.9.5
//! `data/processor/processor_utils.py`, `greedy_knapsack`: per batch of
//! `preprocessing_batch_size` rows, each bin takes the longest sample that still fits, until none
//! does.
//!
//! A bin is a list of samples, nothing more: the model runs them unpadded, with positions that
//! start at 0 and attention that stays inside each one.

/// Samples that are run together, by their index, in the order they stand in the sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bin {
    /// Indices into the lengths that were given.
    pub samples: Vec<usize>,
    /// Tokens in total.
    pub tokens: usize,
}

/// The bins, and the samples that are longer than any bin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Bins in the order they were filled.
    pub bins: Vec<Bin>,
    /// Samples that don't fit a bin.
    pub too_long: Vec<usize>,
}

/// Fills bins of up to `capacity` tokens with samples of the given lengths, `batch` samples at a
/// time. A pure function of its arguments. LLaMA-Factory's capacity, at which it cuts the samples
/// too, is `cutoff_len - 1` of the recipe.
#[must_use]
pub fn pack(lengths: &[usize], capacity: usize, batch: usize) -> Packed {
    let mut packed = Packed::default();
    for (number, chunk) in lengths.chunks(batch.max(1)).enumerate() {
        let first = number * batch.max(1);
        let mut waiting: Vec<(usize, usize)> = Vec::with_capacity(chunk.len());
        for (i, &length) in chunk.iter().enumerate() {
            if length > capacity {
                packed.too_long.push(first + i);
            } else {
                waiting.push((length, first + i));
            }
        }
        // Ascending, so that the last of those that fit is the longest, and of equal lengths the
        // last row.
        waiting.sort_unstable();
        fill(waiting, capacity, &mut packed.bins);
    }
    packed
}

fn fill(mut waiting: Vec<(usize, usize)>, capacity: usize, bins: &mut Vec<Bin>) {
    while !waiting.is_empty() {
        let mut bin = Bin::default();
        loop {
            let room = capacity - bin.tokens;
            let fitting = waiting.partition_point(|(length, _)| *length <= room);
            if fitting == 0 {
                break;
            }
            let (length, sample) = waiting.remove(fitting - 1);
            bin.samples.push(sample);
            bin.tokens += length;
        }
        bins.push(bin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Worked out by hand from the rule: 9 takes 1, 7 takes 3, of two 5s the later row comes first.
    #[test]
    fn fills_the_longest_first() {
        let packed = pack(&[7, 3, 5, 5, 2, 9, 1, 11], 10, 1000);
        let bins: Vec<_> = packed.bins.iter().map(|b| b.samples.clone()).collect();
        assert_eq!(bins, [vec![5, 6], vec![0, 1], vec![3, 2], vec![4]]);
        assert_eq!(packed.too_long, [7]);
    }

    proptest! {
        #[test]
        fn every_sample_is_in_one_bin(
            lengths in prop::collection::vec(0..60usize, 0..80),
            capacity in 1..50usize,
            batch in 1..30usize,
        ) {
            let packed = pack(&lengths, capacity, batch);
            let mut seen = packed.too_long.clone();
            for bin in &packed.bins {
                prop_assert!(bin.tokens <= capacity && !bin.samples.is_empty());
                prop_assert_eq!(bin.tokens, bin.samples.iter().map(|&i| lengths[i]).sum::<usize>());
                let first = bin.samples[0] / batch;
                prop_assert!(bin.samples.iter().all(|i| i / batch == first));
                seen.extend(&bin.samples);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
