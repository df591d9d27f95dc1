//! Several data sets into one. Reference: `recipes.md` §2, `mix_strategy`.

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

/// (set, row) in the order of the mixture.
fn order(lengths: &[usize], options: &DataOptions) -> Vec<(usize, usize)> {
    let mut random = Random::new(options.seed, 0);
    let mut taken = vec![0usize; lengths.len()];
    let mut order = Vec::new();
    let mut turn = 0;
    let used_up = |taken: &[usize], set: usize| {
        taken.get(set).zip(lengths.get(set)).is_none_or(|(t, l)| t >= l)
    };
    loop {
        let (any, all) = (0..lengths.len())
            .map(|set| used_up(&taken, set))
            .fold((false, true), |(any, all), used| (any || used, all && used));
        let done = if options.mix_strategy == MixStrategy::InterleaveUnder { any } else { all };
        if done {
            return order;
        }
        let set = match &options.interleave_probs {
            Some(probabilities) => random.choose(probabilities),
            None => turn % lengths.len(),
        };
        turn += 1;
        let exhausted = used_up(&taken, set);
        if exhausted && options.mix_strategy == MixStrategy::InterleaveOnce {
            continue;
        }
        if let (Some(taken), Some(length)) = (taken.get_mut(set), lengths.get(set)) {
            order.push((set, *taken % length));
            *taken += 1;
        }
    }
}
