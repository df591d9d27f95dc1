//! GPT-NeoX (Pythia): attention and MLP beside each other, each after its own norm; a part of each
//! head turns. Paper: arXiv:2204.06745. Reference: transformers
//! `models/gpt_neox/modeling_gpt_neox.py`.

use lowrank_autograd::ops::AttentionShape;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{
        CausalAttention, CausalBlock, CausalDecoder, FeedForward, Fused, Parallel, Positions,
        Projections, Residual, Rotary, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt_neox",
    class: "GPTNeoX",
    prefixes: &["gpt_neox"],
    file_names: &[("lm_head", "embed_out")],
    paper: "arXiv:2204.06745",
    build,
    ..Architecture::DECODER
};

/// What transformers 4 calls two fields.
const OLD_NAMES: &[(&str, &str)] =
    &[("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (base, hidden) = (b.base(), c.size("hidden_size")?);
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let rotary = c.with_defaults([("rotary_pct", 0.25.into())]).with_aliases(OLD_NAMES);
    let rotary = Rotary::from_config(&rotary, shape.head_dim)?;
    let embedding = base.embedding("embed_in", c.size("vocab_size")?, hidden)?;
    let layers = c.size("num_hidden_layers")?;
    let blocks = base.list("layers", layers, |_, b| block(c, &shape, b))?;
    let norm = base.layer_norm("final_layer_norm", hidden, eps(c)?)?;
    let network = CausalDecoder {
        dropout: Some(base.dropout("emb_dropout", c.probability_or("hidden_dropout", 0.0)?)),
        ..CausalDecoder::new(embedding, Positions::Rotary(rotary), blocks, Some(norm))
    };
    let names = DecoderHeads {
        token_classifier: "classifier",
        token_dropout: ("classifier_dropout", 0.1),
        tied: false,
        ..DecoderHeads::GENERIC
    };
    with_decoder_head(task, c, network, names, b)
}

fn eps(c: &Config) -> Result<f64> {
    c.epsilon_or("layer_norm_eps", 1e-5)
}

fn block(c: &Config, shape: &AttentionShape, b: &Builder) -> Result<CausalBlock> {
    let (hidden, inner) = (c.size("hidden_size")?, c.size("intermediate_size")?);
    let norm = |name| b.layer_norm(name, hidden, eps(c)?);
    let [first, second] = [norm("input_layernorm")?, norm("post_attention_layernorm")?];
    let attention = attention(c, shape, hidden, &b.at("attention"))?;
    let layers = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"];
    let activation = c.activation("hidden_act", "gelu")?;
    let mlp = FeedForward::linear(layers, [hidden, inner], true, activation, b)?;
    let p = c.probability_or("hidden_dropout", 0.0)?;
    let dropouts = ["post_attention_dropout", "post_mlp_dropout"].map(|name| b.dropout(name, p));
    if c.switch_or("use_parallel_residual", true)? {
        let wiring = Parallel { mlp_norm: Some(second), ..Parallel::after(first, dropouts) };
        return Ok(CausalBlock::parallel(wiring, attention, mlp));
    }
    let first = (Residual::pre(first, dropouts[0]), attention);
    Ok(CausalBlock::sequential(first, (Residual::pre(second, dropouts[1]), mlp)))
}

fn attention(
    c: &Config,
    shape: &AttentionShape,
    hidden: usize,
    b: &Builder,
) -> Result<CausalAttention> {
    let bias = c.switch_or("attention_bias", true)?;
    let qkv = b.linear("query_key_value", hidden, 3 * hidden, bias)?;
    let qkv = Projections::Fused(Fused::new(qkv, shape.heads));
    let output = b.linear("dense", hidden, hidden, bias)?;
    let dropout = b.dropout("dropout", c.probability_or("attention_dropout", 0.0)?);
    Ok(CausalAttention::new(qkv, output, shape.clone(), dropout))
}
