//! The commands, one file each.

mod bench;
mod chat;
mod generate;
mod inspect;
mod merge;
mod models;
mod parity;
mod predict;
mod preview;
mod quickstart;
mod train;

pub(crate) use train::{Interrupted, now};

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Bench(bench::Bench),
    Chat(chat::Chat),
    Generate(generate::Generate),
    Inspect(inspect::Inspect),
    #[command(visible_alias = "export")]
    Merge(merge::Merge),
    Models(models::Models),
    Parity(parity::Parity),
    Predict(predict::Predict),
    Preview(preview::Preview),
    Quickstart(quickstart::Quickstart),
    Train(train::Train),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Bench(command) => command.run(),
            Self::Chat(command) => command.run(),
            Self::Generate(command) => command.run(),
            Self::Inspect(command) => command.run(),
            Self::Merge(command) => command.run(),
            Self::Models(command) => command.run(),
            Self::Parity(command) => command.run(),
            Self::Predict(command) => command.run(),
            Self::Preview(command) => command.run(),
            Self::Quickstart(command) => command.run(),
            Self::Train(command) => command.run(),
        }
    }
}
