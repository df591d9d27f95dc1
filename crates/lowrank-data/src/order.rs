//! The order in which samples are seen, as a pure function of seed and epoch: a resumed run asks
//! for the same permutation again and goes on at its cursor.

use crate::error::{DataError, Result};
use crate::random::Random;

/// Streams of [`Random`] that aren't epochs.
const SPLIT_STREAM: u64 = u64::MAX;
const PICK_STREAM: u64 = u64::MAX - 1;
const REPEAT_STREAM: u64 = u64::MAX - 2;

/// The numbers below `count` in the order of `epoch` (Fisher-Yates).
#[must_use]
pub fn permutation(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    shuffled(count, Random::new(seed, epoch))
}

/// A place in the data: enough to go on from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Passes that are complete.
    pub epoch: u64,
    /// Items taken of the current one.
    pub cursor: usize,
}

/// Hands out item numbers, epoch after epoch, without end.
#[derive(Debug, Clone)]
pub struct LoaderOrder {
    count: usize,
    seed: u64,
    shuffle: bool,
    position: Position,
    current: Vec<usize>,
}

impl LoaderOrder {
    /// An order of `count` items; `shuffle` is off with `disable_shuffling`.
    #[must_use]
    pub fn new(count: usize, seed: u64, shuffle: bool) -> Self {
        let mut order =
            Self { count, seed, shuffle, position: Position::default(), current: Vec::new() };
        order.begin_epoch();
        order
    }

    /// What has been handed out so far.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Goes to a position, as if everything before it had been handed out.
    pub fn seek(&mut self, position: Position) {
        self.position = position;
        self.begin_epoch();
    }

    /// The items of the current epoch that are still to come.
    #[must_use]
    pub fn rest_of_epoch(&self) -> &[usize] {
        self.current.get(self.position.cursor..).unwrap_or_default()
    }

    fn begin_epoch(&mut self) {
        self.current = if self.shuffle {
            permutation(self.count, self.seed, self.position.epoch)
        } else {
            (0..self.count).collect()
        };
    }
}

impl Iterator for LoaderOrder {
    type Item = usize;

    /// The next item; none only if there are no items at all.
    fn next(&mut self) -> Option<usize> {
        if self.position.cursor >= self.count {
            if self.count == 0 {
                return None;
            }
            self.position = Position { epoch: self.position.epoch + 1, cursor: 0 };
            self.begin_epoch();
        }
        let item = self.current.get(self.position.cursor).copied();
        self.position.cursor += 1;
        item
    }
}

/// Numbers below `count` for training and for evaluation, both shuffled. `val_size` below 1 is a
/// share, rounded up; from 1 on a count.
/// # Errors
/// A size that leaves nothing to train on.
pub fn split(count: usize, val_size: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    if val_size <= 0.0 {
        return Ok(((0..count).collect(), Vec::new()));
    }
    let wanted = if val_size < 1.0 { (count as f64 * val_size).ceil() } else { val_size.floor() };
    let held_out = wanted as usize;
    if held_out >= count {
        let message =
            format!("{val_size} takes {held_out} of {count} rows; none is left to train on");
        return Err(DataError::Option { option: "val_size", message });
    }
    let mut order = shuffled(count, Random::new(seed, SPLIT_STREAM));
    let train = order.split_off(held_out);
    Ok((train, order))
}

/// `wanted` numbers below `count`: without repeats as long as that is possible, then random ones.
pub(crate) fn pick(count: usize, wanted: usize, seed: u64) -> Vec<usize> {
    let mut picked = shuffled(count, Random::new(seed, PICK_STREAM));
    let mut random = Random::new(seed, REPEAT_STREAM);
    picked.truncate(wanted);
    while picked.len() < wanted && count > 0 {
        picked.push(random.below(count as u64) as usize);
    }
    picked
}

fn shuffled(count: usize, mut random: Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_item_once_an_epoch(count in 0..500usize, seed: u64, epoch: u64) {
            let mut order = permutation(count, seed, epoch);
            order.sort_unstable();
            prop_assert_eq!(order, (0..count).collect::<Vec<_>>());
        }

        #[test]
        fn going_on_is_never_having_stopped(count in 1..40usize, seed: u64, taken in 0..200usize) {
            let mut whole = LoaderOrder::new(count, seed, true);
            whole.by_ref().take(taken).for_each(drop);
            let mut resumed = LoaderOrder::new(count, seed, true);
            resumed.seek(whole.position());
            let (a, b): (Vec<_>, Vec<_>) = (whole.take(100).collect(), resumed.take(100).collect());
            prop_assert_eq!(a, b);
        }

        #[test]
        fn a_split_loses_nothing(count in 2..300usize, share in 0.01..0.9f64, seed: u64) {
            prop_assume!((count as f64 * share).ceil() < count as f64);
            let (mut train, held_out) = split(count, share, seed).unwrap();
            prop_assert_eq!(held_out.len(), (count as f64 * share).ceil() as usize);
            train.extend(held_out);
            train.sort_unstable();
            prop_assert_eq!(train, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        assert_ne!(permutation(50, 1, 0), permutation(50, 1, 1));
        assert_ne!(permutation(50, 1, 0), permutation(50, 2, 0));
        assert_eq!(LoaderOrder::new(4, 9, false).take(6).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1]);
    }

    #[test]
    fn picks_repeat_only_beyond_the_set() {
        let mut picked = pick(10, 10, 3);
        assert_eq!(pick(10, 4, 3), picked[..4]);
        picked.sort_unstable();
        assert_eq!(picked, (0..10).collect::<Vec<_>>());
        assert_eq!(pick(3, 8, 1).len(), 8);
        assert!(split(4, 4.0, 1).is_err());
    }
}
