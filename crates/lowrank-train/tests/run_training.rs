//! Training runs from a recipe to its files, on the small Llama of this repository and on tiny
//! random models. Each file below is one promise.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "run/accumulation.rs"]
mod accumulation;
#[path = "run/adapters.rs"]
mod adapters;
#[path = "run/batches.rs"]
mod batches;
#[path = "run/boxes.rs"]
mod boxes;
#[path = "run/cadence.rs"]
mod cadence;
#[path = "run/golden.rs"]
mod golden;
#[path = "run/harness.rs"]
mod harness;
#[path = "run/masked_words.rs"]
mod masked_words;
#[path = "run/not_finite.rs"]
mod not_finite;
#[path = "run/optimizer.rs"]
mod optimizer;
#[path = "run/pictures.rs"]
mod pictures;
#[path = "run/refusals.rs"]
mod refusals;
#[path = "run/resume.rs"]
mod resume;
#[path = "run/tasks.rs"]
mod tasks;
