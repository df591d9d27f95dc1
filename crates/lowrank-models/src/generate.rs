//! Generation, token by token, with a cache of keys and values.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{Awake, Error as ComputeError, Key};
use lowrank_peft::Pass;

use crate::{Cache, Context, Encoded, Error, Family, Input, Model, Result, Sequences};

mod asked;

pub use asked::{Barred, Forced, generation_start};

/// How the next token is chosen, under transformers' names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// Only so many of the most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability.
    pub top_p: f64,
    /// Above 1: tokens that were there already become less likely (arXiv:1909.05858).
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 42 }
    }
}

/// What is asked of [`generate`].
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens for each sequence.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence; they are part of the result.
    pub eos_token_ids: Vec<u32>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that take their places unchosen.
    pub forced: Forced,
    /// Tokens that can't be chosen.
    pub barred: Barred,
    /// The position of each prompt's first token, where it isn't the model's own first one; read
    /// by models that take [`Input::position_ids`].
    pub first_positions: Vec<u32>,
}

/// Continues each prompt; `on_token` hears of every token as it comes, by sequence, and ends the
/// generation by returning false. Returns the new tokens alone.
///
/// # Errors
/// For an empty prompt, an id outside the vocabulary, or a context longer than the model's table
/// of positions.
pub fn generate(
    model: &Model,
    pass: &Pass,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    generate_after(model, pass, &Input::packed(prompts), options, on_token)
}

/// [`generate`] from prompts as a model reads them: with the positions that an encoder sees.
///
/// # Errors
/// As [`generate`].
pub fn generate_after(
    model: &Model,
    pass: &Pass,
    prompts: &Input,
    options: &GenerateOptions,
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Vec<u32>>> {
    if let Some(row) = prompts.sequences.lengths().iter().position(|&n| n == 0) {
        return Err(Error::Input(format!("prompt {row} is empty; it needs at least one token")));
    }
    let mut run = Run::start(model, pass, prompts, &options.first_positions)?;
    let rows = prompts.sequences.len();
    let mut new: Vec<Vec<u32>> = vec![Vec::new(); rows];
    let mut open = vec![true; rows];
    for step in 0..options.max_new_tokens {
        let logits = run.step()?;
        let mut next = Vec::with_capacity(rows);
        for (row, mut logits) in logits.into_iter().enumerate() {
            let key = Key::new(options.sampling.seed).with(row as u64).with(step as u64);
            let seen = run.seen(row);
            let token = match options.forced.at(step, seen.len(), options.max_new_tokens) {
                Some(token) => token,
                None => {
                    options.barred.apply(&mut logits, step, seen, &options.eos_token_ids);
                    choose(&logits, seen, &options.sampling, key)?
                }
            };
            next.push(token);
            if open.get(row) == Some(&true) {
                if let Some(new) = new.get_mut(row) {
                    new.push(token);
                }
                let ended = options.eos_token_ids.contains(&token);
                if let Some(open) = open.get_mut(row) {
                    *open = !ended;
                }
                if !on_token(row, token) {
                    return Ok(new);
                }
            }
        }
        if open.iter().all(|open| !open) {
            break;
        }
        run.append(&next);
    }
    Ok(new)
}

/// Sequences under generation. Ended ones run along until all have ended, so that rows keep their
/// places.
struct Run<'a> {
    model: &'a Model,
    pass: &'a Pass,
    cache: Cache,
    encoded: Option<Encoded>,
    /// All tokens of each sequence so far.
    tokens: Vec<Vec<u32>>,
    /// How many of them the cache holds.
    cached: Vec<usize>,
    /// What a decoder sees beside its prompts.
    images: Option<Tensor>,
    first_positions: &'a [u32],
}

impl<'a> Run<'a> {
    fn start(
        model: &'a Model,
        pass: &'a Pass,
        prompts: &Input,
        first_positions: &'a [u32],
    ) -> Result<Self> {
        let network = model.network();
        let rows = prompts.sequences.len();
        let (encoded, tokens) = match model.family {
            Family::Decoder => (None, prompts.rows()),
            Family::EncoderDecoder => {
                let start = generation_start(model)?.unwrap_or_default();
                (Some(network.encode(prompts, pass)?), vec![vec![start]; rows])
            }
            Family::Encoder => {
                let what = format!("`{}` doesn't generate", model.architecture.model_type);
                return Err(Error::Input(what));
            }
        };
        let cache = network.new_cache(rows);
        let cached = vec![0; rows];
        let images = prompts.images.clone().filter(|_| encoded.is_none());
        Ok(Self { model, pass, cache, encoded, tokens, cached, images, first_positions })
    }

    /// Logits after the last token of each sequence.
    fn step(&mut self) -> Result<Vec<Vec<f32>>> {
        let _awake = Awake::begin();
        self.renew_cache();
        let fresh: Vec<&[u32]> = self
            .tokens
            .iter()
            .zip(&self.cached)
            .map(|(tokens, &cached)| tokens.get(cached..).unwrap_or_default())
            .collect();
        let lengths: Vec<usize> = fresh.iter().map(|t| t.len()).collect();
        let sequences = Sequences::continued(&lengths, &self.cached);
        let (images, position_ids) = (self.images.take(), self.position_ids(&sequences));
        let input = Input { images, position_ids, ..Input::new(fresh.concat().into(), sequences) };
        let context = Context { cache: Some(&mut self.cache), encoded: self.encoded.as_ref() };
        let hidden = self.model.network().forward(&input, context, self.pass)?;
        let last: Arc<[usize]> = input.sequences.spans.iter().map(|s| s.queries.end - 1).collect();
        let logits = self.model.head().logits(&hidden, &input, Some(&last), self.pass)?;
        self.cached = self.tokens.iter().map(Vec::len).collect();
        let rows = logits.data().to_vec2::<f32>();
        Ok(rows.map_err(ComputeError::from)?)
    }

    fn position_ids(&self, sequences: &Sequences) -> Option<Arc<[u32]>> {
        let rows = sequences.spans.iter().zip(self.first_positions);
        let ids = rows.flat_map(|(span, first)| {
            let places = sequences.positions.get(span.queries.clone()).unwrap_or_default();
            places.iter().map(move |place| first + place)
        });
        (!self.first_positions.is_empty()).then(|| ids.collect())
    }

    /// Empties a cache whose keys no longer are those of the sequences, once the longest of them has
    /// passed the network's limit.
    fn renew_cache(&mut self) {
        let longest = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or_default();
        let before = longest(&mut self.cached.iter().copied());
        let now = longest(&mut self.tokens.iter().map(Vec::len));
        let network = self.model.network();
        if network.cache_limit().is_some_and(|limit| before <= limit && now > limit) {
            self.cache = network.new_cache(self.tokens.len());
            self.cached.fill(0);
        }
    }

    fn seen(&self, row: usize) -> &[u32] {
        self.tokens.get(row).map(Vec::as_slice).unwrap_or_default()
    }

    fn append(&mut self, next: &[u32]) {
        for (tokens, &token) in self.tokens.iter_mut().zip(next) {
            tokens.push(token);
        }
    }
}

/// The next token: penalty, temperature, `top_k` and `top_p` in transformers' order.
fn choose(logits: &[f32], seen: &[u32], sampling: &Sampling, key: Key) -> Result<u32> {
    if logits.iter().any(|l| l.is_nan()) {
        return Err(Error::Input("the model's logits are not numbers (NaN)".to_owned()));
    }
    if sampling.temperature <= 0.0 && sampling.repetition_penalty == 1.0 {
        return Ok(largest(logits.iter().map(|&l| f64::from(l))));
    }
    let mut scores: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    if sampling.repetition_penalty != 1.0 {
        penalize(&mut scores, seen, sampling.repetition_penalty);
    }
    if sampling.temperature <= 0.0 {
        return Ok(largest(scores.into_iter()));
    }
    // Descending; equal scores keep the order of their ids, as an argmax does.
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let score = |i: &usize| scores.get(*i).copied().unwrap_or(f64::NEG_INFINITY);
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let highest = order.first().map_or(0.0, score);
    let weight = |i: &usize| ((score(i) - highest) / sampling.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    if sampling.top_p < 1.0 {
        let mut before = 0.0;
        let kept = order.iter().take_while(|i| {
            let keep = before < sampling.top_p * total;
            before += weight(i);
            keep
        });
        let kept = kept.count().max(1);
        order.truncate(kept);
    }
    let mut left = key.uniform(0) * order.iter().map(weight).sum::<f64>();
    for i in &order {
        left -= weight(i);
        if left < 0.0 {
            return Ok(*i as u32);
        }
    }
    Ok(order.last().copied().unwrap_or_default() as u32)
}

/// The first of the largest scores.
fn largest(scores: impl Iterator<Item = f64>) -> u32 {
    let best = scores.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token as u32)
}

fn penalize(scores: &mut [f64], seen: &[u32], penalty: f64) {
    let mut seen = seen.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for token in seen {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
        }
    }
}
