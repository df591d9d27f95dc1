//! `predict`: what transformers and PEFT predict (`fixtures/make.py`).

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::{Result, failure, fixture, objects, stdout, with_tokenizer};

const TOLERANCE: f64 = 1e-5;

/// Predictions of a case, row by row.
fn predict(
    base: &TempDir,
    adapter: Option<&Path>,
    case: &str,
    more: &[&str],
) -> Result<Vec<Value>> {
    let base = base.path().display().to_string();
    let rows = fixture(case).join("rows.jsonl").display().to_string();
    let mut command = vec!["predict", "--model", &base, "--data", &rows, "--json"];
    let adapter = adapter.map(|adapter| adapter.display().to_string());
    command.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter]));
    command.extend(more);
    objects(&stdout(command)?)
}

fn expected(case: &str) -> Result<Vec<Value>> {
    objects(&std::fs::read_to_string(fixture(case).join("expected.jsonl"))?)
}

/// Equal but for rounding.
fn assert_close(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => {
            let difference = found.as_f64().zip(expected.as_f64()).map(|(a, b)| (a - b).abs());
            assert!(difference.is_some_and(|d| d < TOLERANCE), "{at}: {found}, not {expected}");
        }
        (Value::Object(found), Value::Object(expected)) => {
            let keys = |map: &serde_json::Map<String, Value>| {
                let mut keys: Vec<String> = map.keys().cloned().collect();
                keys.sort();
                keys
            };
            assert_eq!(keys(found), keys(expected), "{at}");
            for (key, expected) in expected {
                assert_close(&found[key], expected, &format!("{at}.{key}"));
            }
        }
        (found, expected) => assert_eq!(found, expected, "{at}"),
    }
}

fn assert_all_close(found: &[Value], expected: &[Value]) {
    assert_eq!(found.len(), expected.len());
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_close(found, expected, &format!("row {row}"));
    }
}

#[test]
fn classes_equal_transformers() -> Result<()> {
    let base = with_tokenizer("bert")?;
    let adapter = fixture("seq_cls");
    for batch in ["1", "3", "32"] {
        let found = predict(&base, Some(&adapter), "seq_cls", &["--batch-size", batch])?;
        assert_all_close(&found, &expected("seq_cls")?);
    }
    Ok(())
}

#[test]
fn tags_equal_transformers() -> Result<()> {
    let base = with_tokenizer("bert")?;
    let adapter = fixture("token_cls");
    for batch in ["1", "2", "32"] {
        let found = predict(&base, Some(&adapter), "token_cls", &["--batch-size", batch])?;
        assert_eq!(found, expected("token_cls")?);
    }
    Ok(())
}

#[test]
fn answers_equal_transformers() -> Result<()> {
    let base = with_tokenizer("bert_qa")?;
    for batch in ["1", "32"] {
        let found = predict(&base, None, "question_ans", &["--batch-size", batch])?;
        assert_all_close(&found, &expected("question_ans")?);
    }
    Ok(())
}

/// Rows, model and numbers are those of training, `make_boxes.py` there.
#[test]
fn tags_of_words_on_a_page_equal_transformers() -> Result<()> {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lowrank-train/tests/fixtures/run");
    let path = |name: &str| made.join(name).display().to_string();
    let (base, adapter, rows) =
        (path("boxes_base"), path("boxes_tag_end"), path("boxes_tag.jsonl"));
    let command = |rows: &str| {
        let model = ["predict", "--model", &base, "--adapter", &adapter, "--task", "token-cls"];
        let more = ["--json", "--cutoff-len", "20", "--data", rows];
        [&model[..], &more].concat().into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let found = objects(&stdout(command(&rows))?)?;
    assert_eq!(found, objects(&std::fs::read_to_string(path("boxes_tags.jsonl"))?)?);
    let boxless = fixture("token_cls").join("rows.jsonl").display().to_string();
    let said = failure(command(&boxless))?;
    assert!(said.contains("(row 0): no field `boxes`"), "{said}");
    Ok(())
}

#[test] // PEFT itself has no label_names.json
fn an_adapter_without_names_has_as_many_classes_as_its_head() -> Result<()> {
    let (base, adapter) = (with_tokenizer("bert")?, tempfile::tempdir()?);
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("seq_cls").join(file), adapter.path().join(file))?;
    }
    let config = base.path().join("config.json");
    let mut fields: Value = serde_json::from_str(&std::fs::read_to_string(&config)?)?;
    fields["id2label"] = serde_json::json!({"0": "no", "1": "yes"});
    std::fs::write(&config, fields.to_string())?;
    let found = predict(&base, Some(adapter.path()), "seq_cls", &[])?;
    let labels: Vec<&str> = found.iter().filter_map(|row| row["label"].as_str()).collect();
    assert_eq!(labels, ["LABEL_1", "LABEL_2", "LABEL_1", "LABEL_1"]);
    Ok(())
}

#[test]
fn several_labels_and_numbers() -> Result<()> {
    let (base, adapter) = (with_tokenizer("bert")?, tempfile::tempdir()?);
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("seq_cls").join(file), adapter.path().join(file))?;
    }
    let names = r#"{"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "#;
    let write = |kind: &str| {
        std::fs::write(adapter.path().join("label_names.json"), format!("{names}\"{kind}\"}}"))
    };
    write("regression")?;
    let numbers = predict(&base, Some(adapter.path()), "seq_cls", &[])?;
    write("multi_label_classification")?;
    let flags = predict(&base, Some(adapter.path()), "seq_cls", &[])?;
    for (numbers, flags) in numbers.iter().zip(&flags) {
        let names = ["a", "b", "c"];
        let logits: Vec<f64> = serde_json::from_value(numbers["label"].clone())?;
        let chosen = names.iter().zip(&logits).filter(|(_, logit)| **logit > 0.0);
        assert_eq!(flags["label"], chosen.map(|(name, _)| *name).collect::<Value>());
        for (name, logit) in names.iter().zip(logits) {
            let share = flags["scores"][name].as_f64().ok_or("no score")?;
            assert!((share - 1.0 / (1.0 + (-logit).exp())).abs() < TOLERANCE);
        }
    }
    Ok(())
}

#[test]
fn errors_say_what_to_do() -> Result<()> {
    let base = with_tokenizer("bert")?;
    let rows = fixture("seq_cls").join("rows.jsonl").display().to_string();
    let path = base.path().display().to_string();
    let error = |more: &[&str]| -> Result<String> {
        let fixed = ["predict", "--model", &path];
        Ok(failure(fixed.iter().chain(more))?.replace(&path, "BASE"))
    };
    insta::assert_snapshot!(error(&["--data", &rows])?, @"1: error: the model is for the task `masked-lm`; predict is for seq-cls, token-cls and question-ans (--task), generate for text");
    insta::assert_snapshot!(error(&["--data", &rows, "--task", "token-cls"])?, @"1: error: ROOT/crates/lowrank/tests/fixtures/seq_cls/rows.jsonl:1 (row 0): no field `tokens`; the row has `text`, `label`");
    insta::assert_snapshot!(error(&["--data", "rows.doc", "--task", "seq-cls"])?, @"1: error: rows.doc: can't read `.doc` files; use .json, .jsonl, .csv, .tsv, .parquet or .txt");
    insta::assert_snapshot!(error(&["--data", &rows, "--task", "seq"])?, @r"
    2: error: invalid value 'seq' for '--task <TASK>': known: causal-lm, seq2seq-lm, masked-lm, seq-cls, token-cls, question-ans, feature-extraction

    For more information, try '--help'.
    ");
    Ok(())
}
