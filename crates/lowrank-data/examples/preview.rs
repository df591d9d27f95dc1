//! Prints encoded rows as JSON lines: `preview RECIPE --json --all`, where RECIPE has a line
//! `key: JSON` for each key. For comparing with LLaMA-Factory.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use lowrank_data::{DataOptions, Dataset, DateTime, Encoder, Labels, Tokenizer};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(2).ok_or("usage: preview preview RECIPE --json --all")?;
    let recipe = recipe(&std::fs::read_to_string(path)?)?;
    let model = recipe.get("model_name_or_path").and_then(Value::as_str).ok_or("no model")?;
    let options = options(&recipe)?;
    let encoder = Encoder::new(Tokenizer::open(model)?, options.clone())?;
    let mut out = std::io::stdout().lock();
    for sample in &Dataset::open(&options)?.samples {
        let example = encoder.sft(sample).map_err(|p| p.at(sample.at()))?;
        let Labels::Tokens(labels) = &example.labels else { return Err("no labels".into()) };
        writeln!(out, "{}", json!({"input_ids": example.input_ids, "labels": labels}))?;
    }
    Ok(())
}

fn recipe(text: &str) -> Result<Map<String, Value>, Box<dyn std::error::Error>> {
    let mut recipe = Map::new();
    for line in text.lines() {
        let (key, value) = line.split_once(": ").ok_or("a line isn't `key: JSON`")?;
        recipe.insert(key.to_owned(), serde_json::from_str(value)?);
    }
    Ok(recipe)
}

fn options(recipe: &Map<String, Value>) -> Result<DataOptions, Box<dyn std::error::Error>> {
    let text = |key: &str| recipe.get(key).and_then(Value::as_str).map(str::to_owned);
    let flag = |key: &str| recipe.get(key).and_then(Value::as_bool).unwrap_or(false);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let cutoff_len = recipe.get("cutoff_len").and_then(Value::as_u64).unwrap_or(2048);
    Ok(DataOptions {
        dataset_dir: text("dataset_dir").ok_or("no dataset_dir")?.into(),
        dataset: vec![text("dataset").ok_or("no dataset")?],
        template: text("template"),
        cutoff_len: usize::try_from(cutoff_len)?,
        train_on_prompt: flag("train_on_prompt"),
        mask_history: flag("mask_history"),
        default_system: text("default_system"),
        tool_format: text("tool_format"),
        now: Some(DateTime::from_unix(i64::try_from(seconds)?)),
        ..DataOptions::default()
    })
}
