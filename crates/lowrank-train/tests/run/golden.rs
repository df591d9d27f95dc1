//! Whole runs against transformers' Trainer with PEFT: same rows, same order, same beginning.
//! `fixtures/run/make.py` made the numbers; windows that are cut short, clipping, weight decay and
//! the schedules are in them.

use serde::Deserialize;

use crate::harness::{Case, assert_close, assert_near, fixture, repository, tensors};

#[derive(Deserialize)]
struct Step {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
}

pub(crate) fn check(case: &Case, name: &str) {
    check_but(case, name, None);
}

/// The same but for one tensor of the adapter at the end.
pub(crate) fn check_but(case: &Case, name: &str, left_out: Option<&str>) {
    let start = format!("adapter_name_or_path={}", fixture(&format!("{name}_start")).display());
    let (_, heard) = case.run("out", &[&start]);
    let file = std::fs::read(fixture(&format!("{name}.json"))).unwrap();
    let steps: Vec<Step> = serde_json::from_slice(&file).unwrap();
    let of = |value: fn(&Step) -> f64| steps.iter().map(value).collect::<Vec<f64>>();
    let rates: Vec<f64> = heard.steps.iter().map(|step| step.learning_rate).collect();
    assert_near(&rates, &of(|s| s.learning_rate), 1e-9);
    assert_near(&heard.losses(), &of(|s| s.loss), 1e-5);
    assert_near(&heard.grad_norms(), &of(|s| s.grad_norm), 1e-4);
    let mut end = tensors(&fixture(&format!("{name}_end")).join("adapter_model.safetensors"));
    let mut found = case.adapter("out");
    for tensors in [&mut end, &mut found] {
        assert_eq!(left_out.and_then(|name| tensors.remove(name)).is_some(), left_out.is_some());
    }
    assert_close(&found, &end, 1e-4);
}

#[test]
fn supervised_fine_tuning_equals_transformers() {
    let case = Case::novel(&[
        "max_samples=17",
        "cutoff_len=96",
        "disable_shuffling=true",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=4",
        "max_steps=5",
        "learning_rate=1.0e-2",
        "weight_decay=0.1",
        "max_grad_norm=0.3",
        "lr_scheduler_type=cosine",
        "warmup_steps=2",
    ]);
    check(&case, "sft");
}

#[test]
fn sequence_classification_equals_transformers() {
    let rows = std::fs::read_to_string(fixture("seq_cls.jsonl")).unwrap();
    let keys = [
        "task_type=SEQ_CLS",
        "disable_shuffling=true",
        "per_device_train_batch_size=4",
        "max_steps=5",
        "learning_rate=1.0e-2",
        "weight_decay=0.1",
        "max_grad_norm=1.0",
        "lr_scheduler_type=linear",
    ];
    let case = Case::tiny(&fixture("bert_base"), "bert_tokenizer", &rows, &keys);
    check(&case, "seq_cls");
}

#[test]
fn text_to_text_equals_transformers() {
    let rows = std::fs::read_to_string(fixture("seq2seq.jsonl")).unwrap();
    let keys = [
        "task_type=SEQ_2_SEQ_LM",
        "disable_shuffling=true",
        "per_device_train_batch_size=3",
        "max_steps=3",
        "learning_rate=1.0e-2",
        "max_grad_norm=1.0",
        "lr_scheduler_type=constant",
    ];
    let base = repository().join("crates/lowrank-models/tests/fixtures/t5");
    let case = Case::tiny(&base, "t5_tokenizer", &rows, &keys);
    check(&case, "seq2seq");
}
