//! GLM-4-0414: GLM with norms after attention and MLP too.
//! Paper: arXiv:2406.12793. Reference: transformers `models/glm4/modeling_glm4.py`.

use super::{Architecture, Parts, glm};
use crate::{Builder, Config, Result, Task, blocks::decoder::BranchEnd};

pub(super) const ENTRY: Architecture =
    Architecture { model_type: "glm4", class: "Glm4", build, ..glm::ENTRY };

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    glm::with_layers(c, task, b, |blocks, b| {
        let layer = blocks.layer(b)?;
        let end = |name| b.norm(name, blocks.shape.norm).map(BranchEnd::norm);
        Ok(layer.ending([end("post_self_attn_layernorm")?, end("post_mlp_layernorm")?]))
    })
}
