//! Gemma 3, text alone: Gemma 2 with norms on query and key heads in place of the cap on scores, and
//! with two kinds of positions, one for the layers that slide and one for those that see everything.
//! Paper: arXiv:2503.19786. Reference: transformers `models/gemma3/modeling_gemma3.py`.

use super::{Architecture, Parts, gemma, gemma2};
use crate::{
    Builder, Config, NormShape, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::Decoder,
        head_norm::HeadNorm,
        layer_types::sliding_layers,
        rotary::Rotary,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gemma3_text",
    class: "Gemma3Text",
    causal_class: Some("Gemma3"),
    tasks: &[Task::CausalLm, Task::SeqCls, Task::FeatureExtraction],
    paper: "arXiv:2503.19786",
    build,
    ..gemma::ENTRY
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &gemma2::defaults(c).with_defaults([("rope_theta", 1e6.into())]);
    check_older_scaling(c)?;
    // `attn_logit_softcapping` has no effect in transformers either.
    let attention = gemma2::attention(c)?;
    let full = positions(c, "full_attention")?;
    let local = Rotary::whole(&positions(&local(c), "sliding_attention")?, attention.head_dim)?;
    let pattern = c.size_or("sliding_window_pattern", 6)?;
    let slides = sliding_layers(c, |i| (i + 1) % pattern != 0)?;
    let (mlp, shape) = (gemma2::mlp(c)?, gemma::decoder_shape(&full)?);
    let layer = |i: usize, b: &Builder| {
        let slides = slides.get(i) == Some(&true);
        let window = attention.window.filter(|_| slides);
        let place = b.at("self_attn");
        let attention = SelfAttentionShape { window, ..attention.clone() };
        let norm = NormShape { dim: attention.head_dim, ..shape.norm };
        let norm = |name| place.norm(name, norm).map(HeadNorm::Shared);
        let attention = SelfAttention::build(&attention, &place)?;
        let attention = attention.with_head_norms([norm("q_norm")?, norm("k_norm")?]);
        let layer = gemma2::layer(attention, &mlp, shape.norm, b)?;
        Ok(if slides { layer.turning_by(local.clone()) } else { layer })
    };
    gemma2::finish(c, task, Decoder::build(&shape, &b.base(), layer)?, b)
}

/// An error for the oldest name of a scaling's kind, which transformers doesn't read in this config:
/// it would take the positions as plain ones.
fn check_older_scaling(c: &Config) -> Result<()> {
    let Some(old) = c.object("rope_scaling")? else { return Ok(()) };
    let scales = old.word("type")?.is_some_and(|kind| kind != "default");
    match old.get("rope_type").is_none() && scales {
        true => Err(old.not_implemented("type", "the same under the name `rope_type`")),
        false => Ok(()),
    }
}

/// An error for YaRN's `truncate`, which transformers doesn't find in the positions of one kind.
fn check_truncation(given: Option<Config>) -> Result<()> {
    match given {
        Some(given) if !given.switch_or("truncate", true)? => {
            Err(given.not_implemented("truncate", "true"))
        }
        _ => Ok(()),
    }
}

/// The config as layers that slide read it where positions are spelled in the older way.
fn local(c: &Config) -> Config {
    let mut local = c.clone();
    local.remove("rope_scaling");
    local.set("rope_theta", c.get("rope_local_base_freq").cloned().unwrap_or(1e4.into()));
    local
}

/// The config with the positions of one kind of layer: `rope_parameters` has an object for each.
fn positions(c: &Config, kind: &str) -> Result<Config> {
    let mut own = c.clone();
    if let Some(kinds) = c.object("rope_parameters")? {
        if kinds.get("rope_theta").or(kinds.get("rope_type")).is_some() {
            let known = "an object for each of sliding_attention and full_attention";
            return Err(c.not_implemented("rope_parameters", known));
        }
        check_truncation(kinds.object(kind)?)?;
        own.set("rope_parameters", kinds.get(kind).cloned().unwrap_or_default());
    }
    check_truncation(c.object("rope_scaling")?)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_transformers_does_not_find_in_positions_is_refused() -> Result<()> {
        for place in ["rope_scaling", "rope_parameters"] {
            let yarn = r#"{"rope_type": "yarn", "truncate": false}"#;
            let of_kind = match place {
                "rope_scaling" => yarn.to_owned(),
                _ => format!(r#"{{"full_attention": {yarn}}}"#),
            };
            let text = format!(r#"{{"{place}": {of_kind}}}"#);
            let c = Config::parse("config.json".to_owned(), &text)?;
            let message = positions(&c, "full_attention").expect_err("truncate").to_string();
            assert!(message.contains("truncate` is `false`"), "{message}");
        }
        Ok(())
    }
}
