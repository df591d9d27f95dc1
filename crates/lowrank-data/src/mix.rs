//! Several data sets into one. Reference: `datasets.interleave_datasets`.

use crate::formats::Sample;
use crate::options::{DataOptions, MixStrategy};
use crate::random::Random;

/// Mixes the sets; without probabilities interleaving takes a row of each in turn.
pub(crate) fn mix(sets: Vec<Vec<Sample>>, options: &DataOptions) -> Vec<Sample> {
    if options.mix_strategy == MixStrategy::Concat || sets.len() < 2 {
        return sets.into_iter().flatten().collect();
    }
    let lengths: Vec<_> = sets.iter().map(Vec::len).collect();
    let order = order(&lengths, options);
    order.into_iter().filter_map(|(set, row)| sets.get(set)?.get(row).cloned()).collect()
}

/// (set, row) in the order of the mixture. Without probabilities the rounds are complete, as in
/// `datasets.interleave_datasets`.
fn order(lengths: &[usize], options: &DataOptions) -> Vec<(usize, usize)> {
    let shares = options.interleave_probs.as_deref();
    // A set that is never drawn can't be used up, and nothing must wait for it.
    let drawn = |set: usize| shares.and_then(|s| s.get(set)).is_none_or(|share| *share > 0.0);
    let mut random = Random::new(options.seed, 0);
    let mut taken = vec![0usize; lengths.len()];
    let mut order = Vec::new();
    for turn in 0.. {
        let used_up = |set: usize| taken.get(set) >= lengths.get(set);
        let mut sets = (0..lengths.len()).filter(|set| drawn(*set));
        let done = match options.mix_strategy {
            MixStrategy::InterleaveUnder => sets.any(used_up),
            _ => sets.all(used_up),
        };
        if done && (shares.is_some() || turn % lengths.len() == 0) {
            break;
        }
        let set = match shares {
            Some(shares) => random.choose(shares),
            None => turn % lengths.len(),
        };
        if used_up(set) && options.mix_strategy == MixStrategy::InterleaveOnce {
            continue;
        }
        if let (Some(taken), Some(length)) = (taken.get_mut(set), lengths.get(set)) {
            order.push((set, *taken % length));
            *taken += 1;
        }
    }
    order
}
