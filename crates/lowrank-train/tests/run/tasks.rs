//! Classification, tagging and question answering, from rows to files.

use serde_json::json;

use crate::harness::{Case, repository};

const KEYS: [&str; 7] = [
    "lora_target=query,value",
    "learning_rate=1.0e-2",
    "per_device_train_batch_size=8",
    "max_steps=80",
    "lr_scheduler_type=constant",
    "do_eval=true",
    "doc_stride=16",
];

/// Trains on `rows` and evaluates on them as well, checks that they are learnt, and gives what
/// `label_names.json` says and the accuracy.
fn learns(task: &str, rows: &[serde_json::Value], below: f64) -> (Case, Option<f64>) {
    let text: String = rows.iter().map(|row| row.to_string() + "\n").collect();
    let task = format!("task_type={task}");
    let keys = [&KEYS[..], &[&task]].concat();
    // It has no head for any of these tasks.
    let base = repository().join("crates/lowrank-models/tests/fixtures/bert");
    let case = Case::tiny(&base, "bert_tokenizer", &text, &keys);
    let (summary, heard) = case.run("out", &[&format!("eval_dataset={}", case.rows())]);
    let losses = heard.losses();
    let (first, last) = (losses[0], summary.evaluation.unwrap().loss);
    assert!(last < below * first, "the loss went from {first} to {last}");
    let results = case.json("out/eval_results.json");
    assert_eq!(results["eval_loss"].as_f64(), Some(last));
    (case, results["eval_accuracy"].as_f64())
}

fn words(i: usize) -> String {
    format!("w{} w{} w{}", i % 7, 10 + i % 5, 20 + i % 3)
}

#[test]
fn single_labels_are_learnt() {
    let label = |i: usize| ["no", "maybe", "yes"][i % 3];
    let rows: Vec<_> = (0..12).map(|i| json!({"text": words(i), "label": label(i)})).collect();
    let (case, accuracy) = learns("SEQ_CLS", &rows, 0.2);
    assert_eq!(accuracy, Some(1.0));
    let names = json!({
        "id2label": {"0": "maybe", "1": "no", "2": "yes"},
        "problem_type": "single_label_classification",
    });
    assert_eq!(case.json("out/label_names.json"), names);
    assert_eq!(case.json("out/checkpoint-80/label_names.json"), names);
    let classifier = &case.adapter("out")["base_model.model.classifier.weight"];
    assert_eq!(classifier.dims(), [3, 32]);
    let config = case.json("out/adapter_config.json");
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], json!(["classifier", "score"]));
}

#[test]
fn several_labels_are_learnt() {
    let labels = |i: usize| {
        let of = [(i.is_multiple_of(2), "even"), (i.is_multiple_of(3), "third"), (i > 5, "late")];
        of.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect::<Vec<_>>()
    };
    let text = |i: usize| format!("w{i} w{}", i % 6);
    let rows: Vec<_> = (0..12).map(|i| json!({"text": text(i), "label": labels(i)})).collect();
    let (case, accuracy) = learns("SEQ_CLS", &rows, 0.6);
    assert_eq!(accuracy, None);
    let names = case.json("out/label_names.json");
    assert_eq!(names["problem_type"], "multi_label_classification");
    assert_eq!(names["id2label"], json!({"0": "even", "1": "late", "2": "third"}));
}

#[test]
fn numbers_are_learnt() {
    let rows: Vec<_> =
        (0..10).map(|i| json!({"text": words(i), "label": i as f64 * 0.5 - 1.25})).collect();
    let (case, accuracy) = learns("SEQ_CLS", &rows, 0.1);
    assert_eq!(accuracy, None);
    assert_eq!(case.json("out/label_names.json")["problem_type"], "regression");
    let classifier = &case.adapter("out")["base_model.model.classifier.weight"];
    assert_eq!(classifier.dims(), [1, 32]);
}

#[test]
fn tags_are_learnt() {
    let tag = |word: usize| if word < 10 { "LOW" } else { "HIGH" };
    let row = |i: usize| {
        let words = [i, 12 + i, (3 * i) % 20];
        let tags = words.map(tag);
        json!({"tokens": words.map(|w| format!("w{w}")), "tags": tags})
    };
    let (case, accuracy) = learns("TOKEN_CLS", &(0..10).map(row).collect::<Vec<_>>(), 0.2);
    assert_eq!(accuracy, Some(1.0));
    assert_eq!(case.json("out/label_names.json")["id2label"], json!({"0": "HIGH", "1": "LOW"}));
}

#[test]
fn answers_are_found() {
    // The answer stands behind the word that is asked for.
    let row = |i: usize| {
        let place = i % 4;
        let context: Vec<String> = (0..5).map(|k| format!("w{}", 10 + (i + k) % 20)).collect();
        let start: usize = context[..place].iter().map(|word| word.len() + 1).sum();
        json!({
            "question": format!("w{place}"),
            "context": context.join(" "),
            "answers": {"text": [context[place]], "answer_start": [start]},
        })
    };
    let (case, accuracy) = learns("QUESTION_ANS", &(0..12).map(row).collect::<Vec<_>>(), 0.3);
    assert!(accuracy.unwrap() > 0.7, "{accuracy:?}");
    assert!(!case.path("out/label_names.json").exists());
    assert_eq!(case.json("out/adapter_config.json")["task_type"], "QUESTION_ANS");
}

#[test]
fn a_run_may_only_evaluate() {
    let label = |i: usize| ["no", "yes"][i % 2];
    let rows: Vec<_> = (0..8).map(|i| json!({"text": words(i), "label": label(i)})).collect();
    let (case, accuracy) = learns("SEQ_CLS", &rows, 0.3);
    let trained = case.json("out/eval_results.json");
    let log = std::fs::read(case.path("out/trainer_log.jsonl")).unwrap();
    let adapter = format!("adapter_name_or_path={}", case.path("out").display());
    let (rows, eval) =
        (format!("dataset={}", case.rows()), format!("eval_dataset={}", case.rows()));
    let with = [("with", rows.as_str()), ("without", "dataset=null"), ("out", rows.as_str())];
    for (out, dataset) in with {
        let (summary, heard) = case.run(out, &["do_train=false", &adapter, dataset, &eval]);
        assert_eq!((summary.step, heard.steps.len()), (0, 0));
        assert_eq!(summary.evaluation.unwrap().accuracy, accuracy);
        let results = case.json(&format!("{out}/eval_results.json"));
        assert_eq!(results["eval_loss"], trained["eval_loss"]);
    }
    // An evaluation in a run's own folder leaves the run's log alone.
    assert_eq!(std::fs::read(case.path("out/trainer_log.jsonl")).unwrap(), log);
}
