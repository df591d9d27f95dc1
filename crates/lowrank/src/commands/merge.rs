//! `lowrank merge`: makes one ordinary model folder of a base and its adapters.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use candle_core::DType;
use lowrank_models::{
    Family, Input, Model, OpenOptions, PeftModel, SaveOptions, Saved, Shard, Task,
};
use lowrank_peft::Pass;
use lowrank_train::{
    durable::{DurableFs, RealFs, create_dirs, write_synced},
    recipe::{Recipe, plan::Device},
};

use crate::{
    model_source::{Dtype, ModelSource},
    ui::Ui,
};

/// Merges adapters into their base: an ordinary model folder for transformers, llama.cpp, …
///
/// Takes either flags or a LLaMA-Factory recipe for `llamafactory-cli export`. Tensors keep the
/// base's dtype unless --dtype is given; the largest difference that rounding to it makes in the
/// logits is said at the end. Several adapters are merged in their order.
#[derive(Debug, clap::Args)]
pub(crate) struct Merge {
    /// YAML or JSON recipe
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    recipe: Option<PathBuf>,
    /// Settings that replace the recipe's, `key=value`
    #[arg(requires = "recipe")]
    overrides: Vec<String>,
    /// Folder of the base model; or an adapter folder that names its base
    #[arg(long, value_name = "DIR", requires = "out")]
    model: Option<PathBuf>,
    /// PEFT adapter folder; may be given several times
    #[arg(long = "adapter", value_name = "DIR", requires = "model")]
    adapters: Vec<PathBuf>,
    /// Where the merged model goes; must not exist yet, or be empty
    #[arg(long, value_name = "DIR", requires = "model")]
    out: Option<PathBuf>,
    /// Dtype of the merged model; by default that of the base
    #[arg(long, value_enum)]
    dtype: Option<Dtype>,
    /// Where the sums are made: cpu, cuda (the first NVIDIA GPU) or cuda:N; recipes say `device`
    #[arg(long, value_name = "DEVICE", requires = "model")]
    device: Option<Device>,
    /// Most bytes of one weight file, e.g. 5GB or 500MB
    #[arg(long, value_parser = size, value_name = "SIZE")]
    max_shard_size: Option<u64>,
}

/// Files of a model folder that go along with the weights: those of the tokenizer, and settings of
/// generation. Folders are taken whole.
const COMPANIONS: [&str; 16] = [
    "added_tokens.json",
    "additional_chat_templates",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

impl Merge {
    /// The merge of one adapter, with nothing else asked for.
    pub(crate) fn of(model: PathBuf, adapter: PathBuf, out: PathBuf) -> Self {
        Self {
            recipe: None,
            overrides: Vec::new(),
            model: Some(model),
            adapters: vec![adapter],
            out: Some(out),
            dtype: None,
            device: None,
            max_shard_size: None,
        }
    }

    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        let (source, out, options) = self.what(ui)?;
        ensure!(!source.adapters.is_empty(), "there is no adapter to merge; give --adapter DIR");
        check_free(&out)?;
        let source = match options.dtype {
            // Merged in f32 and rounded once, when it is written.
            Some(_) => source.in_dtype(Some(DType::F32)),
            None => source,
        };
        let task = source.default_task()?;
        let model = source.open(task, ui)?;
        let probe = Probe::of(&model)?;
        let before = probe.logits(model.model(), &model.inference())?;
        let base = model.model().folder.display().to_string();
        let merged = model.merge_and_unload()?;
        let written = Folder::begin(&out)?;
        let (tensors, bytes) = written.fill(&merged, &source, &options)?;
        let again = OpenOptions { task: Some(task), ..OpenOptions::default() };
        let reread = Model::open(&written.temporary, &again)?;
        let after = probe.logits(&reread, &Pass::inference([].into()))?;
        let dtype = reread.modules.tensors().next().map(|t| t.saved_dtype().as_str());
        drop(reread);
        written.finish()?;
        ui.status(format_args!(
            "merged {} into {base}: {tensors} tensors, {bytes} bytes, {}",
            source.adapters.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
            dtype.unwrap_or("no tensors"),
        ));
        ui.status(format_args!(
            "largest difference of a logit to the unmerged adapter: {:.3e} (logits up to {:.3e})",
            largest_difference(&before, &after),
            before.iter().fold(0.0f32, |most, v| most.max(v.abs()))
        ));
        Ok(ui.result(out.display())?)
    }

    fn what(&self, ui: Ui) -> anyhow::Result<(ModelSource, PathBuf, SaveOptions)> {
        let dtype = self.dtype.map(DType::from);
        let mut options = SaveOptions { dtype, ..SaveOptions::default() };
        let (source, out) = match (&self.recipe, &self.model, &self.out) {
            (Some(recipe), ..) => {
                let plan = Recipe::read(recipe, &self.overrides)?.resolve_export()?;
                plan.notices.iter().for_each(|notice| ui.status(format_args!("note: {notice}")));
                options.max_shard_size = plan.shard_bytes;
                let source = ModelSource::of_plan(&plan.model)?;
                (source, plan.export_dir)
            }
            (None, Some(model), Some(out)) => {
                let source = ModelSource::new(model, &self.adapters, None)?;
                (source.on(self.device.unwrap_or_default()), out.clone())
            }
            _ => bail!("give a recipe, or --model, --adapter and --out"),
        };
        options.max_shard_size = self.max_shard_size.unwrap_or(options.max_shard_size);
        Ok((source, out, options))
    }
}

/// A size with a unit: transformers' `max_shard_size`.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("TB", 1_000_000_000_000),
        ("GIB", 1 << 30),
        ("GB", 1_000_000_000),
        ("MIB", 1 << 20),
        ("MB", 1_000_000),
        ("KIB", 1 << 10),
        ("KB", 1_000),
    ];
    let upper = text.trim().to_ascii_uppercase();
    let with_unit = |(unit, factor): &(&str, u64)| Some((upper.strip_suffix(unit)?, *factor));
    let (digits, factor) = UNITS.iter().find_map(with_unit).unwrap_or((upper.as_str(), 1));
    let number = digits.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    let must_be = "it must be a whole number with a unit (KB, MB, GB, TB, KiB, MiB, GiB)";
    number.filter(|n| *n > 0).ok_or_else(|| must_be.to_owned())
}

fn check_free(out: &Path) -> anyhow::Result<()> {
    if RealFs.exists(out)? {
        let empty = out.is_dir() && RealFs.list(out)?.is_empty();
        ensure!(empty, "`{}` exists already; choose another folder or remove it", out.display());
    }
    Ok(())
}

/// A model folder that takes its name only when it is whole.
struct Folder {
    out: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl Folder {
    fn begin(out: &Path) -> anyhow::Result<Self> {
        let name = out.file_name().with_context(|| {
            format!("`{}` isn't a name for a folder; choose another one", out.display())
        })?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(".tmp");
        let temporary = out.with_file_name(temporary);
        RealFs.remove(&temporary)?;
        create_dirs(&RealFs, &temporary)?;
        Ok(Self { out: out.to_owned(), temporary, finished: false })
    }

    /// Writes all files; returns the number of tensors and of bytes of weights.
    fn fill(
        &self,
        model: &Model,
        source: &ModelSource,
        options: &SaveOptions,
    ) -> anyhow::Result<(usize, u64)> {
        let saved: Saved<'_> = model.saved(options)?;
        let mut bytes = 0;
        for shard in saved.shards() {
            bytes += self.write_shard(shard)?;
        }
        for (name, text) in saved.texts()? {
            write_synced(&RealFs, &self.temporary.join(name), text.as_bytes())?;
        }
        let tokenizer = source.tokenizer_folder();
        for name in COMPANIONS {
            let own = source.folder.join(name);
            let from = if own.exists() { own } else { tokenizer.join(name) };
            copy(&from, &self.temporary.join(name))?;
        }
        Ok((saved.tensors(), bytes))
    }

    fn write_shard(&self, shard: &Shard) -> anyhow::Result<u64> {
        let mut file = RealFs.create(&self.temporary.join(&shard.file_name))?;
        let mut written = 0;
        shard.write::<anyhow::Error>(&mut |bytes| {
            written += bytes.len() as u64;
            Ok(file.write(bytes)?)
        })?;
        file.sync()?;
        Ok(written)
    }

    fn finish(mut self) -> anyhow::Result<()> {
        RealFs.sync_dir(&self.temporary)?;
        match std::fs::remove_dir(&self.out) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("`{}`", self.out.display()));
            }
            _ => {} // there was an empty folder, or nothing
        }
        RealFs.rename(&self.temporary, &self.out)?;
        self.finished = true;
        let parent = self.out.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(RealFs.sync_dir(parent.unwrap_or(Path::new(".")))?)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.finished {
            // The error that led here is the one to report.
            let _ = RealFs.remove(&self.temporary);
        }
    }
}

/// Copies a file or a folder of files, if it is there.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        create_dirs(&RealFs, to)?;
        for name in RealFs.list(from)? {
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(RealFs.sync_dir(to)?);
    }
    if from.is_file() {
        write_synced(&RealFs, to, &RealFs.read(from)?)?;
    }
    Ok(())
}

/// A short input, the same for every model with this vocabulary.
struct Probe {
    input: Input,
    is_pair: bool,
}

impl Probe {
    fn of(model: &PeftModel) -> anyhow::Result<Self> {
        const TOKENS: usize = 16;
        let config = &model.model().config;
        let rows = model.model().network().table().weight().weight().dims().first().copied();
        let rows = rows.unwrap_or(1).max(1);
        let table = ["max_position_embeddings", "n_positions"];
        let most = table.iter().find_map(|key| config.size_or_none(key).ok().flatten());
        let tokens = TOKENS.min(most.unwrap_or(TOKENS));
        let mut ids: Vec<u32> = (0..tokens).map(|i| ((i * 7919 + 3) % rows) as u32).collect();
        // BART's classifier reads this token.
        let end = config.token_id("eos_token_id").ok().flatten();
        if let (Some(last), Some(end)) = (ids.last_mut(), end.filter(|end| (*end as usize) < rows))
        {
            *last = end;
        }
        let has_target = matches!(model.model().task, Task::Seq2SeqLm | Task::FeatureExtraction);
        let is_pair = model.model().family == Family::EncoderDecoder && has_target;
        Ok(Self { input: Input::packed(&[ids]), is_pair })
    }

    fn logits(&self, model: &Model, pass: &Pass) -> anyhow::Result<Vec<f32>> {
        let input = &self.input;
        let logits = match self.is_pair {
            true => model.target_logits((input, pass), (input, pass), None)?,
            false => model.logits(input, None, pass)?,
        };
        Ok(logits.data().flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}
