//! `lowrank preview`: the rows of a recipe as the model will see them.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::PathBuf,
};

use lowrank_data::{DataOptions, Encoder, Example, Labels, Packing, Tokenizer, pack, segments};
use lowrank_models::{Architecture, Config, Family, Task};
use lowrank_train::{
    Rows, data_options,
    objectives::MaskedWords,
    recipe::{
        Recipe,
        plan::{self, MethodPlan, Plan},
    },
    rows,
};
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};

use super::now;
use crate::ui::Ui;

/// Shows a recipe's rows as the model sees them: decoded, with what is trained told apart
///
/// What is trained is green on a terminal and stands between ⟦ and ⟧ elsewhere. Rows are those
/// before packing, in the order of the data set. Of the model folder only the tokenizer is needed.
#[derive(Debug, clap::Args)]
pub(crate) struct Preview {
    /// YAML or JSON recipe
    recipe: PathBuf,
    /// Settings that replace the recipe's: `key=value`, or `--key value` behind `--`
    overrides: Vec<String>,
    /// Print {"input_ids": […], "labels": […]}, a line for each row; -100 marks what isn't trained
    #[arg(long)]
    json: bool,
    /// Show all rows
    #[arg(long, conflicts_with = "rows")]
    all: bool,
    /// Show so many rows
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
}

impl Preview {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        let plan = Recipe::read(&self.recipe, &self.overrides)?.resolve()?;
        plan.notices.iter().for_each(|notice| ui.status(format_args!("note: {notice}")));
        // Rows that are split off for evaluation are shown where they stand.
        let options = DataOptions { val_size: 0.0, ..data_options(&plan, now())? };
        let tokenizer = Tokenizer::open(&plan.model.model_name_or_path)?;
        let task = task_of(&plan)?;
        let own = match task {
            // With the template's own tokens.
            Task::CausalLm => Encoder::new(tokenizer.clone(), options.clone())?.tokenizer().clone(),
            _ => tokenizer.clone(),
        };
        // Words are hidden as in the first epoch.
        let words = MaskedWords::of(&plan, &tokenizer, tokenizer.vocab_size())?;
        let mut rows = rows(&plan, task, &options, tokenizer)?;
        if let Some(words) = words.map(|words| words.in_epoch(0)) {
            for (i, example) in (0..).zip(&mut rows.train) {
                *example = words.hide(i, example);
            }
        }
        let shown = if self.all { rows.train.len() } else { self.rows.min(rows.train.len()) };
        let mut out = ui.output();
        for (i, example) in rows.train.iter().take(shown).enumerate() {
            match self.json {
                true => writeln!(out, "{}", as_json(example))?,
                false => draw(&mut out, (i, example), &own, ui)?,
            }
        }
        if !self.json {
            summary(&mut out, &plan, &options, &rows)?;
        }
        out.flush()?;
        if let Some(first) = rows.skipped.first() {
            let count = rows.skipped.len();
            ui.warning(format_args!("{count} rows can't be used and are left out, first {first}"));
        }
        Ok(())
    }
}

/// The recipe's task; the folder may hold nothing but a tokenizer.
fn task_of(plan: &Plan) -> anyhow::Result<Task> {
    let MethodPlan::Lora(lora) = &plan.method;
    let path = plan.model.model_name_or_path.join("config.json");
    Ok(match lora.task_type {
        _ if matches!(plan.stage, plan::Stage::Pt { .. }) => Task::MaskedLm,
        plan::TaskType::SeqCls => Task::SeqCls,
        plan::TaskType::TokenCls => Task::TokenCls,
        plan::TaskType::QuestionAns => Task::QuestionAns,
        plan::TaskType::Seq2SeqLm => Task::Seq2SeqLm,
        plan::TaskType::CausalLm if path.is_file() => {
            let config = Config::read(&path)?;
            match Architecture::of(&config)?.family_of(&config)? {
                Family::EncoderDecoder => Task::Seq2SeqLm,
                Family::Decoder | Family::Encoder => Task::CausalLm,
            }
        }
        plan::TaskType::CausalLm => Task::CausalLm,
    })
}

fn as_json(example: &Example) -> Value {
    let labels = match &example.labels {
        Labels::None => Value::Null,
        Labels::Tokens(labels) => json!(labels),
        Labels::Target(ids) => json!(ids),
        Labels::Class(class) => json!(class),
        Labels::Classes(flags) => json!(flags),
        Labels::Value(number) => json!(number),
        Labels::Span { start, end } => json!({"start": start, "end": end}),
    };
    json!({"input_ids": example.input_ids, "labels": labels})
}

fn draw(
    out: &mut impl Write,
    (number, example): (usize, &Example),
    tokenizer: &Tokenizer,
    ui: Ui,
) -> anyhow::Result<()> {
    let (tokens, trained) = (example.input_ids.len(), example.targets());
    let cut = match example.cut {
        0 => String::new(),
        cut => format!(", {cut} cut off"),
    };
    let what = match &example.labels {
        Labels::Tokens(_) => format!("{trained} trained"),
        Labels::Target(_) => format!("{trained} tokens to answer"),
        Labels::Span { start, end } => format!("answer in tokens {start} to {end}"),
        Labels::Class(class) => format!("class {class}"),
        Labels::Classes(flags) => format!("classes {flags:?}"),
        Labels::Value(number) => format!("value {number}"),
        Labels::None => "no label".to_owned(),
    };
    writeln!(out, "── row {number}, {}: {tokens} tokens, {what}{cut}", example.source)?;
    for segment in segments(tokenizer, example)? {
        let text = ui.for_output(&segment.text);
        match (segment.trained, ui.colours()) {
            (true, true) => write!(out, "{}", text.green())?,
            (true, false) => write!(out, "⟦{text}⟧")?,
            (false, true) => write!(out, "{}", text.dimmed())?,
            (false, false) => write!(out, "{text}")?,
        }
    }
    if let Labels::Target(ids) = &example.labels {
        let text = tokenizer.decode(ids, false)?;
        let text = ui.for_output(&text);
        match ui.colours() {
            true => write!(out, "\n→ {}", text.green())?,
            false => write!(out, "\n→ ⟦{text}⟧")?,
        }
    }
    Ok(writeln!(out)?)
}

fn summary(
    out: &mut impl Write,
    plan: &Plan,
    options: &DataOptions,
    rows: &Rows,
) -> io::Result<()> {
    let lengths: Vec<usize> = rows.train.iter().map(|e| e.input_ids.len()).collect();
    let tokens: usize = lengths.iter().sum();
    let trained: usize = rows.train.iter().map(Example::targets).sum();
    let cut = rows.train.iter().filter(|e| e.cut > 0).count();
    let cut_tokens: usize = rows.train.iter().map(|e| e.cut).sum();
    let empty = rows.train.iter().filter(|e| e.targets() == 0).count();
    let sources: BTreeSet<_> = rows.train.iter().map(|e| &e.source).collect();
    writeln!(out, "── {} rows, {tokens} tokens", lengths.len())?;
    if sources.len() != lengths.len() {
        writeln!(out, "from {} rows of the data", sources.len())?;
    }
    if rows.train.iter().any(|e| matches!(e.labels, Labels::Tokens(_))) {
        let share = 100.0 * trained as f64 / tokens.max(1) as f64;
        writeln!(out, "trained: {trained} tokens ({share:.1} %)")?;
    }
    if let Some(labels) = &rows.labels {
        writeln!(out, "labels: {}", labels.names.join(", "))?;
    }
    writeln!(out, "cut at {} tokens: {cut} rows ({cut_tokens} tokens)", options.cutoff_len)?;
    writeln!(out, "rows with nothing to train: {empty}")?;
    if options.packing == Packing::On {
        let packed = pack(&lengths, plan.data.sample_len, options.preprocessing_batch_size);
        let room = packed.bins.len() * plan.data.cutoff_len;
        let filled: usize = packed.bins.iter().map(|bin| bin.tokens).sum();
        let share = 100.0 * filled as f64 / room.max(1) as f64;
        writeln!(out, "packed: {} rows, {share:.1} % full", packed.bins.len())?;
    }
    histogram(out, &lengths)
}

/// How long the rows are, in eight ranges.
fn histogram(out: &mut impl Write, lengths: &[usize]) -> io::Result<()> {
    const RANGES: usize = 8;
    const BAR: usize = 40;
    let Some(longest) = lengths.iter().max().copied().filter(|longest| *longest > 0) else {
        return Ok(());
    };
    let step = longest.div_ceil(RANGES);
    let mut counts = [0usize; RANGES];
    for length in lengths {
        if let Some(count) = counts.get_mut(length.saturating_sub(1) / step) {
            *count += 1;
        }
    }
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    let (width, digits) = (longest.to_string().len(), most.to_string().len());
    writeln!(out, "lengths:")?;
    for (i, count) in counts.iter().enumerate().take(longest.div_ceil(step)) {
        let (from, to) = (i * step + 1, ((i + 1) * step).min(longest));
        let bar = "█".repeat((count * BAR).div_ceil(most));
        let line = format!("{from:>width$}–{to:<width$} {count:>digits$} {bar}");
        writeln!(out, "  {}", line.trim_end())?;
    }
    Ok(())
}
