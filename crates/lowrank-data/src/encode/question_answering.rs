//! A question with windows of its context. Reference: transformers
//! `examples/pytorch/question-answering/run_qa.py`, `prepare_train_features`.

use super::boxes::{boxes_of, words_of};
use super::cut::{Cut, Kept};
use super::{Example, Labels, unfit};
use crate::error::RowProblem;
use crate::formats::{Question, Sample};
use crate::tokenizer::{Special, Tokenizer};

/// How a context is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuestionOptions {
    /// Most tokens of a window, question and special tokens included.
    pub max_length: usize,
    /// Tokens that a window shares with the one before.
    pub doc_stride: usize,
}

impl Default for QuestionOptions {
    fn default() -> Self {
        Self { max_length: 384, doc_stride: 128 }
    }
}

/// A window of a context, with what it takes to find an answer in it again.
#[derive(Debug, Clone, PartialEq)]
pub struct ContextWindow {
    /// Question and context; the labels are the answer's span, at `[CLS]` if it isn't in the
    /// window.
    pub example: Example,
    /// For each token of the context its bytes there; none for the question's and special tokens.
    pub offsets: Vec<Option<(usize, usize)>>,
}

/// Encodes questions with windows of their contexts.
#[derive(Debug, Clone)]
pub struct QuestionEncoder {
    tokenizer: Tokenizer,
    options: QuestionOptions,
}

impl QuestionEncoder {
    /// Cuts windows as `options` say.
    #[must_use]
    pub fn new(tokenizer: Tokenizer, options: QuestionOptions) -> Self {
        Self { tokenizer, options }
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The windows of a question's context; the first accepted answer is the one trained.
    /// # Errors
    /// A sample of another kind, or a question too long for any context beside it.
    pub fn windows(&self, sample: &Sample) -> Result<Vec<ContextWindow>, RowProblem> {
        let Sample::QuestionAnswering(row) = sample else {
            return Err(unfit("questions (`formatting: question_answering`)"));
        };
        // Leading white space would only take room (and, as in run_qa.py, fail some tokenizers).
        let question = row.question.trim_start();
        let encoding = self.tokenizer.encoding(question, Some(&row.context), true)?;
        let QuestionOptions { max_length, doc_stride } = self.options;
        let cut = Cut::new(&encoding, self.tokenizer.truncates_left());
        let windows = cut.windows(max_length, doc_stride).ok_or_else(|| RowProblem::Other {
            message: format!(
                "beside the question a window of {max_length} tokens has no room for more of the \
                 context than the {doc_stride} that windows share (`doc_stride`)"
            ),
        })?;
        Ok(windows.into_iter().map(|window| self.window(row, window)).collect())
    }

    fn window(&self, row: &Question, window: Kept) -> ContextWindow {
        let cls = self.tokenizer.special_id(Special::Cls);
        let cls = cls.and_then(|cls| window.ids.iter().position(|id| *id == cls)).unwrap_or(0);
        let (start, end) = answer_bytes(row)
            .and_then(|answer| tokens_of(&window.second, answer))
            .unwrap_or((cls, cls));
        let words = words_of(&row.context, &window.second);
        let boxes = row.boxes.as_deref();
        let boxes = boxes.map(|boxes| boxes_of(&self.tokenizer, &window.ids, words, boxes));
        let example = Example {
            boxes,
            token_type_ids: self.tokenizer.uses_type_ids().then_some(window.type_ids),
            ..Example::new(window.ids, Labels::Span { start, end }, row.at.clone(), 0)
        };
        ContextWindow { example, offsets: window.second }
    }
}

/// The first answer's bytes in the context; SQuAD counts characters.
fn answer_bytes(row: &Question) -> Option<(usize, usize)> {
    let answer = row.answers.first()?;
    let (start, _) = row.context.char_indices().nth(answer.start)?;
    Some((start, start + answer.text.len()))
}

/// First and last token of a span of the context, if the window holds all of it.
fn tokens_of(
    offsets: &[Option<(usize, usize)>],
    (start, end): (usize, usize),
) -> Option<(usize, usize)> {
    let context = || offsets.iter().enumerate().filter_map(|(i, span)| Some((i, (*span)?)));
    let (_, (window_start, _)) = context().next()?;
    let (_, (_, window_end)) = context().next_back()?;
    if start < window_start || end > window_end {
        return None;
    }
    let first = context().rfind(|(_, (s, _))| *s <= start)?;
    let last = context().find(|(_, (_, e))| *e >= end)?;
    Some((first.0, last.0))
}
