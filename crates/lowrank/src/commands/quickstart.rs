//! `lowrank quickstart`: the whole road on a model and a text that the program carries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use lowrank_data::Tokenizer;
use lowrank_models::{GenerateOptions, Model, OpenOptions, PeftModel, generate};
use lowrank_train::recipe::Recipe;

use super::{merge::Merge, train::train};
use crate::ui::Ui;

/// Trains, samples, saves and merges on built-in data, in a minute on two cores
#[derive(Debug, clap::Args)]
pub(crate) struct Quickstart {
    /// Folder for model, data, recipe and results; must not exist yet
    #[arg(long, default_value = "lowrank-quickstart")]
    dir: PathBuf,
}

/// The files of the model and the text, as they are unpacked.
const FILES: [(&str, &[u8]); 9] = [
    ("model/config.json", include_bytes!("../../../../assets/stories260K/config.json")),
    (
        "model/generation_config.json",
        include_bytes!("../../../../assets/stories260K/generation_config.json"),
    ),
    ("model/model.safetensors", include_bytes!("../../../../assets/stories260K/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("../../../../assets/stories260K/tokenizer.json")),
    (
        "model/tokenizer_config.json",
        include_bytes!("../../../../assets/stories260K/tokenizer_config.json"),
    ),
    ("model/LICENSE.txt", include_bytes!("../../../../assets/stories260K/LICENSE.txt")),
    ("data/rows.jsonl", include_bytes!("../../../../assets/pride_and_prejudice/rows.jsonl")),
    ("data/NOTICE.txt", include_bytes!("../../../../assets/pride_and_prejudice/NOTICE.txt")),
    ("data/dataset_info.json", include_bytes!("../../../../assets/quickstart/dataset_info.json")),
];

const RECIPE: &str = include_str!("../../../../assets/quickstart/recipe.yaml");

/// What both samples go on from.
const PROMPT: &str = "It was a cold morning, and";
const SAMPLE_TOKENS: usize = 60;

impl Quickstart {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        if self.dir.exists() {
            bail!(
                "`{}` exists already; remove it or name another with `--dir`",
                self.dir.display()
            );
        }
        for (name, bytes) in FILES {
            write(&self.dir.join(name), bytes)?;
        }
        let dir = self.dir.display().to_string();
        let recipe = self.dir.join("recipe.yaml");
        write(&recipe, RECIPE.replace("DIR", &dir).as_bytes())?;
        ui.status(format_args!(
            "a 260K-parameter Llama that tells children's stories learns the tone of"
        ));
        ui.status(format_args!("\"Pride and Prejudice\"; everything lies in {dir}/\n"));

        let model_dir = self.dir.join("model");
        let base = PeftModel::new(Model::open(&model_dir, &OpenOptions::default())?);
        ui.status(format_args!("before: {}\n", sample(&base)?));

        let plan = Recipe::read(&recipe, &[])?.resolve()?;
        let summary = train(&plan)?;
        if summary.interrupted {
            bail!("interrupted; go on with `lowrank train {}`", recipe.display());
        }

        let adapter = plan.output.output_dir.clone();
        let mut tuned = PeftModel::new(Model::open(&model_dir, &OpenOptions::default())?);
        tuned.load_adapter("default", &adapter)?;
        tuned.set_adapter(&["default"])?;
        ui.status(format_args!("\nafter: {}\n", sample(&tuned)?));

        let merged_dir = self.dir.join("merged");
        Merge::of(model_dir, adapter.clone(), merged_dir.clone()).run()?;
        ui.status(format_args!("adapter  {}", adapter.display()));
        ui.status(format_args!("merged   {}", merged_dir.display()));
        ui.status(format_args!(
            "curve    {}\n\ntry      lowrank generate --model {} --prompt \"{PROMPT}\"",
            adapter.join("training_loss.png").display(),
            merged_dir.display()
        ));
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

fn prompt_ids(model: &PeftModel) -> anyhow::Result<Vec<u32>> {
    let tokenizer = Tokenizer::open(&model.model().folder)?;
    let encoding = tokenizer.encoding(PROMPT, None, true).map_err(|p| anyhow::anyhow!("{p}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// The greedy continuation of the prompt.
fn sample(model: &PeftModel) -> anyhow::Result<String> {
    let prompt = prompt_ids(model)?;
    let options = GenerateOptions { max_new_tokens: SAMPLE_TOKENS, ..GenerateOptions::default() };
    let new = generate(
        model.model(),
        &model.inference(),
        std::slice::from_ref(&prompt),
        &options,
        |_, _| true,
    )?;
    let ids = [prompt, new.concat()].concat();
    Ok(Tokenizer::open(&model.model().folder)?.decode(&ids, true)?.trim().to_owned())
}
