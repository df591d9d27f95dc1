//! `lowrank bench`: what this machine does with one model. It times the matrix products of the
//! model's own layers, copying memory, one-token decoding and reading a prompt; training is timed
//! through `lowrank train`.

mod bandwidth;
mod decoding;
mod products;

use std::{path::PathBuf, time::Instant};

use candle_core::DType;
use lowrank_models::{Model, OpenOptions, PeftModel};
use serde::Serialize;

use crate::{model_source::Dtype, progress::peak_resident, ui::Ui};
use bandwidth::Bandwidth;
use decoding::{Decoding, Prompt};
use products::Products;

/// Times matrix products, memory, decoding and prompts of a model on this machine
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// Folder with config.json and *.safetensors; random weights will do
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Convert the weights when they are loaded; by default they keep their dtype
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// What to time; by default everything
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Rows of the matrix products' left side
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = positive)]
    rows: usize,
    /// How often each part is timed, after one time that doesn't count
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = positive)]
    passes: usize,
    /// Tokens of the prompt that is read at once
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = positive)]
    prompt_tokens: usize,
    /// Tokens that are decoded one by one, behind a prompt of 16
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = two_or_more)]
    new_tokens: usize,
    /// Print one JSON object, with every single time
    #[arg(long)]
    json: bool,
}

/// What can be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Every linear layer, forward and input gradient
    Products,
    /// Copying and reading memory
    Memory,
    /// One token after another
    Decode,
    /// A prompt, up to the first token
    Prompt,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    model: PathBuf,
    dtype: &'static str,
    threads: usize,
    load_seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    products: Option<Products>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Bandwidth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Decoding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Prompt>,
    peak_resident_bytes: Option<u64>,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let dtype = self.dtype.map(DType::from);
        let model = Model::open(&self.model, &OpenOptions { dtype, ..OpenOptions::default() })?;
        let load_seconds = begun.elapsed().as_secs_f64();
        let model = PeftModel::new(model);
        let products = self.when(Part::Products, || self.products(&model))?;
        let memory = self.when(Part::Memory, || Ok(Bandwidth::measure(self.passes)))?;
        let decode =
            self.when(Part::Decode, || Decoding::measure(&model, self.new_tokens, self.passes))?;
        let prompt =
            self.when(Part::Prompt, || Prompt::measure(&model, self.prompt_tokens, self.passes))?;
        let report = Report {
            model: self.model,
            dtype: model.model().network().table().weight().weight().dtype().as_str(),
            threads: rayon::current_num_threads(),
            load_seconds,
            products,
            memory,
            decode,
            prompt,
            peak_resident_bytes: peak_resident(),
        };
        if self.json {
            return Ok(Ui::new().result(serde_json::to_string_pretty(&report)?)?);
        }
        report.lines().iter().try_for_each(|line| Ok(Ui::new().result(line)?))
    }

    fn when<R>(
        &self,
        part: Part,
        measure: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<Option<R>> {
        let wanted = self.only.is_empty() || self.only.contains(&part);
        wanted.then(measure).transpose()
    }

    fn products(&self, model: &PeftModel) -> anyhow::Result<Products> {
        Products::measure(model.model(), self.rows, self.passes)
    }
}

impl Report {
    /// For people.
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{} ({}), {} threads, opened in {:.3} s",
            self.model.display(),
            self.dtype,
            self.threads,
            self.load_seconds
        )];
        lines.extend(self.products.iter().flat_map(Products::lines));
        lines.extend(self.memory.iter().map(Bandwidth::line));
        lines.extend(self.decode.iter().map(Decoding::line));
        lines.extend(self.prompt.iter().map(Prompt::line));
        lines
    }
}

/// The middle one of some times; with an even number, the lower of the two.
fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

fn at_least(least: usize, text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| *n >= least);
    number.ok_or_else(|| format!("it must be a whole number from {least} on"))
}

fn positive(text: &str) -> Result<usize, String> {
    at_least(1, text)
}

fn two_or_more(text: &str) -> Result<usize, String> {
    at_least(2, text)
}

#[cfg(test)]
mod tests {
    use super::{median, two_or_more};

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn one_new_token_has_no_time_between_tokens() {
        assert_eq!(two_or_more("2"), Ok(2));
        assert!(two_or_more("1").is_err());
    }
}
