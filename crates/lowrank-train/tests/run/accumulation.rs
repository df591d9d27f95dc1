//! A step is the same however it is cut into micro-batches: rows of all lengths, masked prompts, a
//! row without a target, a short last window, dropout.

use crate::harness::{Case, assert_close, assert_near, repository};

const CUTS: [[&str; 2]; 3] = [
    ["per_device_train_batch_size=4", "gradient_accumulation_steps=1"],
    ["per_device_train_batch_size=2", "gradient_accumulation_steps=2"],
    ["per_device_train_batch_size=1", "gradient_accumulation_steps=4"],
];

/// 11 rows: windows of 4, 4 and 3. One prompt fills its row, so that nothing of it is trained.
fn rows() -> String {
    let word = "it is a truth ";
    let row = |i: usize| match i {
        6 => (word.repeat(40), "unseen"),
        _ => (word.repeat(1 + i % 3), &"universally acknowledged that a man"[..5 + 3 * (i % 8)]),
    };
    let json = |(prompt, completion): (String, &str)| {
        serde_json::json!({"prompt": prompt, "completion": completion}).to_string() + "\n"
    };
    (0..11).map(|i| json(row(i))).collect()
}

fn check(more: &[&str]) {
    // With this epsilon an update is nearly the gradient; AdamW would else divide by the root of
    // tiny squares and show their rounding.
    let keys = ["lora_target=all", "max_steps=7", "learning_rate=0.1", "adam_epsilon=1.0"];
    let case = Case::novel(&keys).with_rows(&rows());
    let setup = case.setup(&[]);
    assert_eq!(setup.rows.train.iter().filter(|e| e.targets() == 0).count(), 1);
    let run = |cut: &[&str; 2]| {
        let out = cut.concat();
        let (_, heard) = case.run(&out, &[&cut[..], more].concat());
        (heard, case.adapter(&out))
    };
    let [(whole, adapter), cuts @ ..] = CUTS.map(|cut| run(&cut));
    assert!(whole.losses().windows(2).all(|pair| pair[0] != pair[1]));
    for (heard, cut_adapter) in cuts {
        assert_near(&heard.losses(), &whole.losses(), 1e-6);
        assert_near(&heard.grad_norms(), &whole.grad_norms(), 2e-6);
        assert_close(&cut_adapter, &adapter, 5e-6);
    }
}

#[test]
fn accumulation_equals_the_large_batch() {
    check(&[]);
}

#[test]
fn accumulation_equals_the_large_batch_with_dropout() {
    check(&["lora_dropout=0.2"]);
}

#[test]
fn a_row_without_a_label_is_refused() {
    let rows = "{\"text\": \"w1 w2\", \"label\": \"a\"}\n{\"text\": \"w3\", \"label\": null}\n";
    let keys = ["task_type=SEQ_CLS", "lora_target=query"];
    let base = repository().join("crates/lowrank-models/tests/fixtures/bert");
    let case = Case::tiny(&base, "bert_tokenizer", rows, &keys);
    let error = case.error("out", &[]);
    assert!(error.contains("rows.jsonl:2") && error.contains("no label"), "{error}");
    let (_, heard) = case.run("out", &["skip_bad_rows=true", "max_steps=1"]);
    assert_eq!(heard.steps.len(), 1);
}
