//! `preview`: rows as the model sees them, without a model.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Result, failure, objects, stdout, stories};

/// A recipe and its data; the model folder has a tokenizer alone.
fn recipe(rows: &[Value], more: &str) -> Result<(TempDir, String)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&stories()).join(file), path.join(file))?;
    }
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(path.join("rows.jsonl"), lines.join("\n"))?;
    let text = format!(
        "model_name_or_path: {0}\nstage: sft\ndo_train: true\nfinetuning_type: lora\n\
         dataset_dir: {0}\ndataset: rows.jsonl\ntemplate: alpaca\noutput_dir: {0}/out\n{more}",
        path.display()
    );
    let recipe = path.join("recipe.yaml");
    std::fs::write(&recipe, text)?;
    Ok((folder, recipe.display().to_string()))
}

fn story(prompt: &str, answer: &str) -> Value {
    json!({"instruction": prompt, "output": answer})
}

#[test]
fn what_is_trained_stands_in_brackets() -> Result<()> {
    let rows =
        [story("Say hi.", "Hi, Lily!"), story("And now?", "Bye."), story("Go on", &"x".repeat(90))];
    let (folder, recipe) = recipe(&rows, "cutoff_len: 64\nval_size: 0.5\n")?;
    let text = stdout(["preview", &recipe, "--rows", "2"])?;
    let text = text.replace(&folder.path().display().to_string(), "DIR");
    insta::assert_snapshot!(text, @r"
    ── row 0, DIR/rows.jsonl:1 (row 0): 64 tokens, 9 trained, 46 cut off
    Below is an instruction that describes a task. Write a response that appropriately comp⟦Hi, Lily!</s> 

    ⟧
    ── row 1, DIR/rows.jsonl:2 (row 1): 64 tokens, 8 trained, 45 cut off
    Below is an instruction that describes a task. Write a response that appropriately comple⟦Bye.</s> 

    ⟧
    ── 3 rows, 192 tokens
    trained: 48 tokens (25.0 %)
    cut at 64 tokens: 3 rows (221 tokens)
    rows with nothing to train: 0
    lengths:
       1–8  0
       9–16 0
      17–24 0
      25–32 0
      33–40 0
      41–48 0
      49–56 0
      57–64 3 ████████████████████████████████████████
    ");
    Ok(())
}

#[test]
fn json_has_every_row_before_packing() -> Result<()> {
    let rows: Vec<Value> = (0..7).map(|i| story("Count.", &format!("{i}"))).collect();
    let (_folder, recipe) = recipe(&rows, "packing: true\nneat_packing: true\n")?;
    let found = objects(&stdout(["preview", &recipe, "--json", "--all"])?)?;
    assert_eq!(found.len(), 7);
    for row in &found {
        let ids = row["input_ids"].as_array().ok_or("no ids")?;
        let labels = row["labels"].as_array().ok_or("no labels")?;
        assert_eq!(ids.len(), labels.len());
        let trained: Vec<_> = ids.iter().zip(labels).filter(|(_, l)| **l != -100).collect();
        assert!(!trained.is_empty() && trained.len() < ids.len());
        assert!(trained.iter().all(|(id, label)| id == label));
    }
    assert_eq!(objects(&stdout(["preview", &recipe, "--json", "--rows", "2"])?)?, found[..2]);
    Ok(())
}

#[test]
fn labelled_texts_have_a_class() -> Result<()> {
    let row = |text: &str, label: &str| json!({"text": text, "label": label});
    let rows = [row("Lily ran.", "run"), row("Tom sat.", "sit"), row("Lily runs.", "run")];
    let (_folder, recipe) = recipe(&rows, "task_type: SEQ_CLS\n")?;
    let found = objects(&stdout(["preview", &recipe, "--json", "--all"])?)?;
    let labels: Vec<_> = found.iter().filter_map(|row| row["labels"].as_u64()).collect();
    assert_eq!(labels, [0, 1, 0]);
    let text = stdout(["preview", &recipe])?;
    assert!(text.contains("class 1") && text.contains("\nlabels: run, sit\n"), "{text}");
    Ok(())
}

#[test]
fn errors_name_file_and_line() -> Result<()> {
    let rows = [story("a", "b"), json!({"instruction": 3, "output": "c"})];
    let (folder, recipe) = recipe(&rows, "")?;
    let error = failure(["preview", &recipe])?;
    let error = error.replace(&folder.path().display().to_string(), "DIR");
    insta::assert_snapshot!(error, @"1: error: DIR/rows.jsonl:2 (row 1): field `instruction` is the number `3`; it must be a text");
    let error = failure(["preview", &recipe, "cutof_len=3"])?;
    insta::assert_snapshot!(error, @"1: error: command line: unknown key `cutof_len`; did you mean `cutoff_len`?");
    Ok(())
}
