//! A conversation: what every chat format is turned into, and what templates encode.

use serde_json::Value;

use crate::error::RowRef;
use crate::images::PictureSource;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a function call.
    Observation,
    /// The model calling functions; the content is JSON.
    Function,
}

impl Role {
    /// Whether the model speaks: its turns are what is trained.
    #[must_use]
    pub fn is_model(self) -> bool {
        matches!(self, Self::Assistant | Self::Function)
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// The text; of a function turn a JSON object or list of `{name, arguments}`.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What answers the prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Response {
    /// None: fine for `pt`, `ppo`, `grpo` and prediction.
    None,
    /// The answer to learn.
    Answer(Message),
    /// A preference (`rm`, `dpo`).
    Pair {
        /// The better answer.
        chosen: Message,
        /// The worse one.
        rejected: Message,
    },
    /// An answer with a judgement (`kto`).
    Judged {
        /// The answer.
        answer: Message,
        /// Whether it is a good one.
        desirable: bool,
    },
}

/// Prompt messages, an answer, and what stands around them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Where the row comes from.
    pub at: RowRef,
    /// The system text; empty means that the template's default applies.
    pub system: String,
    /// The functions on offer, a JSON list; empty if there are none.
    pub tools: String,
    /// User and model in turn, ending with the user (or an observation).
    pub prompt: Vec<Message>,
    /// The answer to the last prompt message.
    pub response: Response,
    /// Earlier turns of the model belong to the prompt and are never trained, as in TRL's `prompt`
    /// and `completion`.
    pub only_answer: bool,
    /// The messages as they were written, for the model's own chat template; only kept if they
    /// hold more than roles and texts (`tool_calls`, `reasoning_content`).
    pub original: Option<Vec<Value>>,
    /// Its pictures.
    pub images: Vec<PictureSource>,
}

impl Conversation {
    /// The answer that the row itself has; of a pair the chosen one.
    #[must_use]
    pub fn own_answer(&self) -> Option<&Message> {
        match &self.response {
            Response::None => None,
            Response::Answer(answer) | Response::Judged { answer, .. } => Some(answer),
            Response::Pair { chosen, .. } => Some(chosen),
        }
    }

    /// Prompt and `answer` as one list.
    #[must_use]
    pub fn with_answer(&self, answer: &Message) -> Vec<Message> {
        self.prompt.iter().chain([answer]).cloned().collect()
    }
}
