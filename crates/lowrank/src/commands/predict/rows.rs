//! The rows of a file as samples of a task, without the labels that training would need.

use std::path::Path;

use anyhow::bail;
use lowrank_data::{
    DataOptions, Dataset, DatasetEntry, Formatting, LabelledText, Names, ReadOptions, Sample,
    read_files,
};
use lowrank_models::Task;

use super::Predict;

impl Predict {
    /// The rows in their order.
    pub(super) fn samples(&self, task: Task) -> anyhow::Result<Vec<Sample>> {
        let samples = match (&self.data, &self.dataset) {
            (Some(file), _) => of_file(file, formatting(task))?,
            (None, Some(name)) => {
                let options = DataOptions {
                    dataset_dir: self.dataset_dir.clone(),
                    dataset: vec![name.clone()],
                    ..DataOptions::default()
                };
                Dataset::open(&options)?.samples
            }
            (None, None) => bail!("give --data FILE or --dataset NAME"),
        };
        Ok(samples.into_iter().map(without_label).collect())
    }
}

fn formatting(task: Task) -> Formatting {
    match task {
        Task::TokenCls => Formatting::Tagging,
        Task::QuestionAns => Formatting::QuestionAnswering,
        _ => Formatting::Classification,
    }
}

/// Rows by the columns of their format; those that the first row shows, where it shows that format.
fn of_file(file: &Path, formatting: Formatting) -> anyhow::Result<Vec<Sample>> {
    let rows = read_files(file, ReadOptions::default())?;
    let mut entry = DatasetEntry::from_path(file);
    let shown = rows.records.first().and_then(|first| Formatting::detect(first).ok());
    entry.columns = match shown {
        Some((found, columns)) if found == formatting => columns,
        _ => Names::default(),
    };
    let convert = |record| formatting.convert(record, &entry).map_err(|p| p.at(&record.at));
    Ok(rows.records.iter().map(convert).collect::<Result<_, _>>()?)
}

/// Labels aren't needed, so that what is wrong with them doesn't matter.
fn without_label(sample: Sample) -> Sample {
    match sample {
        Sample::Classification(row) => Sample::Classification(LabelledText { label: None, ..row }),
        Sample::Text(row) => Sample::Classification(LabelledText {
            at: row.at,
            text: row.text,
            text_pair: None,
            label: None,
            boxes: row.boxes,
        }),
        other => other,
    }
}
