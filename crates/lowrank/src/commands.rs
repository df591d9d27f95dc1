//! The commands, one file each.

mod parity;
mod train;

pub(crate) use train::Interrupted;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Parity(parity::Parity),
    Train(train::Train),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Parity(command) => command.run(),
            Self::Train(command) => command.run(),
        }
    }
}
