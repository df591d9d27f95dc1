//! The loss and the gradients of a batch are the sums of its rows', in whatever order they stand,
//! packed end to end or as Python programs pad them on the left or on the right.

use std::collections::BTreeMap;

use candle_core::Tensor;
use lowrank_autograd::Gradients;
use lowrank_data::{Example, Labels};
use lowrank_models::{Input, Padded};
use lowrank_train::{
    Batch, Setup, Targets,
    objectives::{Objective as _, Passes, Sft},
    token_targets,
};

use crate::harness::{Case, assert_close, assert_near};

const DROPOUT: [&str; 2] = ["lora_dropout=0.2", "init_lora_weights=false"];

/// The loss of some batches and what flows to each parameter.
fn sums(setup: &Setup, batches: &[Batch]) -> Sums {
    let mut gradients = Gradients::new();
    let mut sum = 0.0;
    for batch in batches {
        let passes = Passes::training(&setup.model, batch, 3, 5);
        let loss = Sft.loss(setup.model.model(), batch, &passes).unwrap();
        sum += f64::from(loss.sum.data().to_scalar::<f32>().unwrap());
        loss.sum.backward(1.0, &mut gradients).unwrap();
    }
    let gradient = |p: &lowrank_autograd::Parameter| gradients.get(p.id()).unwrap().clone();
    let named = setup.model.trainable().into_iter().map(|p| (p.name().to_owned(), gradient(&p)));
    (sum, named.collect())
}

fn batch(setup: &Setup, rows: &[usize]) -> Batch {
    let rows: Vec<(u64, &Example)> =
        rows.iter().map(|&i| (i as u64, &setup.rows.train[i])).collect();
    setup.collator.batch(&rows).unwrap()
}

type Sums = (f64, BTreeMap<String, Tensor>);

fn assert_same(found: Sums, expected: &Sums, tolerance: f32) {
    assert_near(&[found.0], &[expected.0], 1e-6);
    assert_close(&found.1, &expected.1, tolerance);
}

#[test]
fn a_batch_equals_its_rows() {
    let setup =
        Case::novel(&["lora_target=all", "max_samples=6", "cutoff_len=200"]).setup(&DROPOUT);
    let lengths: Vec<usize> = setup.rows.train.iter().map(|e| e.input_ids.len()).collect();
    assert!(lengths.windows(2).any(|pair| pair[0] != pair[1]), "{lengths:?}");
    let rows: Vec<Batch> = (0..6).map(|i| batch(&setup, &[i])).collect();
    let apart = sums(&setup, &rows);
    // Products with other numbers of rows are summed up in other orders: by how much that shows
    // depends on the machine's kernels. A row with the wrong weight or mask is off by 1e-3 and more.
    assert_same(sums(&setup, &[batch(&setup, &[0, 1, 2, 3, 4, 5])]), &apart, 5e-6);
    assert_same(sums(&setup, &[batch(&setup, &[4, 1, 5, 0, 3, 2])]), &apart, 5e-6);
    // The dropout is there, and it is that of the sample, not of the place.
    let renamed = batch(&setup, &[0, 1, 2, 3, 4, 5]);
    let renamed = Batch { samples: vec![9, 1, 2, 3, 4, 5], ..renamed };
    assert!((sums(&setup, &[renamed]).0 - apart.0).abs() > 1e-3);
}

#[test]
fn a_padded_batch_equals_its_rows() {
    let setup =
        Case::novel(&["lora_target=all", "max_samples=5", "cutoff_len=200"]).setup(&DROPOUT);
    let apart = sums(&setup, &(0..5).map(|i| batch(&setup, &[i])).collect::<Vec<_>>());
    // On the left, positions begin behind the padding, where the angles are other numbers.
    for (left, tolerance) in [(false, 2e-6), (true, 1e-4)] {
        assert_same(sums(&setup, &[padded(&setup.rows.train, left)]), &apart, tolerance);
    }
}

/// All rows as a padded batch.
fn padded(rows: &[Example], left: bool) -> Batch {
    let columns = rows.iter().map(|e| e.input_ids.len()).max().unwrap();
    let pad = |values: Vec<i64>, fill: i64| {
        let padding = vec![fill; columns - values.len()];
        if left { [padding, values].concat() } else { [values, padding].concat() }
    };
    let flat = |of: &dyn Fn(&Example) -> Vec<i64>, fill| {
        rows.iter().flat_map(|row| pad(of(row), fill)).collect::<Vec<i64>>()
    };
    let ids = flat(&|row| row.input_ids.iter().map(|&id| i64::from(id)).collect(), 0);
    let mask = flat(&|row| vec![1; row.input_ids.len()], 0);
    let labels_of = |row: &Example| match &row.labels {
        Labels::Tokens(labels) => labels.iter().map(|&l| i64::from(l)).collect(),
        other => panic!("{other:?}"),
    };
    let labels = flat(&labels_of, -100);
    let padded = Padded::new(rows.len(), columns, Some(&mask)).unwrap();
    let sequences = padded.sequences();
    let labels: Vec<Option<u32>> =
        padded.pick(&labels).into_iter().map(|l| u32::try_from(l).ok()).collect();
    let targets = token_targets(&sequences, &labels, true);
    assert!(matches!(&targets, Targets::Tokens { rows, .. } if !rows.is_empty()));
    let ids = padded.pick(&ids).into_iter().map(|id| id as u32).collect();
    let input = Input::new(ids, sequences);
    Batch { input, decoder_input: None, targets, samples: (0..rows.len() as u64).collect() }
}
