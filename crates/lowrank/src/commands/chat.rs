//! `lowrank chat`: a conversation, line by line.

use std::{
    io::{BufRead as _, stdin},
    path::PathBuf,
};

use anyhow::bail;
use candle_core::DType;
use lowrank_data::{DataOptions, Message, Role};
use lowrank_models::{GenerateOptions, Input, PeftModel, Sampling};
use lowrank_train::recipe::{
    Recipe,
    plan::{ChatPlan, Device, GeneratePlan, GenerationLimit},
};

use super::generate::open_for_generation;
use crate::{
    generation::{Prompter, SamplingArgs, TemplateArgs, continue_prompt, of_plan, stop_ids},
    model_source::{Dtype, ModelSource},
    ui::Ui,
};

/// Talks with a model; /exit ends, /clear forgets, /adapter NAME or none switches adapters
///
/// Reads a line a turn from standard input and prints the answer as it comes. Takes either flags
/// or a LLaMA-Factory recipe for `llamafactory-cli chat`. Without sampling flags answers are drawn
/// with LLaMA-Factory's defaults (temperature 0.95, top_p 0.7, top_k 50).
#[derive(Debug, clap::Args)]
pub(crate) struct Chat {
    /// YAML or JSON recipe
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    recipe: Option<PathBuf>,
    /// Settings that replace the recipe's, `key=value`
    #[arg(requires = "recipe")]
    overrides: Vec<String>,
    /// Folder with config.json, weights and tokenizer; or an adapter folder that names its base
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// PEFT adapter folder; of several given all are active at first, and their changes add up
    #[arg(long = "adapter", value_name = "DIR", requires = "model")]
    adapters: Vec<PathBuf>,
    /// Convert the weights when they are loaded; by default they keep their dtype
    #[arg(long, value_enum, requires = "model")]
    dtype: Option<Dtype>,
    /// Where the model runs: cpu, cuda (the first NVIDIA GPU) or cuda:N; recipes say `device`
    #[arg(long, value_name = "DEVICE", requires = "model")]
    device: Option<Device>,
    #[command(flatten)]
    template: TemplateArgs,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// How the conversation is to go.
struct Settings {
    source: ModelSource,
    template: DataOptions,
    sampling: Sampling,
    limit: GenerationLimit,
}

impl Chat {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ui = Ui::new();
        let settings = self.settings(ui)?;
        let model = open_for_generation(&settings.source, ui)?;
        let family = model.model().family;
        let tokenizer = settings.source.tokenizer()?;
        let prompter = Prompter::new(tokenizer, family, settings.template, ui)?;
        let stop = stop_ids(&model, Some(prompter.tokenizer()))?;
        let (sampling, limit) = (settings.sampling, settings.limit);
        Talk { ui, model, prompter, stop, sampling, limit, history: Vec::new(), turns: 0 }.run()
    }

    fn settings(&self, ui: Ui) -> anyhow::Result<Settings> {
        let Some(recipe) = &self.recipe else {
            let Some(model) = &self.model else { bail!("give a recipe or --model") };
            let source = ModelSource::new(model, &self.adapters, self.dtype.map(DType::from))?;
            return Ok(Settings {
                source: source.on(self.device.unwrap_or_default()),
                template: DataOptions::from(&self.template),
                sampling: self.sampling.over(LLAMAFACTORY),
                limit: GenerationLimit::NewTokens(self.max_new_tokens.unwrap_or(1024)),
            });
        };
        let plan: ChatPlan = Recipe::read(recipe, &self.overrides)?.resolve_chat()?;
        plan.notices.iter().for_each(|notice| ui.status(format_args!("note: {notice}")));
        let mut template = of_plan(&plan.template);
        let flags = DataOptions::from(&self.template);
        template.template = flags.template.or(template.template);
        template.default_system = flags.default_system.or(template.default_system);
        Ok(Settings {
            source: ModelSource::of_plan(&plan.model)?,
            template,
            sampling: self.sampling.over(sampling_of(&plan.generate)),
            limit: self.max_new_tokens.map_or(plan.generate.limit, GenerationLimit::NewTokens),
        })
    }
}

/// LLaMA-Factory's defaults.
const LLAMAFACTORY: Sampling =
    Sampling { temperature: 0.95, top_k: 50, top_p: 0.7, repetition_penalty: 1.0, seed: 42 };

fn sampling_of(plan: &GeneratePlan) -> Sampling {
    Sampling {
        temperature: if plan.do_sample { plan.temperature } else { 0.0 },
        top_k: plan.top_k,
        top_p: plan.top_p,
        repetition_penalty: plan.repetition_penalty,
        seed: LLAMAFACTORY.seed,
    }
}

/// A conversation.
struct Talk {
    ui: Ui,
    model: PeftModel,
    prompter: Prompter,
    stop: Vec<u32>,
    sampling: Sampling,
    limit: GenerationLimit,
    history: Vec<Message>,
    /// Answers so far: each draws with a seed of its own.
    turns: u64,
}

impl Talk {
    fn run(mut self) -> anyhow::Result<()> {
        self.ui.prompt("> ");
        for line in stdin().lock().lines() {
            let line = line?;
            match line.trim() {
                "" => {}
                "/exit" | "/quit" => break,
                "/clear" => {
                    self.history.clear();
                    self.ui.status("the conversation is forgotten");
                }
                command if command.starts_with('/') => self.command(command),
                _ => self.answer(line)?,
            }
            self.ui.prompt("> ");
        }
        Ok(())
    }

    fn command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["/adapter", names @ ..] if !names.is_empty() => {
                let names: &[&str] = if names == ["none"] { &[] } else { names };
                match self.model.set_adapter(names) {
                    Ok(()) if names.is_empty() => self.ui.status("no adapter is active"),
                    Ok(()) => self.ui.status(format_args!("active: {}", names.join(", "))),
                    Err(error) => self.ui.warning(error),
                }
            }
            _ => {
                let loaded: Vec<&str> =
                    self.model.adapters().iter().map(|a| a.name.as_str()).collect();
                let loaded = if loaded.is_empty() { "none".to_owned() } else { loaded.join(", ") };
                self.ui.status(format_args!(
                    "commands: /exit, /clear, /adapter NAME… or none (loaded: {loaded})"
                ));
            }
        }
    }

    fn answer(&mut self, line: String) -> anyhow::Result<()> {
        self.history.push(Message::new(Role::User, line));
        let prompt = self.prompter.conversation(&self.history)?;
        let options = GenerateOptions {
            max_new_tokens: match self.limit {
                GenerationLimit::NewTokens(tokens) => tokens,
                GenerationLimit::TotalTokens(tokens) => tokens.saturating_sub(prompt.len()),
            },
            eos_token_ids: self.stop.clone(),
            sampling: Sampling {
                seed: self.sampling.seed.wrapping_add(self.turns),
                ..self.sampling
            },
            ..GenerateOptions::asked(self.model.model())?
        };
        let ui = self.ui;
        let tokenizer = Some(self.prompter.tokenizer());
        let stream = |text: &str| Ok(ui.stream(text)?);
        let answer =
            continue_prompt(&self.model, tokenizer, &Input::packed(&[prompt]), &options, stream)?;
        ui.result("")?;
        self.history.push(Message::new(Role::Assistant, answer.text));
        self.turns += 1;
        Ok(())
    }
}
