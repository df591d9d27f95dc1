//! What a model is asked to do, and the head that this takes.

use lowrank_peft::TaskType;

/// A task; it decides which head a model gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// The next token.
    CausalLm,
    /// The next token of a target, given a source.
    Seq2SeqLm,
    /// Tokens that were masked.
    MaskedLm,
    /// A label, several labels or a number for a sequence.
    SeqCls,
    /// A label for each token.
    TokenCls,
    /// The span that answers a question.
    QuestionAns,
    /// The hidden states themselves.
    FeatureExtraction,
}

impl Task {
    /// All tasks with their names on the command line.
    pub const ALL: [(Task, &'static str); 7] = [
        (Task::CausalLm, "causal-lm"),
        (Task::Seq2SeqLm, "seq2seq-lm"),
        (Task::MaskedLm, "masked-lm"),
        (Task::SeqCls, "seq-cls"),
        (Task::TokenCls, "token-cls"),
        (Task::QuestionAns, "question-ans"),
        (Task::FeatureExtraction, "feature-extraction"),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(task, _)| *task == self).map_or("", |(_, name)| name)
    }

    /// The task of a name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, own)| *own == name).map(|(task, _)| *task)
    }

    /// PEFT's task type; masked language models have none.
    pub fn task_type(self) -> Option<TaskType> {
        Some(match self {
            Self::CausalLm => TaskType::CausalLm,
            Self::Seq2SeqLm => TaskType::Seq2SeqLm,
            Self::SeqCls => TaskType::SeqCls,
            Self::TokenCls => TaskType::TokenCls,
            Self::QuestionAns => TaskType::QuestionAns,
            Self::FeatureExtraction => TaskType::FeatureExtraction,
            Self::MaskedLm => return None,
        })
    }
}

impl From<TaskType> for Task {
    fn from(task_type: TaskType) -> Self {
        match task_type {
            TaskType::CausalLm => Self::CausalLm,
            TaskType::Seq2SeqLm => Self::Seq2SeqLm,
            TaskType::SeqCls => Self::SeqCls,
            TaskType::TokenCls => Self::TokenCls,
            TaskType::QuestionAns => Self::QuestionAns,
            TaskType::FeatureExtraction => Self::FeatureExtraction,
        }
    }
}
