//! DeepSeek-V3 and R1: latent attention, and experts in groups with one that all tokens share.
//! Paper: arXiv:2412.19437. Reference: transformers `models/deepseek_v3/modeling_deepseek_v3.py`.

use lowrank_autograd::ops::{RotaryStyle, Routing, Score};

use super::{Architecture, OtherType, Parts, llama};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        decoder::Decoder,
        experts::{ExpertNames, Experts, SharedExpert, SparseMlp},
        latent_attention::{LatentAttention, LatentAttentionShape},
        mlp::{GatedMlp, MlpShape},
        rotary::Rotary,
        router::Router,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "deepseek_v3",
    other_types: &[OtherType { model_type: "kimi_k2", ..OtherType::REMOTE }],
    class: "DeepseekV3",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    paper: "arXiv:2412.19437",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_aliases(&[("num_local_experts", "n_routed_experts")]);
    check(c)?;
    let (attention, dense) = (attention(c)?, llama::mlp(c)?);
    let experts = c.size_or("num_local_experts", 256)?;
    let inner = c.size_or("moe_intermediate_size", 2048)?;
    let sparse = MlpShape { intermediate_size: inner, ..dense };
    let shared_size = inner * c.size_or("n_shared_experts", 1)?;
    let shared = MlpShape { intermediate_size: shared_size, ..dense };
    let routing = routing(c, experts)?;
    let first = c.number_or("first_k_dense_replace", 3.0)?;
    let shape = llama::decoder_shape(c, Rotary::whole(c, attention.rope_dim)?)?;
    let decoder = Decoder::build(&shape, &b.base(), |i, b| {
        let attention = LatentAttention::build(attention.clone(), &b.at("self_attn"))?;
        let place = b.at("mlp");
        if (i as f64) < first {
            return llama::layer_of(attention, GatedMlp::build(&dense, &place)?, shape.norm, b);
        }
        let router = Router::build(experts, dense.hidden_size, routing.clone(), &place)?;
        let bias = place.at("gate").buffer("e_score_correction_bias", experts)?;
        let mlp = GatedMlp::build(&shared, &place.at("shared_experts"))?;
        let mlp = SparseMlp {
            router: router.biased(bias),
            experts: Experts::build(experts, sparse, ExpertNames::PLAIN, &place.at("experts"))?,
            shared: Some(SharedExpert { mlp, gate: None }),
            jitter: None,
        };
        llama::layer_of(attention, mlp, shape.norm, b)
    })?;
    llama::finish(c, task, decoder, b)
}

/// Errors for the ways of the remote code that transformers doesn't have.
fn check(c: &Config) -> Result<()> {
    for (key, known) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if c.word(key)?.is_some_and(|found| found != known) {
            return Err(c.not_implemented(key, known));
        }
    }
    match c.size_or("moe_layer_freq", 1)? {
        1 => Ok(()),
        _ => Err(c.not_implemented("moe_layer_freq", "1")),
    }
}

fn attention(c: &Config) -> Result<LatentAttentionShape> {
    let heads = c.size("num_attention_heads")?;
    if c.size_or("num_key_value_heads", heads)? != heads {
        return Err(c.wrong("num_key_value_heads", format!("{heads}, the number of heads")));
    }
    let c = &c.with_defaults([("q_lora_rank", 1536.into())]);
    let (nope_dim, rope_dim) =
        (c.size_or("qk_nope_head_dim", 128)?, c.size_or("qk_rope_head_dim", 64)?);
    Ok(LatentAttentionShape {
        hidden_size: c.size("hidden_size")?,
        heads,
        q_lora_rank: c.size_or_none("q_lora_rank")?,
        kv_lora_rank: c.size_or("kv_lora_rank", 512)?,
        nope_dim,
        rope_dim,
        value_dim: c.size_or("v_head_dim", 128)?,
        rope_style: match c.switch_or("rope_interleave", true)? {
            true => RotaryStyle::Pairs,
            false => RotaryStyle::Halves,
        },
        scale: (score_factor(c)? / ((nope_dim + rope_dim) as f64).sqrt()) as f32,
        bias: c.switch_or("attention_bias", false)?,
        dropout: c.probability_or("attention_dropout", 0.0)?,
    })
}

/// Scores grow with a stretched context (YaRN, arXiv:2309.00071), once for queries and once for
/// keys.
fn score_factor(c: &Config) -> Result<f64> {
    let given = c.object("rope_parameters")?.or(c.object("rope_scaling")?);
    let Some(given) = given else { return Ok(1.0) };
    let kind = given.word("rope_type")?.or(given.word("type")?);
    let all = given.number_or("mscale_all_dim", 0.0)?;
    if kind.is_none_or(|kind| kind == "default") || all == 0.0 {
        return Ok(1.0);
    }
    let factor = given.number("factor")?.ok_or_else(|| given.wrong("factor", "a number"))?;
    let once = if factor <= 1.0 { 1.0 } else { 0.1 * all * factor.ln() + 1.0 };
    Ok(once * once)
}

fn routing(c: &Config, experts: usize) -> Result<Routing> {
    let (groups, open) = (c.size_or("n_group", 8)?, c.size_or("topk_group", 4)?);
    // The two best of each group are looked at.
    if !experts.is_multiple_of(groups) || experts / groups < 2 {
        return Err(c.wrong(
            "n_group",
            format!("such that {experts} experts fall into groups of at least 2"),
        ));
    }
    if open > groups {
        return Err(c.wrong("topk_group", format!("at most {groups}, the number of groups")));
    }
    let (chosen, most) = (c.size_or("num_experts_per_tok", 8)?, experts / groups * open);
    if chosen > most {
        let must_be = format!("at most {most}, the number of experts in `topk_group` groups");
        return Err(c.wrong("num_experts_per_tok", must_be));
    }
    Ok(Routing {
        score: Score::Sigmoid,
        chosen,
        normalized: c.switch_or("norm_topk_prob", true)?,
        scale: c.number_or("routed_scaling_factor", 2.5)? as f32,
        bias: None,
        groups: Some((groups, open)),
    })
}
