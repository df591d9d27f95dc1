//! Every operation against its plain version, differences, PyTorch, and what must not matter.
//!
//! A new operation costs one line in each of `equal_to_plain`-style tests ([`check::check`] does
//! the rest) and, where PyTorch has it, one case in `fixtures/make_torch_reference.py` and one
//! line in [`torch`].
#![expect(clippy::expect_used, clippy::panic, reason = "what fails here fails the test")]

mod activation;
mod attention;
mod bf16;
mod cached;
mod check;
mod composed;
mod disentangled;
mod embedding;
mod errors;
mod experts;
mod join_columns;
mod linear;
mod linear_cross_entropy;
mod loss;
mod norm;
mod plumbing;
mod range;
mod rotary;
mod threads;
mod torch;
