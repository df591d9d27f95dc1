//! Which samples each step sees: a pure function of the step, so that a resumed run needs nothing
//! but its number.

use lowrank_data::permutation;

use crate::{Error, Result};

/// The order of a run's data.
#[derive(Clone, Debug)]
pub struct Loader {
    /// Samples that are always run together, by index.
    units: Vec<Vec<usize>>,
    order: Order,
    /// The epoch that was asked for last, and its order of units.
    drawn: Option<(u64, Vec<usize>)>,
}

/// How units become batches and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Units of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Leave out a last short micro-batch of an epoch.
    pub drop_last: bool,
    /// Draw a new order for each epoch.
    pub shuffle: bool,
    /// Seed of the orders.
    pub seed: u64,
}

impl Loader {
    /// A loader of these units.
    ///
    /// # Errors
    /// When nothing is left to load.
    pub fn new(units: Vec<Vec<usize>>, order: Order) -> Result<Self> {
        let loader = Self { units, order, drawn: None };
        match loader.batches_per_epoch() {
            0 => Err(Error::Setup(format!(
                "{} rows make no batch of {}; lower `per_device_train_batch_size` or turn \
                 `dataloader_drop_last` off",
                loader.units.len(),
                order.batch_size
            ))),
            _ => Ok(loader),
        }
    }

    /// A loader of nothing, for a run that only evaluates.
    pub fn idle(order: Order) -> Self {
        Self { units: Vec::new(), order, drawn: None }
    }

    fn batches_per_epoch(&self) -> usize {
        match self.order.drop_last {
            true => self.units.len() / self.order.batch_size,
            false => self.units.len().div_ceil(self.order.batch_size),
        }
    }

    /// Steps of one pass over the data, at least one; the last one may be short.
    pub fn steps_per_epoch(&self) -> u64 {
        self.batches_per_epoch().div_ceil(self.order.accumulation).max(1) as u64
    }

    /// Steps of so many passes, rounded up.
    pub fn steps_for(&self, epochs: f64) -> u64 {
        ((epochs * self.steps_per_epoch() as f64).ceil() as u64).max(1)
    }

    /// The micro-batches of a step (counted from 0), each a list of samples.
    pub fn step(&mut self, step: u64) -> Vec<Vec<usize>> {
        let (epoch, within) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        let first = within as usize * self.order.accumulation;
        let last = (first + self.order.accumulation).min(self.batches_per_epoch());
        let drawn = match self.drawn.take() {
            Some((of, order)) if of == epoch => order,
            _ => self.draw(epoch),
        };
        let (_, order) = self.drawn.insert((epoch, drawn));
        let batch = |number: usize| {
            let units = order.iter().skip(number * self.order.batch_size);
            let units = units.take(self.order.batch_size);
            units.filter_map(|&u| self.units.get(u)).flatten().copied().collect()
        };
        (first..last).map(batch).collect()
    }

    /// The order of the units in an epoch.
    fn draw(&self, epoch: u64) -> Vec<usize> {
        match self.order.shuffle {
            true => permutation(self.units.len(), self.order.seed, epoch),
            false => (0..self.units.len()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(units: usize, batch_size: usize, accumulation: usize, drop_last: bool) -> Loader {
        let order = Order { batch_size, accumulation, drop_last, shuffle: true, seed: 7 };
        Loader::new((0..units).map(|u| vec![u]).collect(), order).unwrap()
    }

    #[test]
    fn an_epoch_sees_every_sample_once() {
        let mut loader = loader(23, 4, 3, false);
        assert_eq!(loader.steps_per_epoch(), 2);
        for epoch in 0..3 {
            let steps = (0..2).flat_map(|s| loader.step(epoch * 2 + s));
            let mut seen: Vec<usize> = steps.flatten().collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..23).collect::<Vec<_>>());
        }
        assert_ne!(loader.step(0), loader.step(2));
        let fresh = |step| super::tests::loader(23, 4, 3, false).step(step);
        for step in [3, 0, 5, 5, 2] {
            assert_eq!(loader.step(step), fresh(step), "an order depends on earlier steps");
        }
    }

    #[test]
    fn the_last_window_is_short_and_may_be_dropped() {
        let sizes = |mut loader: Loader, step| -> Vec<usize> {
            loader.step(step).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(loader(23, 4, 4, false), 1), [4, 3]);
        assert_eq!(sizes(loader(23, 4, 4, true), 1), [4]);
        let order =
            Order { batch_size: 9, accumulation: 1, drop_last: true, shuffle: false, seed: 0 };
        assert!(Loader::new(vec![vec![0]], order).is_err());
    }
}
