//! Samples into token ids and labels, one file per kind of task.

use crate::chat::Chat;
use crate::conversation::{Conversation, Message, Response, Role};
use crate::error::{Result, RowProblem, RowRef};
use crate::formats::{Sample, WordBox};
use crate::options::DataOptions;
use crate::tokenizer::Tokenizer;

mod all;
mod boxes;
mod classification;
mod cut;
mod masked_words;
mod pictures;
mod preference;
mod pretraining;
mod question_answering;
mod seq2seq;
mod sft;
mod tagging;
mod text_encoder;
mod truncate;

pub use all::{Encoded, encode_all};
pub use classification::{LabelSet, ProblemType};
pub use pictures::{PictureEncoder, RowPicture};
pub use preference::{JudgedExample, PairExample};
pub use question_answering::{ContextWindow, QuestionEncoder, QuestionOptions};
pub use text_encoder::TextEncoder;

/// Marks a position that isn't trained; PyTorch's default `ignore_index`.
pub const IGNORE_INDEX: i32 = -100;

/// What a row teaches.
#[derive(Debug, Clone, PartialEq)]
pub enum Labels {
    /// Nothing: there is only something to predict.
    None,
    /// A token id or tag id for each position, [`IGNORE_INDEX`] where nothing is trained. Causal
    /// models compare position `i` with what they said at `i - 1`.
    Tokens(Vec<i32>),
    /// The tokens to generate from the input (encoder-decoder models, prediction, rewards).
    Target(Vec<u32>),
    /// The id of a class.
    Class(usize),
    /// 1 for each class that applies, 0 for the others.
    Classes(Vec<f32>),
    /// A number.
    Value(f32),
    /// First and last token of an answer.
    Span {
        /// First token.
        start: usize,
        /// Last token.
        end: usize,
    },
}

/// An encoded row.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// What they teach.
    pub labels: Labels,
    /// 0 for the first text and 1 for the second, for models that tell them apart.
    pub token_type_ids: Option<Vec<u32>>,
    /// The box of each token's word on its page.
    pub boxes: Option<Vec<WordBox>>,
    /// The picture that goes in the places of its image tokens.
    pub picture: Option<RowPicture>,
    /// Where the row comes from.
    pub source: RowRef,
    /// Tokens that `cutoff_len` removed.
    pub cut: usize,
}

impl Example {
    /// Tokens and labels, and nothing beside them.
    pub(crate) fn new(input_ids: Vec<u32>, labels: Labels, source: RowRef, cut: usize) -> Self {
        Self { input_ids, labels, token_type_ids: None, boxes: None, picture: None, source, cut }
    }

    /// Whether the token at a position is trained.
    #[must_use]
    pub fn is_trained(&self, position: usize) -> bool {
        match &self.labels {
            Labels::Tokens(labels) => labels.get(position).is_some_and(|l| *l != IGNORE_INDEX),
            _ => false,
        }
    }

    /// Positions that are trained.
    #[must_use]
    pub fn targets(&self) -> usize {
        match &self.labels {
            Labels::None => 0,
            Labels::Tokens(labels) => labels.iter().filter(|l| **l != IGNORE_INDEX).count(),
            Labels::Target(ids) => ids.len(),
            Labels::Classes(_) | Labels::Class(_) | Labels::Value(_) | Labels::Span { .. } => 1,
        }
    }
}

/// Encodes samples with a tokenizer and, for conversations, a chat template.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Tokenizer,
    chat: Chat,
    options: DataOptions,
}

impl Encoder {
    /// Prepares the tokenizer as template and options ask.
    /// # Errors
    /// Options that contradict each other, or a template that can't be used.
    pub fn new(mut tokenizer: Tokenizer, options: DataOptions) -> Result<Self> {
        options.check()?;
        let chat = Chat::new(&mut tokenizer, &options)?;
        tokenizer.set_split_special_tokens(options.split_special_tokens);
        Ok(Self { tokenizer, chat, options })
    }

    /// The tokenizer, with the template's changes.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How conversations are written.
    #[must_use]
    pub fn chat(&self) -> &Chat {
        &self.chat
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &DataOptions {
        &self.options
    }

    fn eos(&self) -> Result<u32, RowProblem> {
        self.tokenizer.eos_id().ok_or_else(|| RowProblem::Other {
            message: "the tokenizer has no `eos_token`".to_owned(),
        })
    }
}

/// The answer of a conversation that should have exactly one.
fn answer(conversation: &Conversation) -> Result<&Message, RowProblem> {
    match &conversation.response {
        Response::Answer(answer) => Ok(answer),
        Response::None => {
            Err(RowProblem::NoAnswer { advice: "give the row one, or use stage `pt`" })
        }
        Response::Pair { .. } | Response::Judged { .. } => {
            Err(RowProblem::NoAnswer { advice: "preference data needs stage `rm`, `dpo` or `kto`" })
        }
    }
}

/// A sample as a conversation: a prompt with a completion counts as one user and one model turn.
fn as_conversation(sample: &Sample) -> Result<std::borrow::Cow<'_, Conversation>, RowProblem> {
    use std::borrow::Cow;
    match sample {
        Sample::Conversation(conversation) => Ok(Cow::Borrowed(conversation)),
        Sample::Completion(c) => Ok(Cow::Owned(Conversation {
            at: c.at.clone(),
            system: String::new(),
            tools: String::new(),
            prompt: vec![Message::new(Role::User, c.prompt.as_str())],
            response: Response::Answer(Message::new(Role::Assistant, c.completion.as_str())),
            only_answer: true,
            original: None,
            images: c.images.clone(),
        })),
        _ => Err(unfit("conversations")),
    }
}

/// The text of a plain row; of a conversation its first message.
fn plain_text(sample: &Sample) -> Result<&str, RowProblem> {
    match sample {
        Sample::Text(row) => Ok(&row.text),
        Sample::Conversation(row) => match row.prompt.first() {
            Some(first) => Ok(&first.content),
            None => Err(unfit("texts")),
        },
        _ => Err(unfit("texts")),
    }
}

fn unfit(needed: &str) -> RowProblem {
    RowProblem::Other {
        message: format!("the task needs {needed}; check `formatting` of the data set"),
    }
}

/// Labels for ids that are trained.
fn labels_of(ids: &[u32]) -> Result<Vec<i32>, RowProblem> {
    let label = |id: &u32| {
        i32::try_from(*id).map_err(|_| RowProblem::Other {
            message: format!("token id {id} is too large to be a label"),
        })
    };
    ids.iter().map(label).collect()
}
