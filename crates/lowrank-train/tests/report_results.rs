//! `*_results.json` as transformers' `save_metrics` and `speed_metrics` make them.

use std::fs;
use std::time::Duration;

use indexmap::IndexMap;
use lowrank_train::durable::RealFs;
use lowrank_train::report::run_files::{save_metrics, speed_metrics};
use serde::Deserialize;

fn metrics<const N: usize>(values: [(&str, f64); N]) -> IndexMap<String, f64> {
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[test]
fn each_split_has_its_file_and_all_are_united() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let train = metrics([("train_loss", 2.25), ("epoch", 3.0), ("train_runtime", 12.5)]);
    save_metrics(&RealFs, folder.path(), "train", &train).unwrap();
    let sorted =
        "{\n    \"epoch\": 3.0,\n    \"train_loss\": 2.25,\n    \"train_runtime\": 12.5\n}\n";
    assert_eq!(read("train_results.json"), sorted);
    assert_eq!(read("all_results.json"), sorted);
    let eval = metrics([("eval_loss", 1.5), ("epoch", 4.0), ("eval_perplexity", f64::INFINITY)]);
    let path = save_metrics(&RealFs, folder.path(), "eval", &eval).unwrap();
    assert_eq!(path, folder.path().join("eval_results.json"));
    assert_eq!(
        read("all_results.json"),
        "{\n    \"epoch\": 4.0,\n    \"eval_loss\": 1.5,\n    \"eval_perplexity\": null,\n    \
         \"train_loss\": 2.25,\n    \"train_runtime\": 12.5\n}\n"
    );
    assert!(!read("eval_results.json").contains("train"));
}

#[test]
fn a_file_that_cannot_be_added_to_is_named_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all_results.json");
    fs::write(&path, "{\"a\": 1,").unwrap();
    let train = metrics([("train_loss", 1.0)]);
    let error = save_metrics(&RealFs, folder.path(), "train", &train).unwrap_err().to_string();
    assert!(error.contains("all_results.json` is not what this program writes"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\": 1,");
    assert!(folder.path().join("train_results.json").exists());
}

#[derive(Deserialize)]
struct Speed {
    split: String,
    runtime: f64,
    num_samples: Option<f64>,
    num_steps: Option<f64>,
    metrics: IndexMap<String, f64>,
}

#[test]
fn speeds_are_those_of_transformers() {
    let cases: Vec<Speed> =
        serde_json::from_str(include_str!("fixtures/report/speed_metrics.json")).unwrap();
    for case in cases {
        let runtime = Duration::from_secs_f64(case.runtime);
        let metrics = speed_metrics(&case.split, runtime, case.num_samples, case.num_steps);
        assert_eq!(metrics, case.metrics);
    }
}
