//! Data sets by name, read, mixed and split. Reference: LLaMA-Factory 0.9.5 `data/loader.py`: each
//! set is read, sampled (`num_samples`), limited (`max_samples`) and converted; then they are mixed
//! and the evaluation part is split off.

use crate::dataset_info::{DatasetEntry, find};
use crate::error::{DataError, Result, RowProblem, RowRef, list};
use crate::files::{ReadOptions, Rows, read};
use crate::formats::{Formatting, Sample};
use crate::mix::mix;
use crate::options::DataOptions;
use crate::order::{pick, split};
use crate::record::Record;

/// Samples of one or more data sets, and the rows that were left out.
#[derive(Debug, Default)]
pub struct Dataset {
    /// The samples; their index is their stable id.
    pub samples: Vec<Sample>,
    /// Rows that couldn't be used; empty unless `skip_bad_rows` is set.
    pub skipped: Vec<(RowRef, RowProblem)>,
    /// The label names that the data sets themselves state.
    pub labels: Option<Vec<String>>,
}

impl Dataset {
    /// Reads the data sets that `options.dataset` names.
    /// # Errors
    /// A data set that can't be found or read, a bad row (unless `skip_bad_rows`), or no row left.
    pub fn open(options: &DataOptions) -> Result<Self> {
        options.check()?;
        let mut sets = Vec::with_capacity(options.dataset.len());
        let mut all = Self::default();
        for name in &options.dataset {
            let entry = find(options, name)?;
            let set = Self::load(entry, options)?;
            all.skipped.extend(set.skipped);
            all.labels = all.labels.or(set.labels);
            sets.push(set.samples);
        }
        all.samples = mix(sets, options);
        Ok(all)
    }

    /// Reads one data set.
    /// # Errors
    /// As [`Dataset::open`].
    pub fn load(mut entry: DatasetEntry, options: &DataOptions) -> Result<Self> {
        // With `num_samples` any row may be picked; else reading can stop early.
        let limit = if entry.num_samples.is_some() { None } else { options.max_samples };
        let rows = read(&entry.path, ReadOptions { limit, skip_bad_rows: options.skip_bad_rows })?;
        let Rows { mut records, bad } = rows;
        let formatting = resolve(&mut entry, &records)?;
        check_columns(&entry, formatting, &records)?;
        if let Some(count) = entry.num_samples {
            let picked = pick(records.len(), count, options.seed);
            records = picked.into_iter().filter_map(|i| records.get(i).cloned()).collect();
        }
        records.truncate(options.max_samples.unwrap_or(usize::MAX));
        let mut set = Self { samples: Vec::new(), skipped: bad, labels: entry.labels.clone() };
        let read = records.len();
        for record in &records {
            match formatting.convert(record, &entry) {
                Ok(sample) => set.samples.push(sample),
                Err(problem) if options.skip_bad_rows => {
                    set.skipped.push((record.at.clone(), problem));
                }
                Err(problem) => return Err(problem.at(&record.at)),
            }
        }
        if set.samples.is_empty() {
            let first = set.skipped.first().map(|(at, problem)| format!("{at}: {problem}"));
            return Err(DataError::NoRows { dataset: entry.name, read, first });
        }
        Ok(set)
    }

    /// Splits off `val_size` for evaluation: (training, evaluation) samples, both in the order
    /// of the seed.
    /// # Errors
    /// A `val_size` that leaves nothing to train on.
    pub fn split(self, options: &DataOptions) -> Result<(Vec<Sample>, Vec<Sample>)> {
        let (train, held_out) = split(self.samples.len(), options.val_size, options.seed)?;
        let mut samples: Vec<_> = self.samples.into_iter().map(Some).collect();
        let mut take = |ids: Vec<usize>| {
            ids.into_iter().filter_map(|i| samples.get_mut(i).and_then(Option::take)).collect()
        };
        Ok((take(train), take(held_out)))
    }
}

/// The format of the entry; for a bare file, what its first row shows.
fn resolve(entry: &mut DatasetEntry, records: &[Record]) -> Result<Formatting> {
    if let Some(formatting) = entry.formatting {
        return Ok(formatting);
    }
    let Some(first) = records.first() else {
        return Err(DataError::NoRows { dataset: entry.name.clone(), read: 0, first: None });
    };
    let (formatting, columns) = Formatting::detect(first).map_err(|p| p.at(&first.at))?;
    entry.columns = columns;
    Ok(formatting)
}

/// Every column that the entry names, and every one that the format can't do without, must occur
/// in some row: a misspelt name must not pass for an empty column.
fn check_columns(entry: &DatasetEntry, formatting: Formatting, records: &[Record]) -> Result<()> {
    let Some(first) = records.first() else { return Ok(()) };
    for &role in formatting.required_columns().iter().chain(entry.columns.stated()) {
        let column = crate::formats::column(entry, role);
        if !records.iter().any(|r| r.fields.contains_key(column)) {
            return Err(DataError::MissingColumn {
                path: entry.path.clone(),
                column: column.to_owned(),
                role,
                found: list(first.fields.keys().map(String::as_str)),
            });
        }
    }
    Ok(())
}
