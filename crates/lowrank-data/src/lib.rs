//! Datasets, chat templates, tokenization, loss masks, packing and loader order.
//!
//! ```text
//! file ── record ── sample ── token ids + labels ── bins
//! files    formats   template, jinja, encode        packing, order
//! ```
//! Formats and templates follow LLaMA-Factory 0.9.5, a model's
//! own chat template transformers, `prompt`/`completion` shapes TRL. Nothing here pads: a batch is
//! a list of sequences, and attention stays inside each of them.

mod chat;
mod conversation;
mod dataset;
mod dataset_info;
mod date;
mod encode;
mod error;
mod files;
mod fingerprint;
mod formats;
mod images;
mod jinja;
mod mix;
mod options;
mod order;
mod packing;
mod preview;
mod python_json;
mod random;
mod record;
mod template;
mod tokenizer;
mod tool_styles;

pub use chat::Chat;
pub use conversation::{Conversation, Message, Response, Role};
pub use dataset::Dataset;
pub use dataset_info::{DatasetEntry, Names, find as find_dataset};
pub use date::DateTime;
pub use encode::{
    ContextWindow, Encoded, Encoder, Example, IGNORE_INDEX, JudgedExample, LabelSet, Labels,
    PairExample, PictureEncoder, ProblemType, QuestionEncoder, QuestionOptions, RowPicture,
    TextEncoder, encode_all,
};
pub use error::{DataError, Result, RowProblem, RowRef};
pub use files::{ReadOptions, Rows, read as read_files};
pub use fingerprint::Fingerprint;
pub use formats::{
    Answer, Completion, Formatting, Label, LabelledText, PlainText, Question, Sample, TaggedWords,
    WordBox,
};
pub use images::{ImageProcessor, Picture, PictureSource};
pub use options::{DataOptions, MixStrategy, Packing};
pub use order::{LoaderOrder, Position, permutation, split};
pub use packing::{Bin, Packed, pack};
pub use preview::{Piece, Segment, pieces, segments};
pub use record::Record;
pub use template::{Template, TokenizerFixes, template_names, templates_of};
pub use tokenizer::{Special, Tokenizer};
pub use tool_styles::ToolStyle;
