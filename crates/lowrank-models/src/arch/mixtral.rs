//! Mixtral: Mistral with eight experts for an MLP, of which each token visits two.
//! Paper: arXiv:2401.04088. Reference: transformers `models/mixtral/modeling_mixtral.py`.

use lowrank_autograd::ops::{Routing, Score};

use super::{Architecture, Parts, llama};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        attention::{SelfAttention, SelfAttentionShape},
        decoder::Decoder,
        experts::{ExpertNames, Experts, SparseMlp},
        rotary::Rotary,
        router::{Balance, Router},
    },
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "mixtral",
    class: "Mixtral",
    paper: "arXiv:2401.04088",
    build,
    ..Architecture::DECODER
};

/// What files of any age call gate, up and down projection of an expert.
const NAMES: ExpertNames = ExpertNames(["w1", "w3", "w2"]);

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let c = &c.with_defaults([
        ("rope_theta", 1e6.into()),
        ("num_key_value_heads", 8.into()),
        ("rms_norm_eps", 1e-5.into()),
    ]);
    let attention =
        SelfAttentionShape { window: c.size_or_none("sliding_window")?, ..llama::attention(c)? };
    let (mlp, experts) =
        (llama::mlp(c)?, expert_count(c, ["num_experts", "num_local_experts"], 8)?);
    let routing = softmax_routing(c, experts, 2, true)?;
    let noise = c.probability_or("router_jitter_noise", 0.0)?;
    let shape = llama::decoder_shape(c, Rotary::whole(c, attention.head_dim)?)?;
    let decoder = Decoder::build(&shape, &b.base(), |_, b| {
        let attention = SelfAttention::build(&attention, &b.at("self_attn"))?;
        let place = b.at_filed("mlp", "block_sparse_moe");
        let jitter = (noise > 0.0).then(|| place.dropout("jitter", noise));
        let mlp = SparseMlp {
            router: Router::build(experts, mlp.hidden_size, routing.clone(), &place)?,
            experts: Experts::build(experts, mlp, NAMES, &place.at("experts"))?,
            shared: None,
            jitter,
        };
        llama::layer_of(attention, mlp, shape.norm, b)
    })?;
    let decoder = decoder.with_balance(balance(c, task, experts, routing.chosen)?);
    llama::finish(c, task, decoder, b)
}

/// The number of experts under the two names that transformers reads, the first of which counts
/// where a config has both.
pub(super) fn expert_count(
    c: &Config,
    [first, second]: [&str; 2],
    default: usize,
) -> Result<usize> {
    match c.size_or_none(first)? {
        Some(experts) => Ok(experts),
        None => c.size_or(second, default),
    }
}

/// What is added to the loss of a language model where the config asks for it.
pub(super) fn balance(
    c: &Config,
    task: Task,
    experts: usize,
    chosen: usize,
) -> Result<Option<Balance>> {
    let factor = c.number_or("router_aux_loss_coef", 0.001)? as f32;
    let asked = c.switch_or("output_router_logits", false)? && task == Task::CausalLm;
    Ok(asked.then_some(Balance { factor, experts, chosen }))
}

/// Routes by the softmax over all experts, to `default` of them unless the config says otherwise.
pub(super) fn softmax_routing(
    c: &Config,
    experts: usize,
    default: usize,
    normalized: bool,
) -> Result<Routing> {
    let chosen = c.size_or("num_experts_per_tok", default)?;
    if chosen > experts {
        let must_be = format!("at most {experts}, the number of experts");
        return Err(c.wrong("num_experts_per_tok", must_be));
    }
    let (score, scale) = (Score::Softmax, 1.0);
    Ok(Routing { score, chosen, normalized, scale, bias: None, groups: None })
}
