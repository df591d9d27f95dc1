//! Texts and conversations as the tokens that a model continues.

use std::{path::Path, sync::Arc};

use anyhow::bail;
use lowrank_data::{
    Conversation, DataOptions, Encoder, Message, Response, RowRef, Sample, Tokenizer,
};
use lowrank_models::Family;
use lowrank_train::recipe::plan::TemplatePlan;

use crate::{commands::now, ui::Ui};

/// How messages become tokens, as flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TemplateArgs {
    /// Chat template by LLaMA-Factory's name, e.g. chatml; by default the model's own
    #[arg(long, value_name = "NAME")]
    pub(crate) template: Option<String>,
    /// System text; an empty one turns the template's default off
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
}

impl From<&TemplateArgs> for DataOptions {
    fn from(args: &TemplateArgs) -> Self {
        Self {
            template: args.template.clone(),
            default_system: args.system.clone(),
            ..Self::default()
        }
    }
}

/// The data options of a recipe's template.
pub(crate) fn of_plan(plan: &TemplatePlan) -> DataOptions {
    DataOptions {
        template: plan.template.clone(),
        default_system: plan.default_system.clone(),
        tool_format: plan.tool_format.clone(),
        enable_thinking: plan.enable_thinking,
        preserve_thinking: plan.preserve_thinking,
        ..DataOptions::default()
    }
}

/// Writes prompts for one model.
#[derive(Debug)]
pub(crate) struct Prompter {
    encoder: Encoder,
    family: Family,
    has_template: bool,
}

impl Prompter {
    /// A prompter for a model of that family. What the template changes in the tokenizer is said
    /// if the model can't know it.
    pub(crate) fn new(
        tokenizer: Tokenizer,
        family: Family,
        options: DataOptions,
        ui: Ui,
    ) -> anyhow::Result<Self> {
        let has_template = options.template.is_some() || tokenizer.chat_template(false).is_some();
        // The whole conversation is the prompt: nothing is cut.
        let options = DataOptions { cutoff_len: u32::MAX as usize, now: Some(now()), ..options };
        let encoder = Encoder::new(tokenizer, options)?;
        let added = &encoder.chat().tokenizer_fixes().added;
        if encoder.chat().template().is_some() && !added.is_empty() {
            let added = added.join("`, `");
            ui.warning(format_args!("the template adds `{added}`, which the model has never seen"));
        }
        Ok(Self { encoder, family, has_template })
    }

    /// The tokenizer, with the template's changes.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        self.encoder.tokenizer()
    }

    /// The tokens of a text for `generate`: a user's turn where the model has a chat template or
    /// one was named, unless the text is to be taken as it is.
    pub(crate) fn text(&self, text: &str, as_it_is: bool) -> anyhow::Result<Vec<u32>> {
        match self.has_template && !as_it_is {
            true => self.conversation(&[Message::new(lowrank_data::Role::User, text)]),
            false => self.plain(text),
        }
    }

    /// The text with the special tokens that the tokenizer puts around texts; a decoder's prompt
    /// doesn't end with `eos_token`, even if the tokenizer ends texts so.
    fn plain(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let tokenizer = self.encoder.tokenizer();
        let text = match self.encoder.options().default_system.as_deref() {
            None | Some("") => text.to_owned(),
            Some(system) => format!("{system}\n{text}"),
        };
        let mut ids = tokenizer.encoding(&text, None, true)?.get_ids().to_vec();
        if self.family == Family::Decoder && ids.last().copied() == tokenizer.eos_id() {
            ids.pop();
        }
        if ids.is_empty() {
            match tokenizer.bos_id().or(tokenizer.eos_id()) {
                Some(start) => ids.push(start),
                None => bail!("the prompt has no token; write a text"),
            }
        }
        Ok(ids)
    }

    /// The tokens of a conversation that ends with the user, ready for the model's answer.
    pub(crate) fn conversation(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        if self.family == Family::EncoderDecoder && !self.has_template {
            let last = messages.last().map(|m| m.content.as_str()).unwrap_or_default();
            return self.plain(last);
        }
        let sample = Sample::Conversation(Conversation {
            at: RowRef { file: Arc::from(Path::new("the conversation")), row: 0, line: None },
            system: String::new(),
            tools: String::new(),
            prompt: messages.to_vec(),
            response: Response::None,
            only_answer: false,
            original: None,
            images: Vec::new(),
        });
        Ok(self.encoder.prompt(&sample)?.input_ids)
    }
}
