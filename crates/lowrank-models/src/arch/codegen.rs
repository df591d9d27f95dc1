//! CodeGen: GPT-J with queries, values and keys from one layer, in the four parts of the machines
//! that it was trained on. Paper: arXiv:2203.13474. Reference: transformers
//! `models/codegen/modeling_codegen.py`.

use super::{Architecture, Parts, gptj};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{Fused, Order, Projections},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "codegen",
    class: "CodeGen",
    tasks: &[Task::CausalLm, Task::FeatureExtraction],
    prefixes: &["transformer"],
    paper: "arXiv:2203.13474",
    build,
    ..Architecture::DECODER
};

const PARTS: usize = 4;

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    gptj::build_with(c, task, b, |hidden, b| {
        if !hidden.is_multiple_of(PARTS) {
            return Err(c.wrong("hidden_size", format!("a multiple of {PARTS}")));
        }
        let output = b.linear("out_proj", hidden, hidden, false)?;
        let layer = b.linear("qkv_proj", hidden, 3 * hidden, false)?;
        let fused = Fused { order: Order::Qvk, ..Fused::new(layer, PARTS) };
        Ok((Projections::Fused(fused), output))
    })
}
