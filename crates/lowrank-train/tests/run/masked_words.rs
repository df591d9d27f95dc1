//! Hidden words: which they are, the loss on them as transformers has it, and that a run which was
//! stopped hides the same. `fixtures/run/make_masked.py` made the numbers.

use std::fs;

use lowrank_data::{Example, IGNORE_INDEX, Labels};
use lowrank_train::{Setup, Targets};
use serde::Deserialize;

use crate::{
    golden,
    harness::{Case, fixture},
    resume::outcome,
};

fn case() -> Case {
    let rows = fs::read_to_string(fixture("masked.jsonl")).unwrap();
    let keys = [
        "stage=pt",
        "mlm_probability=0.3",
        "cutoff_len=20",
        "lora_target=query,value",
        "disable_shuffling=true",
        "per_device_train_batch_size=3",
        "max_steps=6",
        "max_grad_norm=1.0",
        "learning_rate=1.0e-2",
        "lr_scheduler_type=constant",
    ];
    Case::tiny(&fixture("masked_base"), "masked_tokenizer", &rows, &keys)
}

#[derive(Debug, PartialEq, Deserialize)]
struct Hidden {
    input_ids: Vec<u32>,
    labels: Vec<i32>,
}

/// The rows as the model reads them in an epoch; none: as they are evaluated.
fn hidden(setup: &Setup, epoch: Option<u64>) -> Vec<Hidden> {
    let collator = epoch.map_or(setup.collator, |epoch| setup.collator.in_epoch(epoch));
    let of_row = |(i, example): (u64, &Example)| {
        let batch = collator.batch(&[(i, example)]).unwrap();
        let Targets::Tokens { rows, classes } = batch.targets else { panic!("no tokens") };
        let mut labels = vec![IGNORE_INDEX; example.input_ids.len()];
        rows.iter().zip(&*classes).for_each(|(row, class)| labels[*row] = *class as i32);
        Hidden { input_ids: batch.input.ids.to_vec(), labels }
    };
    (0..).zip(&setup.rows.train).map(of_row).collect()
}

#[test]
fn what_is_hidden_follows_from_seed_epoch_row_and_position() {
    let setup = case().setup(&[]);
    let file = fs::read(fixture("masked_rows.json")).unwrap();
    let expected: Vec<Hidden> = serde_json::from_slice(&file).unwrap();
    assert_eq!(hidden(&setup, Some(0)), expected[..8]);
    assert_eq!(hidden(&setup, Some(1)), expected[8..]);
    assert_ne!(hidden(&setup, None), expected[..8]);
    assert_ne!(hidden(&case().setup(&["seed=43"]), Some(0)), expected[..8]);
}

#[test]
fn guessing_hidden_words_equals_transformers() {
    golden::check(&case(), "masked");
}

/// The shares of the paper; special tokens are never hidden, nor guessed.
#[test]
fn so_many_are_hidden_and_in_these_ways() {
    let row = format!("{{\"text\": \"{}\"}}\n", ["w3"; 18].join(" "));
    let setup = case().with_rows(&row.repeat(600)).setup(&["mlm_probability=0.15"]);
    let mut counts = [0.0; 4];
    for row in hidden(&setup, Some(3)) {
        assert_eq!((row.input_ids[0], row.labels[0]), (3, IGNORE_INDEX));
        assert_eq!((row.input_ids[19], row.labels[19]), (4, IGNORE_INDEX));
        for (id, label) in row.input_ids[1..19].iter().zip(&row.labels[1..19]) {
            let guessed = *label != IGNORE_INDEX;
            counts[0] += f64::from(guessed);
            counts[1] += f64::from(*id == 37);
            counts[2] += f64::from(guessed && *id != 37 && *id != 8);
            counts[3] += f64::from(guessed && *id == 8);
            assert!(guessed || *id == 8, "{id} without a label");
        }
    }
    let guessed = counts[0];
    let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.03, "{found}");
    near(guessed / (600.0 * 18.0), 0.15);
    near(counts[1] / guessed, 0.8);
    near(counts[2] / guessed, 0.1);
    near(counts[3] / guessed, 0.1);
}

#[test]
fn a_stopped_run_hides_the_same() {
    let case = case();
    let more = ["disable_shuffling=false", "val_size=2", "do_eval=true", "lora_dropout=0.1"];
    let (_, whole) = case.run("whole", &more);
    let mut losses = Vec::new();
    for stop_at in [2, 5] {
        losses.extend(case.try_run("parts", &more, Some(stop_at)).1.losses());
    }
    let (_, heard) = case.run("parts", &more);
    losses.extend(heard.losses());
    assert_eq!(losses, whole.losses());
    let (found, expected) = (outcome(&case, "parts", 6), outcome(&case, "whole", 6));
    assert!(found.0 == expected.0, "adapter, optimizer or run state differ");
    // Evaluation hides the same words whenever it comes.
    let adapter = format!("adapter_name_or_path={}", case.path("whole").display());
    let rows = format!("eval_dataset={}", case.rows());
    let more = ["do_train=false", "do_eval=true", &adapter, &rows];
    let loss = |out: &str, size: &str| {
        let more = [&more[..], &[size]].concat();
        case.run(out, &more).0.evaluation.unwrap()
    };
    let (one, all) = (loss("a", "per_device_eval_batch_size=1"), loss("b", "val_size=0"));
    assert!((one.loss - all.loss).abs() < 1e-6 && one.accuracy == all.accuracy, "{one:?} {all:?}");
    assert_eq!(case.json("whole/adapter_config.json")["task_type"], serde_json::Value::Null);
}

#[test]
fn what_cannot_be_guessed_is_said() {
    let case = Case::novel(&["stage=pt"]);
    assert!(case.error("out", &[]).contains("`llama` models don't; write `stage: sft`"));
    let rows = fs::read_to_string(fixture("masked.jsonl")).unwrap();
    let case = Case::tiny(&fixture("masked_base"), "bert_tokenizer", &rows, &["stage=pt"]);
    assert!(case.error("out", &["cutoff_len=20"]).contains("has no `mask_token`"));
}

#[test]
fn the_labels_of_a_row_are_its_words() {
    let setup = case().setup(&["cutoff_len=16"]);
    for example in &setup.rows.train {
        let Labels::Tokens(labels) = &example.labels else { panic!("{:?}", example.labels) };
        for (id, label) in example.input_ids.iter().zip(labels) {
            // `[SEP]` in a text is no word.
            let word = if *id < 5 { IGNORE_INDEX } else { *id as i32 };
            assert_eq!(*label, word);
        }
    }
    assert_eq!(setup.rows.train.iter().filter(|example| example.cut > 0).count(), 3);
}
