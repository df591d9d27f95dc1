//! Generation: tokens one by one, and a prompt at once.

use std::time::Instant;

use anyhow::ensure;
use lowrank_models::{GenerateOptions, Model, PeftModel, generate};
use lowrank_peft::{BaseTensor, layers::Layer};
use serde::Serialize;

use super::median;

/// Tokens before the first one that is decoded.
const SHORT_PROMPT: usize = 16;
/// Prompts use these first ids of the vocabulary alone, without the special ones before them.
const IDS: (usize, usize) = (3, 4096);

/// One token after another.
#[derive(Debug, Serialize)]
pub(super) struct Decoding {
    new_tokens: usize,
    /// From the first new token to the last, by pass.
    seconds: Vec<f64>,
    tokens_per_second: f64,
    /// What is read of the weights for a token.
    weight_bytes: usize,
    weight_gigabytes_per_second: f64,
    tokens: Vec<u32>,
}

impl Decoding {
    /// Decodes once uncounted and `passes` times with the clock running.
    pub(super) fn measure(model: &PeftModel, new: usize, passes: usize) -> anyhow::Result<Self> {
        let prompt = prompt(model, SHORT_PROMPT)?;
        continuation(model, &prompt, new.min(4))?;
        let (mut seconds, mut tokens) = (Vec::with_capacity(passes), Vec::new());
        for _ in 0..passes {
            let times;
            (tokens, times) = continuation(model, &prompt, new)?;
            if let (Some(first), Some(last)) = (times.first(), times.last()) {
                seconds.push(last - first);
            }
        }
        let tokens_per_second = (new - 1) as f64 / median(&seconds);
        let weight_bytes = weight_bytes(model.model())?;
        Ok(Self {
            new_tokens: new,
            seconds,
            tokens_per_second,
            weight_bytes,
            weight_gigabytes_per_second: weight_bytes as f64 * tokens_per_second / 1e9,
            tokens,
        })
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        format!(
            "decoding: {:.1} tokens/s, {:.1} GB/s of weights",
            self.tokens_per_second, self.weight_gigabytes_per_second
        )
    }
}

/// A prompt read at once.
#[derive(Debug, Serialize)]
pub(super) struct Prompt {
    prompt_tokens: usize,
    /// Until the first new token, by pass.
    seconds: Vec<f64>,
    tokens_per_second: f64,
}

impl Prompt {
    /// Reads the prompt once uncounted and `passes` times with the clock running.
    pub(super) fn measure(model: &PeftModel, tokens: usize, passes: usize) -> anyhow::Result<Self> {
        let prompt = prompt(model, tokens)?;
        let mut seconds = Vec::with_capacity(passes);
        for pass in 0..=passes {
            let (_, times) = continuation(model, &prompt, 1)?;
            seconds.extend(times.first().filter(|_| pass > 0));
        }
        let tokens_per_second = tokens as f64 / median(&seconds);
        Ok(Self { prompt_tokens: tokens, seconds, tokens_per_second })
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        format!(
            "prompt of {}: {:.0} tokens/s, first token after {:.3} s",
            self.prompt_tokens,
            self.tokens_per_second,
            median(&self.seconds)
        )
    }
}

/// New tokens, and the seconds after which each came.
fn continuation(
    model: &PeftModel,
    prompt: &[u32],
    new: usize,
) -> anyhow::Result<(Vec<u32>, Vec<f64>)> {
    let options = GenerateOptions { max_new_tokens: new, ..GenerateOptions::default() };
    let mut times = Vec::with_capacity(new);
    let begun = Instant::now();
    let tokens =
        generate(model.model(), &model.inference(), &[prompt.to_vec()], &options, |_, _| {
            times.push(begun.elapsed().as_secs_f64());
            true
        })?;
    Ok((tokens.concat(), times))
}

/// A fixed prompt: id `first + 7919·i` modulo the range.
fn prompt(model: &PeftModel, tokens: usize) -> anyhow::Result<Vec<u32>> {
    let vocabulary = model.model().network().table().weight().weight();
    let rows = vocabulary.dims().first().copied().unwrap_or_default();
    let (first, end) = (IDS.0, IDS.1.min(rows));
    ensure!(first < end, "the vocabulary of {rows} is too small to make a prompt of");
    Ok((0..tokens).map(|i| (first + 7919 * i % (end - first)) as u32).collect())
}

/// Bytes of all linear layers, the output layer among them, and of the experts that a token visits;
/// of an embedding a token reads one row.
fn weight_bytes(model: &Model) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for (_, layer) in model.modules.layers() {
        bytes += match layer {
            Layer::Linear(linear) => bytes_of(linear.weight()),
            Layer::Stack(stack) => {
                let [experts, ..] = stack.dims();
                let chosen = model.config.size("num_experts_per_tok")?;
                bytes_of(stack.weight()) / experts.max(1) * chosen
            }
            Layer::Embedding(_) | Layer::Norm(_) | Layer::Bare(_) => 0,
        };
    }
    Ok(bytes)
}

fn bytes_of(tensor: &BaseTensor) -> usize {
    let weight = tensor.weight();
    weight.elem_count() * weight.dtype().size_in_bytes()
}
