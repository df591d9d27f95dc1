//! `lowrank generate`: continues one prompt.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use candle_core::{Device, Tensor};
use lowrank_data::{DataOptions, ImageProcessor, Tokenizer};
use lowrank_models::{
    Family, GenerateOptions, ImageTokens, Input, Model, PeftModel, Task, generation_start,
};
use serde_json::json;

use crate::{
    generation::{Continuation, Prompter, SamplingArgs, TemplateArgs, continue_prompt, stop_ids},
    model_source::{ModelArgs, ModelSource},
    ui::Ui,
};

/// Continues a prompt; without --json the new text is printed as it comes
///
/// A prompt is a user's turn if the model has a chat template or one is named with --template;
/// otherwise, and with --raw, it is plain text behind the special tokens that the tokenizer puts
/// before texts (`<s>`). Generation stops at the tokenizer's `eos_token` and the `eos_token_id` of
/// generation_config.json and config.json. Without sampling flags the likeliest token is taken that
/// generation_config.json allows, by its `repetition_penalty`, `no_repeat_ngram_size`,
/// `bad_words_ids`, `suppress_tokens`, `min_length` and their likes.
#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["prompt_ids", "image"])]
    prompt: Option<String>,
    /// A picture (JPEG, PNG, WebP) to describe, or to answer the prompt by; for models that see
    ///
    /// It is prepared as the model folder's preprocessor_config.json says, and its tokens stand
    /// before the prompt's. Token ids of --prompt-ids hold them themselves.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Token ids to continue, e.g. 1,2,3; no token is added to them
    #[arg(
        long, value_name = "IDS", value_delimiter = ',', num_args = 1.., conflicts_with_all = ["prompt", "raw", "template", "system"]
    )]
    prompt_ids: Vec<u32>,
    /// Take the prompt as plain text even if the model has a chat template
    #[arg(long, conflicts_with_all = ["template"])]
    raw: bool,
    #[command(flatten)]
    template: TemplateArgs,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Print one JSON object: `text` and `token_ids` of prompt and continuation, `completion`
    ///
    /// Of an encoder-decoder `text` and `token_ids` are the decoder's, as transformers returns them.
    #[arg(long)]
    json: bool,
}

impl Generate {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        let source = self.model.source()?;
        let model = open_for_generation(&source, ui)?;
        let family = model.model().family;
        let prompter = self.prompter(&source, family, ui)?;
        let mut prompt = match (&self.prompt, &prompter) {
            (Some(text), Some(prompter)) => {
                prompter.text(text, self.raw || self.image.is_some())?
            }
            _ => self.prompt_ids.clone(),
        };
        if self.image.is_some() && self.prompt_ids.is_empty() {
            prompt = behind_image(model.model(), prompt)?;
        }
        let images = self.image.as_deref().map(|path| picture(model.model(), path)).transpose()?;
        let input = Input { images, ..Input::packed(&[prompt.as_slice()]) };
        let tokenizer = prompter.as_ref().map(Prompter::tokenizer);
        let asked = GenerateOptions::asked(model.model())?;
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            eos_token_ids: stop_ids(&model, tokenizer)?,
            sampling: self.sampling.over(asked.sampling),
            ..asked
        };
        if self.json {
            let new = continue_prompt(&model, tokenizer, &input, &options, |_| Ok(()))?;
            return print_json(&model, tokenizer, &prompt, &new, ui);
        }
        ensure!(tokenizer.is_some(), "without a tokenizer there is no text; add --json");
        let stream = |text: &str| Ok(ui.stream(text)?);
        continue_prompt(&model, tokenizer, &input, &options, stream)?;
        Ok(ui.result("")?)
    }

    /// Ids can be continued without a tokenizer.
    fn prompter(
        &self,
        source: &ModelSource,
        family: Family,
        ui: Ui,
    ) -> anyhow::Result<Option<Prompter>> {
        if self.prompt.is_none() && !source.has_tokenizer() {
            return Ok(None);
        }
        let options = DataOptions::from(&self.template);
        Ok(Some(Prompter::new(source.tokenizer()?, family, options, ui)?))
    }
}

/// Opens a model with the head that makes text.
pub(crate) fn open_for_generation(source: &ModelSource, ui: Ui) -> anyhow::Result<PeftModel> {
    let (config, architecture) = source.config()?;
    let task = match architecture.family_of(&config)? {
        Family::Decoder => Task::CausalLm,
        Family::EncoderDecoder => Task::Seq2SeqLm,
        Family::Encoder => {
            let model_type = architecture.model_type;
            let unless = match architecture.tasks.contains(&Task::CausalLm) {
                true => " unless `is_decoder` in their `config.json` is true",
                false => "",
            };
            bail!("`{model_type}` models don't generate text{unless}; `lowrank predict` asks them")
        }
    };
    let Some(adapters_task) = source.adapters_task()? else { return source.open(task, ui) };
    ensure!(
        !matches!(adapters_task, Task::SeqCls | Task::TokenCls | Task::QuestionAns),
        "the adapter is for the task `{}` and doesn't generate text; use `lowrank predict`",
        adapters_task.name()
    );
    // Of a folder with both halves such an adapter changes the decoder alone.
    let of_decoder = architecture.family == Family::EncoderDecoder
        && adapters_task == Task::CausalLm
        && architecture.tasks.contains(&Task::CausalLm);
    source.open(if of_decoder { Task::CausalLm } else { task }, ui)
}

/// The tokens in whose places a picture goes, then those of the prompt; without a prompt the token
/// that begins a text, as transformers has it.
fn behind_image(model: &Model, prompt: Vec<u32>) -> anyhow::Result<Vec<u32>> {
    let Some(image) = ImageTokens::of(&model.config)? else {
        bail!("`{}` models see no pictures", model.architecture.model_type);
    };
    let mut ids = vec![image.id; image.count];
    match prompt.is_empty() {
        false => ids.extend(prompt),
        true => ids.extend(model.text_config()?.token_id("bos_token_id")?),
    }
    Ok(ids)
}

/// A picture as the model reads it, `[1, 3, height, width]`.
fn picture(model: &Model, path: &Path) -> anyhow::Result<Tensor> {
    let picture = ImageProcessor::open(&model.folder)?.read(path)?;
    let shape = (1, 3, picture.height, picture.width);
    Ok(Tensor::from_vec(picture.pixels, shape, &Device::Cpu)?)
}

fn print_json(
    model: &PeftModel,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    new: &Continuation,
    ui: Ui,
) -> anyhow::Result<()> {
    let start = generation_start(model.model())?;
    let before = start.map_or_else(|| prompt.to_vec(), |start| vec![start]);
    let token_ids = [before, new.ids.clone()].concat();
    let text = tokenizer.map(|t| t.decode(&token_ids, true)).transpose()?;
    let completion = tokenizer.map(|_| &new.text);
    let object = json!({"text": text, "completion": completion, "token_ids": token_ids});
    Ok(ui.result(object)?)
}
