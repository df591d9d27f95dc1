//! Phi-3 and Phi-4-mini: Llama with queries, keys and values in one layer, gate and input of the MLP
//! in another, and positions stretched by LongRoPE.
//! Paper: arXiv:2404.14219. Reference: transformers `models/phi3/modeling_phi3.py`.

use super::{Architecture, Parts, llama};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::{BranchEnd, Decoder},
        mlp::GatedMlp,
        rotary::Rotary,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "phi3",
    class: "Phi3",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    pad_token_id: Some(32_000),
    paper: "arXiv:2404.14219",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_defaults([
        ("rms_norm_eps", 1e-5.into()),
        ("max_position_embeddings", 4096.into()),
        (TRAINED, 4096.into()),
    ]);
    // Of configs for code of the model's own; transformers builds none of these.
    for key in ["attention_bias", "mlp_bias", "lm_head_bias"] {
        if c.switch_or(key, false)? {
            return Err(c.not_implemented(key, "false"));
        }
    }
    let (c, stretched) = &with_kind_of_positions(c)?;
    let window = c.size_or_none("sliding_window")?;
    let attention = SelfAttentionShape { window, ..llama::attention(c)? };
    let (mlp, shape) =
        (llama::mlp(c)?, llama::decoder_shape(c, Rotary::from_config(c, attention.head_dim)?)?);
    let dropout = c.probability_or("resid_pdrop", 0.0)?;
    let layer = |_, b: &Builder| {
        let place = b.at("self_attn");
        let output = attention.output("o_proj", &place)?;
        let qkv = attention.qkv("qkv_proj", &place)?;
        let attention = SelfAttention::fused(&attention, 1, [qkv, output], &place);
        let mlp = GatedMlp::fused(&mlp, ["gate_up_proj", "down_proj"], &b.at("mlp"))?;
        let ends = ["resid_attn_dropout", "resid_mlp_dropout"];
        let ends = ends.map(|name| BranchEnd::dropout(b.dropout(name, dropout)));
        Ok(llama::layer_of(attention, mlp, shape.norm, b)?.ending(ends))
    };
    let decoder = Decoder::build(&shape, &b.base(), layer)?;
    let decoder = match stretched {
        true => decoder.with_cache_limit(c.size(TRAINED)?),
        false => decoder,
    };
    llama::finish(c, task, decoder, b)
}

/// The field with the context before it was stretched.
const TRAINED: &str = "original_max_position_embeddings";

/// The config with the name that transformers gives to LongRoPE, which is `su` or even `yarn` in
/// early ones; and whether it is that.
fn with_kind_of_positions(c: &Config) -> Result<(Config, bool)> {
    let mut named = c.clone();
    let mut stretched = false;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(mut given) = c.object(key)? else { continue };
        let kind = if given.get("rope_type").is_some() { "rope_type" } else { "type" };
        match given.word(kind)? {
            None | Some("default") => continue,
            Some("longrope" | "su" | "yarn") => {}
            Some(_) => return Err(given.wrong(kind, "longrope, or `default`")),
        }
        given.set("rope_type", "longrope".into());
        named.set(key, given.fields().clone().into());
        stretched = true;
    }
    Ok((named, stretched))
}
