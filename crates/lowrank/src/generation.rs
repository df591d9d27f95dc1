//! Generation as the commands use it: prompts in, text out as it comes.

mod prompter;
mod text_stream;

use anyhow::bail;
use lowrank_data::Tokenizer;
use lowrank_models::{Family, GenerateOptions, Input, PeftModel, Sampling, generate_after};

pub(crate) use prompter::{Prompter, TemplateArgs, of_plan};
pub(crate) use text_stream::TextStream;

/// How the next token is chosen, as flags. What isn't given is the command's own default.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token each time; above, one is drawn, the more freely the higher
    #[arg(long, value_parser = not_negative, value_name = "NUMBER")]
    pub(crate) temperature: Option<f64>,
    /// Draw from so many of the likeliest tokens; 0: from all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_parser = share, value_name = "SHARE")]
    pub(crate) top_p: Option<f64>,
    /// Above 1: tokens that are already there become less likely
    #[arg(long, value_parser = positive, value_name = "NUMBER")]
    pub(crate) repetition_penalty: Option<f64>,
    /// Seed of the draws; the same seed draws the same
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl SamplingArgs {
    /// The flags, and `default` for those that weren't given.
    pub(crate) fn over(&self, default: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            seed: self.seed.unwrap_or(default.seed),
        }
    }
}

fn number(text: &str, fits: fn(f64) -> bool, must_be: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| n.is_finite() && fits(*n));
    number.ok_or_else(|| format!("it must be {must_be}"))
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |n| n >= 0.0, "a number from 0 on")
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0, "a number above 0")
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |n| n > 0.0 && n <= 1.0, "a number above 0, up to 1")
}

/// What came of a prompt.
#[derive(Debug, Clone)]
pub(crate) struct Continuation {
    /// The new tokens.
    pub(crate) ids: Vec<u32>,
    /// Their text; empty without a tokenizer.
    pub(crate) text: String,
}

/// Continues a prompt; `on_text` hears the text as it comes, in whole characters.
pub(crate) fn continue_prompt(
    model: &PeftModel,
    tokenizer: Option<&Tokenizer>,
    prompt: &Input,
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Continuation> {
    let rows = model.model().network().table().weight().weight().dims().first().copied();
    let outside = prompt.ids.iter().find(|id| rows.is_some_and(|rows| **id as usize >= rows));
    if let (Some(id), Some(rows)) = (outside, rows) {
        bail!("token id {id} is outside the model's vocabulary of {rows}");
    }
    let decoder_only = model.model().family == Family::Decoder;
    let before = if decoder_only { &prompt.ids[..] } else { &[] };
    let mut stream = tokenizer.map(|tokenizer| TextStream::new(tokenizer, before));
    let mut text = String::new();
    let mut failure = None;
    let mut take = |piece: String| -> anyhow::Result<()> {
        text.push_str(&piece);
        if piece.is_empty() { Ok(()) } else { on_text(&piece) }
    };
    let pass = model.inference();
    let new = generate_after(model.model(), &pass, prompt, options, |_, token| {
        let Some(stream) = &mut stream else { return true };
        let taken = stream.push(token).and_then(&mut take);
        failure = taken.err();
        failure.is_none()
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if let Some(stream) = stream {
        take(stream.finish()?)?;
    }
    Ok(Continuation { ids: new.into_iter().next().unwrap_or_default(), text })
}

/// Tokens that end an answer: the tokenizer's, those of `generation_config.json` and of
/// `config.json`.
pub(crate) fn stop_ids(
    model: &PeftModel,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<Vec<u32>> {
    let mut ids = tokenizer.map(Tokenizer::stop_ids).unwrap_or_default();
    ids.extend(model.model().text_config()?.token_ids("eos_token_id")?);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
