//! mT5: T5 v1.1 over a hundred languages, with a head of its own.
//! Paper: arXiv:2010.11934. Reference: transformers `models/mt5/modeling_mt5.py`.

use super::{Architecture, Parts, t5};
use crate::{Builder, Config, Result, Task};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "mt5",
    class: "MT5",
    decoder_start_token_id: Some(0),
    paper: "arXiv:2010.11934",
    build,
    ..t5::ENTRY
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    t5::build_with(c, task, b, "gated-gelu", None)
}
