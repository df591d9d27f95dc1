//! The command line: parse, run, and one place where errors become text and exit codes.

mod commands;
mod generation;
mod memory;
mod model_source;
mod progress;
mod ui;

use std::process::ExitCode;

use clap::Parser;

/// Pretrain, fine-tune with LoRA, align and serve large models in one program.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

#[global_allocator]
static ALLOCATOR: memory::Lines = memory::Lines;

fn main() -> ExitCode {
    memory::keep_freed();
    // The main thread is one of the workers: what it starts it works on itself, and no thread is
    // woken to take its place. This fails only where a pool exists already, which serves as well.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    match Arguments::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            match error.is::<commands::Interrupted>() {
                true => ExitCode::from(130), // as a shell reports what Ctrl-C ended
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether the reader of standard output went away: no error, as with `head`.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(closed))
}

fn report(error: &anyhow::Error) {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some errors quote their cause already.
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    ui::Ui::new().status(format_args!("error: {text}"));
}
