//! Words with boxes: as transformers trains LayoutLM on them, and what is said about bad ones.
//! `fixtures/run/make_boxes.py` made the numbers.

use std::fs;

use serde_json::{Value, json};

use crate::{
    golden,
    harness::{Case, fixture},
};

fn layoutlm(task: &str, rows: &str) -> Case {
    let task = format!("task_type={task}");
    let keys = [
        task.as_str(),
        "cutoff_len=20",
        "doc_stride=4",
        "lora_target=query,value",
        "disable_shuffling=true",
        "per_device_train_batch_size=3",
        "max_steps=3",
        "max_grad_norm=1.0",
        "learning_rate=1.0e-2",
        "lr_scheduler_type=constant",
    ];
    Case::tiny(&fixture("boxes_base"), "boxes_base", rows, &keys)
}

fn kept(name: &str) -> String {
    fs::read_to_string(fixture(&format!("{name}.jsonl"))).unwrap()
}

#[test]
fn tags_of_words_on_a_page_equal_transformers() {
    golden::check(&layoutlm("TOKEN_CLS", &kept("boxes_tag")), "boxes_tag");
}

#[test]
fn classes_of_pages_equal_transformers() {
    golden::check(&layoutlm("SEQ_CLS", &kept("boxes_cls")), "boxes_cls");
}

#[test]
fn answers_on_a_page_equal_transformers() {
    let case = layoutlm("QUESTION_ANS", &kept("boxes_qa")).with("per_device_train_batch_size=1");
    // Added to all places alike: its gradient is nothing but rounding, whose sign Adam takes.
    golden::check_but(&case, "boxes_qa", Some("base_model.model.qa_outputs.bias"));
}

/// `all` names every linear layer but a head that is trained whole, which PEFT would refuse.
#[test]
fn all_leaves_the_head_to_be_trained_whole() {
    for (task, rows, head) in
        [("QUESTION_ANS", "boxes_qa", "qa_outputs"), ("TOKEN_CLS", "boxes_tag", "classifier")]
    {
        let case = layoutlm(task, &kept(rows)).with("lora_target=all").with("max_steps=1");
        case.run("out", &[]);
        let names: Vec<String> = case.adapter("out").into_keys().collect();
        let of_head = names.iter().filter(|name| name.contains(head)).collect::<Vec<_>>();
        let whole = ["bias", "weight"].map(|part| format!("base_model.model.{head}.{part}"));
        assert_eq!(of_head, whole.iter().collect::<Vec<_>>());
        assert!(names.iter().any(|name| name.contains("intermediate.dense.lora_A")), "{names:?}");
    }
}

#[test]
fn hidden_words_keep_their_boxes() {
    let row = json!({"text": "w1 w2a", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]});
    let case = layoutlm("CAUSAL_LM", &format!("{row}\n"));
    let setup = case.setup(&["stage=pt", "mlm_probability=1"]);
    let batch = setup.collator.batch(&[(0, &setup.rows.train[0])]).unwrap();
    let boxes = [[0; 4], [1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8], [1000; 4]];
    assert_eq!(batch.input.bbox.as_deref(), Some(&boxes[..]));
}

#[test]
fn bad_boxes_are_named_with_their_rows() {
    let good = kept("boxes_tag");
    let row = |boxes: Value| json!({"tokens": ["w1", "w2"], "tags": ["O", "LOW"], "boxes": boxes});
    let wrong = "field `boxes[1]` is `";
    for (row, part) in [
        (row(json!([[0, 0, 1, 1], [0, 0, 1001, 1]])), wrong),
        (row(json!([[0, 0, 1, 1], [0, 0, -1, 1]])), wrong),
        (row(json!([[0, 0, 1, 1], [0, 5, 1, 4]])), wrong),
        (row(json!([[0, 0, 1, 1], [0, 0, 1]])), wrong),
        (row(json!([[0, 0, 1, 1], [0, 0, 0.5, 1]])), wrong),
        (row(json!([[0, 0, 1, 1], "no"])), wrong),
        (row(json!([[0, 0, 1, 1]])), "`tokens` has 2 entries but `boxes` has 1"),
        (row(json!(7)), "field `boxes` is the number `7`; it must be a list"),
        (row(Value::Null), "no field `boxes`; the model reads where each word stands"),
    ] {
        let case = layoutlm("TOKEN_CLS", &format!("{good}{row}\n"));
        let error = case.error("out", &[]);
        let place = format!("{}:8 (row 7): ", case.rows());
        assert!(error.starts_with(&place) && error.contains(part), "{error}");
        let setup = case.setup(&["skip_bad_rows=true"]);
        assert_eq!((setup.rows.train.len(), setup.rows.skipped.len()), (7, 1));
    }
}

#[test]
fn a_model_that_reads_no_boxes_refuses_them() {
    let rows = kept("boxes_tag");
    let keys = ["task_type=TOKEN_CLS", "skip_bad_rows=true"];
    let case = Case::tiny(&fixture("bert_base"), "bert_tokenizer", &rows, &keys);
    let error = case.error("out", &[]);
    assert!(error.contains("the model (bert) doesn't read where words stand"), "{error}");
}
