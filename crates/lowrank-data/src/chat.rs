//! How conversations are written: a LLaMA-Factory template by name, or the model's own.

use crate::conversation::{Conversation, Message, Role};
use crate::error::{Result, RowProblem};
use crate::jinja::JinjaTemplate;
use crate::options::DataOptions;
use crate::template::{Template, TokenizerFixes, supply_missing};
use crate::tokenizer::Tokenizer;

/// Turns of a conversation as token ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Turns {
    /// Prompt and answer of each turn.
    pub(crate) pairs: Vec<(Vec<u32>, Vec<u32>)>,
    /// What the template writes after the last answer; never trained.
    pub(crate) tail: Vec<u32>,
}

/// A way to write conversations.
#[derive(Debug, Clone)]
pub struct Chat {
    kind: Kind,
    fixes: TokenizerFixes,
}

#[derive(Debug, Clone)]
enum Kind {
    Slots(Box<Template>),
    Jinja(Box<JinjaTemplate>),
    /// The model has no chat template and the recipe names none: only tasks without
    /// conversations are possible.
    None,
}

impl Chat {
    /// The named template of `options`, else the tokenizer's own, and what it needs of the
    /// tokenizer.
    pub(crate) fn new(tokenizer: &mut Tokenizer, options: &DataOptions) -> Result<Self> {
        let Some(name) = &options.template else {
            let mut fixes = TokenizerFixes::default();
            supply_missing(tokenizer, &mut fixes)?;
            let kind = match JinjaTemplate::of(tokenizer, options)? {
                Some(template) => Kind::Jinja(Box::new(template)),
                None => Kind::None,
            };
            return Ok(Self { kind, fixes });
        };
        let template = Template::named(name, options)?;
        let fixes = template.fix_tokenizer(tokenizer)?;
        Ok(Self { kind: Kind::Slots(Box::new(template)), fixes })
    }

    /// What was changed in the tokenizer.
    #[must_use]
    pub fn tokenizer_fixes(&self) -> &TokenizerFixes {
        &self.fixes
    }

    /// The named template, if there is one.
    #[must_use]
    pub fn template(&self) -> Option<&Template> {
        match &self.kind {
            Kind::Slots(template) => Some(template),
            Kind::Jinja(_) | Kind::None => None,
        }
    }

    pub(crate) fn efficient_eos(&self) -> bool {
        self.template().is_some_and(Template::efficient_eos)
    }

    /// The prompt alone, ready for the model to answer.
    pub(crate) fn prompt(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
    ) -> Result<Vec<u32>, RowProblem> {
        match &self.kind {
            Kind::Slots(template) => {
                let nothing = Message::new(Role::Assistant, "");
                Ok(template.oneturn(tokenizer, conversation, &nothing)?.0)
            }
            Kind::Jinja(template) => template.prompt(tokenizer, conversation),
            Kind::None => Err(no_template()),
        }
    }

    /// Every turn with its answer.
    pub(crate) fn multiturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Turns, RowProblem> {
        match &self.kind {
            Kind::Slots(template) => {
                let pairs = template.multiturn(tokenizer, conversation, answer)?;
                Ok(Turns { pairs, ..Turns::default() })
            }
            Kind::Jinja(template) => template.multiturn(tokenizer, conversation, answer),
            Kind::None => Err(no_template()),
        }
    }

    /// The whole prompt as one, and the answer.
    pub(crate) fn oneturn(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        answer: &Message,
    ) -> Result<Turns, RowProblem> {
        match &self.kind {
            Kind::Slots(template) => {
                let pairs = vec![template.oneturn(tokenizer, conversation, answer)?];
                Ok(Turns { pairs, ..Turns::default() })
            }
            Kind::Jinja(template) => template.oneturn(tokenizer, conversation, answer),
            Kind::None => Err(no_template()),
        }
    }
}

fn no_template() -> RowProblem {
    RowProblem::Other {
        message: "the model has no chat template; name one with `template`, e.g. \
                  `template: chatml`"
            .to_owned(),
    }
}
