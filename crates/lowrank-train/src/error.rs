//! What can go wrong in training.

use std::path::PathBuf;

/// An error of the training side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages are the documentation")]
pub enum Error {
    #[error(transparent)]
    Model(#[from] lowrank_models::Error),
    #[error(transparent)]
    Peft(#[from] lowrank_peft::Error),
    #[error(transparent)]
    Compute(#[from] lowrank_autograd::Error),
    #[error(transparent)]
    Data(Box<lowrank_data::DataError>),
    #[error(transparent)]
    Recipe(Box<crate::recipe::RecipeError>),
    #[error(transparent)]
    Schedule(#[from] crate::schedule::ScheduleError),
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    #[error(transparent)]
    Io(#[from] crate::durable::DurableError),
    #[error(transparent)]
    Lock(#[from] crate::checkpoint::LockError),
    #[error("`{}`: {what}", path.display())]
    State { path: PathBuf, what: String },
    #[error("{0}")]
    Batch(String),
    #[error("{0}")]
    Setup(String),
    #[error(
        "`{}` began with other settings, so this run can't go on from it:{}; set them back, or \
         start over with `overwrite_output_dir: true` or another `output_dir`",
        path.display(), changed(changes)
    )]
    OtherSettings { path: PathBuf, changes: Vec<crate::recipe::SettingChange> },
    #[error(
        "step {step}: {what} is {value}, so the weights were left as they are after step {}; \
         rows of this step: {rows}{advice}", step - 1
    )]
    NotFinite { step: u64, what: &'static str, value: f64, rows: String, advice: String },
}

fn changed(changes: &[crate::recipe::SettingChange]) -> String {
    let one =
        |c: &crate::recipe::SettingChange| format!(" `{}` was {}, is {}", c.key, c.before, c.now);
    changes.iter().map(one).collect::<Vec<_>>().join(";")
}

// Boxed: they carry places and texts, and every result would be as large as they are.
impl From<lowrank_data::DataError> for Error {
    fn from(error: lowrank_data::DataError) -> Self {
        Self::Data(Box::new(error))
    }
}

impl From<crate::recipe::RecipeError> for Error {
    fn from(error: crate::recipe::RecipeError) -> Self {
        Self::Recipe(Box::new(error))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Compute(error.into())
    }
}

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
