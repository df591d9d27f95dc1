//! The commands, one file each.

mod parity;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Parity(parity::Parity),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Parity(command) => command.run(),
        }
    }
}
