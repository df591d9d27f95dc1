//! A model's own chat template gives the ids and masks that transformers gives. The references
//! and the script that made them are in `fixtures/`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lowrank_data::{DataOptions, Dataset, Encoder, IGNORE_INDEX, Labels, Sample, Tokenizer};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn rows(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixtures().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The chat tokenizer with a template.
fn model(template: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixtures().join("chat").join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    folder
}

fn template(file: &str) -> String {
    std::fs::read_to_string(fixtures().join("templates").join(file)).unwrap()
}

/// The sample that a file with this one row holds.
fn sample(row: &Value) -> Sample {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    std::io::Write::write_all(&mut file, row.to_string().as_bytes()).unwrap();
    let dataset = vec![file.path().to_str().unwrap().to_owned()];
    let mut set = Dataset::open(&DataOptions { dataset, ..DataOptions::default() }).unwrap();
    set.samples.remove(0)
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect()
}

fn check(encoder: &Encoder, row: &Value) {
    let place = format!("{}, {}, tools {}", row["template"], row["name"], row["tools"]);
    let sample = sample(&json!({"messages": row["messages"], "tools": row["tools"]}));
    let example = encoder.sft(&sample).unwrap();
    let found: Vec<i64> = example.input_ids.iter().map(|id| i64::from(*id)).collect();
    let text = encoder.tokenizer().decode(&example.input_ids, false).unwrap();
    assert_eq!(found, ids(&row["input_ids"]), "{place}: {text:?}");
    let prompt: Vec<i64> =
        encoder.prompt(&sample).unwrap().input_ids.iter().map(|id| i64::from(*id)).collect();
    assert_eq!(prompt, ids(&row["prompt"]), "prompt of {place}");
    if let Some(expected) = row.get("labels") {
        let Labels::Tokens(labels) = &example.labels else { panic!("no labels") };
        let found: Vec<i64> = labels.iter().map(|l| i64::from(*l)).collect();
        assert_eq!(found, ids(expected), "labels of {place}: {text:?}");
    }
}

#[test]
fn ids_and_masks_equal_transformers() {
    let rows = rows("chat.jsonl");
    for file in ["chatml.jinja", "forgets_thoughts.jinja", "tools.jinja"] {
        let model = model(&template(file));
        let tokenizer = Tokenizer::open(model.path()).unwrap();
        let encoder = Encoder::new(tokenizer, DataOptions::default()).unwrap();
        let mut count = 0;
        for row in rows.iter().filter(|row| row["template"] == file) {
            check(&encoder, row);
            count += 1;
        }
        assert!(count >= 5, "{file}");
    }
}

#[test]
fn a_real_template_gives_the_ids_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tok_minimind");
    if !folder.is_dir() {
        println!("skipped: {} isn't there", folder.display());
        return;
    }
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let encoder = Encoder::new(tokenizer, DataOptions::default()).unwrap();
    let rows = rows("minimind.jsonl");
    rows.iter().for_each(|row| check(&encoder, row));
    // Its generation prompt holds an empty thought, so a thought is trained from its first word on.
    let thoughts = rows.iter().find(|row| row["name"] == "thoughts").unwrap();
    let example = encoder.sft(&sample(&json!({"messages": thoughts["messages"]}))).unwrap();
    let Labels::Tokens(labels) = &example.labels else { panic!("no labels") };
    let trained: Vec<u32> =
        labels.iter().filter(|l| **l != IGNORE_INDEX).map(|l| *l as u32).collect();
    let text = encoder.tokenizer().decode(&trained, false).unwrap();
    let expected =
        "Easy.\n</think>\n\nParis.<|im_end|>A river has none.\n</think>\n\nNone.<|im_end|>";
    assert_eq!(text, expected);
}

/// Messages with more than texts reach the template as they were written.
#[test]
fn tool_calls_reach_the_template() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}\
                  {{ m.tool_calls | tojson }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}<assistant>{% endif %}";
    let model = model(source);
    let row = json!({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "id": "7", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": "r", "name": "f"},
        {"role": "assistant", "content": "b"}]});
    let sample = sample(&row);
    let encoder =
        Encoder::new(Tokenizer::open(model.path()).unwrap(), DataOptions::default()).unwrap();
    let text = |ids: &[u32]| encoder.tokenizer().decode(ids, false).unwrap();
    let call = r#"[{"type": "function", "id": "7", "function": {"name": "f", "arguments": {}}}]"#;
    let asked = format!("<user>a<assistant>{call}<tool>r<assistant>");
    let example = encoder.sft(&sample).unwrap();
    assert_eq!(text(&example.input_ids), format!("{asked}b"));
    let runs = lowrank_data::segments(encoder.tokenizer(), &example).unwrap();
    let trained: Vec<_> = runs.iter().filter(|s| s.trained).map(|s| s.text.as_str()).collect();
    assert_eq!(trained, [call, "b"]);
    assert_eq!(text(&encoder.prompt(&sample).unwrap().input_ids), asked);
}

fn refusal(source: &str) -> String {
    let model = model(source);
    let row = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    match Encoder::new(Tokenizer::open(model.path()).unwrap(), DataOptions::default()) {
        Err(error) => error.to_string(),
        Ok(encoder) => encoder.sft(&sample(&row)).unwrap_err().to_string(),
    }
}

#[test]
fn what_a_template_refuses_is_said() {
    assert!(refusal("{{ raise_exception('no way') }}").contains("no way"));
    assert!(
        refusal(
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"
        )
        .contains("fuel")
    );
    assert!(refusal("{{ strftime_now('%d') }}").contains("none was given"));
    assert!(refusal("{% if %}").contains("syntax error"));
    assert!(refusal("{{ messages.x.y }}").contains("undefined"));
}

/// A template that counts the messages writes every turn otherwise once more follow.
#[test]
fn answers_that_cannot_be_found_are_an_error() {
    let source = "{% for m in messages %}{{ m.content }}{{ messages | length }}{% endfor %}";
    let model = model(source);
    let open = |mask_history| {
        let options = DataOptions { mask_history, ..DataOptions::default() };
        Encoder::new(Tokenizer::open(model.path()).unwrap(), options).unwrap()
    };
    let row = json!({"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]});
    let error = open(false).sft(&sample(&row)).unwrap_err().to_string();
    assert!(error.contains("message 1") && error.contains("mask_history"), "{error}");
    let encoder = open(true);
    let example = encoder.sft(&sample(&row)).unwrap();
    let Labels::Tokens(labels) = &example.labels else { panic!("no labels") };
    let text = encoder.tokenizer().decode(&example.input_ids, false).unwrap();
    assert_eq!(text, "a4b4c4d4");
    assert_eq!(labels.iter().filter(|l| **l != IGNORE_INDEX).count(), 2);
}
