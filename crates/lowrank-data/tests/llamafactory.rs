//! Rows with a named template become the ids and labels that LLaMA-Factory 0.9.5 makes of them.
//! The references are in `shared/oracle/data`; where that folder is absent the test says so.
//!
//! The references were made in one process, case after case, and the text that the case `system`
//! of the first source sets as default stayed in the template. So all sources but `alpaca` were
//! encoded with that default, whatever the options of their cases say.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_data::{DataOptions, Dataset, DateTime, Encoder, Labels, Tokenizer};
use serde_json::Value;

const LEFT_BEHIND: &str = "You are a careful assistant.";

fn folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracle/data");
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: {} isn't there", folder.display());
    None
}

fn options(folder: &Path, template: &str, source: &str, row: &Value) -> DataOptions {
    let given = &row["options"];
    let flag = |key: &str| given[key].as_bool().unwrap_or(false);
    let default_system = given["default_system"].as_str().map(str::to_owned);
    DataOptions {
        dataset_dir: folder.join("rows").join(source),
        dataset: vec!["rows".to_owned()],
        template: Some(template.to_owned()),
        cutoff_len: given["cutoff_len"].as_u64().map_or(2048, |n| usize::try_from(n).unwrap()),
        train_on_prompt: flag("train_on_prompt"),
        mask_history: flag("mask_history"),
        default_system: default_system
            .or_else(|| (source != "alpaca").then(|| LEFT_BEHIND.to_owned())),
        // The day on which the references were made; llama3 writes it into the prompt.
        now: Some(DateTime::from_unix(1_795_478_400)),
        ..DataOptions::default()
    }
}

#[test]
fn ids_and_labels_equal_llamafactory() {
    let Some(folder) = folder() else { return };
    let tokenizer = Tokenizer::open(folder.join("tokenizer")).unwrap();
    let mut cases = 0;
    let mut files: Vec<_> =
        std::fs::read_dir(folder.join("templates")).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for file in files {
        let template = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let mut groups: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let key = ["source", "case"].map(|k| row[k].as_str().unwrap().to_owned());
            groups.entry(key.into()).or_default().push(row);
        }
        // Copying a tokenizer is what takes time here, so cases with equal options share one.
        let mut encoders: BTreeMap<String, Encoder> = BTreeMap::new();
        for ((source, case), rows) in groups {
            let options = options(&folder, &template, &source, &rows[0]);
            let set = Dataset::open(&options).unwrap();
            let choices = DataOptions { dataset_dir: PathBuf::new(), ..options };
            let encoder = encoders
                .entry(format!("{choices:?}"))
                .or_insert_with(|| Encoder::new(tokenizer.clone(), choices).unwrap());
            assert_eq!(set.samples.len(), rows.len());
            for (i, (sample, row)) in set.samples.iter().zip(&rows).enumerate() {
                let place = format!("{template} {source} {case:?} row {i}");
                let example = encoder.sft(sample).unwrap_or_else(|e| panic!("{place}: {e}"));
                let ids: Vec<i64> = example.input_ids.iter().map(|n| i64::from(*n)).collect();
                let Labels::Tokens(labels) = &example.labels else { panic!("{place}") };
                let labels: Vec<i64> = labels.iter().map(|n| i64::from(*n)).collect();
                assert_eq!(serde_json::json!(ids), row["input_ids"], "{place}");
                assert_eq!(serde_json::json!(labels), row["labels"], "{place}");
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 1692);
}
