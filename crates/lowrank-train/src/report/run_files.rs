//! `train_results.json`, `eval_results.json`, `predict_results.json` and their union
//! `all_results.json`, as transformers' `Trainer.save_metrics` writes them: sorted, four spaces.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indexmap::IndexMap;
use serde::Serialize as _;

use super::ReportError;
use crate::durable::{DurableFs, write_replace};

/// The union of all results.
pub const ALL_RESULTS: &str = "all_results.json";

/// Values by name; what isn't a finite number is `null`.
type Results = BTreeMap<String, Option<f64>>;

/// Writes `<split>_results.json` to `output_dir` (`split` is `train`, `eval` or `predict`) and
/// adds the values to `all_results.json`. Returns the path of the first.
///
/// # Errors
/// [`ReportError::Io`], or [`ReportError::Json`] if there is an `all_results.json` that can't be
/// added to; the first file is written nevertheless.
pub fn save_metrics(
    fs: &dyn DurableFs,
    output_dir: &Path,
    split: &str,
    metrics: &IndexMap<String, f64>,
) -> Result<PathBuf, ReportError> {
    let new: Results = metrics
        .iter()
        .map(|(name, value)| (name.clone(), Some(*value).filter(|value| value.is_finite())))
        .collect();
    let path = output_dir.join(format!("{split}_results.json"));
    write_results(fs, &path, &new)?;
    let all_path = output_dir.join(ALL_RESULTS);
    let mut all = read_results(fs, &all_path)?;
    all.extend(new);
    write_results(fs, &all_path, &all)?;
    Ok(path)
}

/// How fast something went, named and rounded as transformers' `speed_metrics` does it:
/// `<split>_runtime` and, for each count that is given, `<split>_samples_per_second` and so on.
pub fn speed_metrics(
    split: &str,
    runtime: Duration,
    num_samples: Option<f64>,
    num_steps: Option<f64>,
) -> IndexMap<String, f64> {
    let seconds = runtime.as_secs_f64();
    let mut metrics = IndexMap::from([(format!("{split}_runtime"), round(seconds, 4))]);
    if seconds > 0.0 {
        for (what, count) in [("samples", num_samples), ("steps", num_steps)] {
            if let Some(count) = count {
                let rate = round(count / seconds, 3);
                metrics.insert(format!("{split}_{what}_per_second"), rate);
            }
        }
    }
    metrics
}

fn round(value: f64, places: usize) -> f64 {
    format!("{value:.places$}").parse().unwrap_or(value)
}

fn read_results(fs: &dyn DurableFs, path: &Path) -> Result<Results, ReportError> {
    if !fs.exists(path)? {
        return Ok(Results::new());
    }
    serde_json::from_slice(&fs.read(path)?).map_err(json_error(path))
}

fn write_results(fs: &dyn DurableFs, path: &Path, results: &Results) -> Result<(), ReportError> {
    let mut bytes = Vec::new();
    let four_spaces = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, four_spaces);
    results.serialize(&mut serializer).map_err(json_error(path))?;
    bytes.push(b'\n');
    Ok(write_replace(fs, path, &bytes)?)
}

fn json_error(path: &Path) -> impl FnOnce(serde_json::Error) -> ReportError {
    move |reason| ReportError::Json { path: path.to_owned(), reason }
}
