//! `lowrank models`: the registry of architectures, as a table, as JSON, and as the docs page.

use std::fmt::{self, Write as _};

use lowrank_data::templates_of;
use lowrank_models::{ARCHITECTURES, Architecture, Modality, Openness, Working};
use lowrank_peft::default_targets::{DefaultTargets, default_target_modules};
use serde_json::{Value, json};

use crate::ui::Ui;

/// Lists the architectures that there are, classified by data, way of working and openness
#[derive(Debug, clap::Args)]
pub(crate) struct Models {
    /// Print one JSON object: `classes`, what each classification tells apart, and `models`
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the page docs/architectures.md
    #[arg(long)]
    markdown: bool,
}

impl Models {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        if self.json {
            return Ok(ui.result(whole())?);
        }
        let text = if self.markdown { page()? } else { table()? };
        Ok(ui.result(text.trim_end())?)
    }
}

/// One of the three ways in which large models are classified.
struct Classification {
    name: &'static str,
    classes: Vec<&'static str>,
    of: fn(&Architecture) -> &'static str,
}

fn classifications() -> [Classification; 3] {
    [
        Classification {
            name: "data",
            classes: Modality::ALL.map(Modality::name).to_vec(),
            of: |architecture| architecture.modality.name(),
        },
        Classification {
            name: "working",
            classes: Working::ALL.map(Working::name).to_vec(),
            of: |architecture| architecture.working().name(),
        },
        Classification {
            name: "openness",
            classes: Openness::ALL.map(Openness::name).to_vec(),
            of: |architecture| architecture.openness.name(),
        },
    ]
}

fn heads(architecture: &Architecture) -> Vec<&'static str> {
    architecture.tasks.iter().map(|task| task.name()).collect()
}

fn other_types(architecture: &Architecture) -> impl Iterator<Item = &'static str> {
    architecture.other_types.iter().map(|other| other.model_type)
}

/// The table and, below it, how many there are of each class and what else a config may
/// call them.
fn table() -> Result<String, fmt::Error> {
    let mut rows = vec![["model_type", "family", "data", "working", "openness", "heads"]];
    let heads: Vec<String> = ARCHITECTURES.iter().map(|a| heads(a).join(", ")).collect();
    for (a, heads) in ARCHITECTURES.iter().zip(&heads) {
        let [data, working, openness] = classifications().map(|c| (c.of)(a));
        rows.push([a.model_type, a.family.name(), data, working, openness, heads]);
    }
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.len()).max();
    let widths: Vec<usize> = (0..5).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for [cells @ .., last] in &rows {
        for (cell, width) in cells.iter().zip(&widths) {
            write!(text, "{cell:width$}  ")?;
        }
        writeln!(text, "{last}")?;
    }
    writeln!(text)?;
    for classification in classifications() {
        let count = |class: &&str| {
            let number = ARCHITECTURES.iter().filter(|a| (classification.of)(a) == *class).count();
            format!("{class} {number}")
        };
        let counts: Vec<String> = classification.classes.iter().map(count).collect();
        writeln!(text, "by {}: {}", classification.name, counts.join(", "))?;
    }
    let others = |a: &Architecture| {
        let of = |other| format!("{other} ({})", a.model_type);
        other_types(a).map(of).collect::<Vec<_>>()
    };
    let others: Vec<String> = ARCHITECTURES.iter().flat_map(others).collect();
    writeln!(text, "other model_types: {}", others.join(", "))?;
    Ok(text)
}

fn targets(architecture: &Architecture) -> Value {
    match default_target_modules(architecture.model_type) {
        Some(DefaultTargets::Names(names)) => json!(names),
        Some(DefaultTargets::Pattern(pattern)) => json!(pattern),
        None => Value::Null,
    }
}

fn whole() -> Value {
    let classes = classifications().map(|c| (c.name.to_owned(), json!(c.classes)));
    let model = |a: &Architecture| {
        let mut model = json!({"model_type": a.model_type});
        model["other_types"] = other_types(a).collect();
        model["family"] = json!(a.family.name());
        for classification in classifications() {
            model[classification.name] = json!((classification.of)(a));
        }
        model["tasks"] = json!(heads(a));
        model["default_targets"] = targets(a);
        model["chat_templates"] = json!(templates_of(a.model_type));
        model["paper"] = json!(a.paper);
        model
    };
    let models: Vec<Value> = ARCHITECTURES.iter().map(model).collect();
    json!({"classes": serde_json::Map::from_iter(classes), "models": models})
}

const INTRODUCTION: &str = "\
# Architectures

Generated by `lowrank models --markdown`; `lowrank models` prints the table, `--json` all of it.

Large models are classified in three ways. *By data*: they read language, images, or several kinds
at once (multimodal). *By way of working*: generative models make new data, discriminative ones tell
data apart, and models of reinforcement learning learn by acting, from rewards; there a generative
model becomes the policy by its objective, without an architecture of its own. *By openness*: the
weights are here, in a folder, or the model is online, behind an API. lowrank opens no network
connection, so that all architectures below are of the first kind.

A *`model_type`* comes first as the registry has it, then as the configs of other folders may spell
it. *Default targets* are what LoRA adapts where a config names no `target_modules`: PEFT's. *Chat
templates* are built-in ones that chat models of the architecture were trained with, for `template:`
in a recipe; without one a model's own template counts.

";

/// docs/architectures.md.
fn page() -> Result<String, fmt::Error> {
    let mut page = INTRODUCTION.to_owned();
    writeln!(
        page,
        "`model_type` | family | data | working | openness | heads | default targets | chat \
         templates | paper\n-|-|-|-|-|-|-|-|-"
    )?;
    for a in ARCHITECTURES {
        let [data, working, openness] = classifications().map(|c| (c.of)(a));
        let targets = match targets(a) {
            Value::Array(names) => quoted(names.iter().filter_map(Value::as_str)),
            Value::String(pattern) => format!("regex `{}`", pattern.replace('|', "\\|")),
            _ => "none; name them".to_owned(),
        };
        let templates = quoted(templates_of(a.model_type).iter().copied());
        let names = quoted(std::iter::once(a.model_type).chain(other_types(a)));
        let (family, heads, paper) = (a.family.name(), heads(a).join(", "), paper(a.paper));
        writeln!(
            page,
            "{names} | {family} | {data} | {working} | {openness} | {heads} | {targets} | \
             {templates} | {paper}"
        )?;
    }
    Ok(page)
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// A number of arXiv as a link; anything else as it is.
fn paper(paper: &str) -> String {
    match paper.strip_prefix("arXiv:") {
        Some(number) => format!("[{paper}](https://arxiv.org/abs/{number})"),
        None => paper.to_owned(),
    }
}
