//! Mistral: Llama with a sliding window of attention.
//! Paper: arXiv:2310.06825. Reference: transformers `models/mistral/modeling_mistral.py`.

use super::{Architecture, Parts, llama};
use crate::{Builder, Config, Result, Task, blocks::attention::SelfAttentionShape};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "mistral",
    class: "Mistral",
    paper: "arXiv:2310.06825",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    // transformers' default for a config without the field; an explicit `null` means none.
    let window = match c.fields().contains_key("sliding_window") {
        true => c.size_or_none("sliding_window")?,
        false => Some(4096),
    };
    let attention = SelfAttentionShape { window, ..llama::attention(c)? };
    llama::with_attention(c, task, b, |_| attention.clone())
}
