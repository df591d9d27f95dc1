//! Qwen1.5-MoE and Qwen2-MoE: Qwen2 with experts in some layers, one of which all tokens share.
//! Paper: arXiv:2407.10671. Reference: transformers `models/qwen2_moe/modeling_qwen2_moe.py`.

use super::{
    Architecture, Parts, llama,
    mixtral::{balance, softmax_routing},
    qwen2::named_windows,
};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::Decoder,
        experts::{ExpertNames, Experts, SharedExpert, SparseMlp},
        mlp::{GatedMlp, MlpShape},
        rotary::Rotary,
        router::Router,
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "qwen2_moe",
    class: "Qwen2Moe",
    paper: "arXiv:2407.10671",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_defaults([("num_key_value_heads", 16.into()), ("sliding_window", 4096.into())]);
    let bias = c.switch_or("qkv_bias", true)?;
    let attention = SelfAttentionShape { qkv_bias: bias, ..llama::attention(c)? };
    let last = c.number_or("max_window_layers", 28.0)?;
    // Older configs mean every other layer below that one.
    let windows = named_windows(c, |i| i.is_multiple_of(2) && (i as f64) < last)?;
    let shared_size = c.size_or("shared_expert_intermediate_size", 5632)?;
    let sizes = ExpertSizes { experts: c.size_or("num_experts", 60)?, inner: 1408, chosen: 4 };
    let shared = |mlp: MlpShape, b: &Builder| {
        let mlp = MlpShape { intermediate_size: shared_size, ..mlp };
        Ok(Some(SharedExpert {
            mlp: GatedMlp::build(&mlp, &b.at("shared_expert"))?,
            gate: Some(b.linear("shared_expert_gate", mlp.hidden_size, 1, false)?),
        }))
    };
    let attention = |i: usize| SelfAttentionShape {
        window: windows.get(i).copied().flatten(),
        ..attention.clone()
    };
    decoder(c, task, b, attention, sizes, shared)
}

/// Number of experts, and what transformers takes where a config says nothing.
pub(super) struct ExpertSizes {
    /// Experts.
    pub(super) experts: usize,
    /// Default of an expert's width.
    pub(super) inner: usize,
    /// Default of the experts that a token visits.
    pub(super) chosen: usize,
}

/// Blocks whose MLP is sparse where the config says so: every `decoder_sparse_step`-th, and not
/// those of `mlp_only_layers`. `shared` builds what all tokens share of one.
pub(super) fn decoder(
    c: &Config,
    task: Task,
    b: &Builder,
    attention: impl Fn(usize) -> SelfAttentionShape,
    sizes: ExpertSizes,
    shared: impl Fn(MlpShape, &Builder) -> Result<Option<SharedExpert>>,
) -> Result<Parts> {
    if c.number_or("router_jitter_noise", 0.0)? != 0.0 {
        return Err(c.not_implemented("router_jitter_noise", "0"));
    }
    let (experts, dense) = (sizes.experts, llama::mlp(c)?);
    let inner = c.size_or("moe_intermediate_size", sizes.inner)?;
    let sparse = MlpShape { intermediate_size: inner, ..dense };
    let normalized = c.switch_or("norm_topk_prob", false)?;
    let routing = softmax_routing(c, experts, sizes.chosen, normalized)?;
    let (step, only) = (c.size_or("decoder_sparse_step", 1)?, c.places("mlp_only_layers")?);
    let shape = llama::decoder_shape(c, Rotary::whole(c, attention(0).head_dim)?)?;
    let decoder = Decoder::build(&shape, &b.base(), |i, b| {
        if only.contains(&i) || !(i + 1).is_multiple_of(step) {
            return llama::layer(&attention(i), &dense, shape.norm, b);
        }
        let attention = SelfAttention::build(&attention(i), &b.at("self_attn"))?;
        let (place, names) = (b.at("mlp"), ExpertNames::PLAIN);
        let mlp = SparseMlp {
            router: Router::build(experts, dense.hidden_size, routing.clone(), &place)?,
            experts: Experts::build(experts, sparse, names, &place.at("experts"))?,
            shared: shared(dense, &place)?,
            jitter: None,
        };
        llama::layer_of(attention, mlp, shape.norm, b)
    })?;
    let decoder = decoder.with_balance(balance(c, task, experts, routing.chosen)?);
    llama::finish(c, task, decoder, b)
}
