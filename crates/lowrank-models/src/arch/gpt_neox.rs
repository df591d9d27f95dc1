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

/// What two fields are called beside `rope_parameters`, where transformers doesn't read them under
/// the names that they have within.
const OUTER_NAMES: [(&str, &str); 2] =
    [("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (base, hidden) = (b.base(), c.size("hidden_size")?);
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let rotary = rotary(c, shape.head_dim)?;
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

fn rotary(c: &Config, head_dim: usize) -> Result<Rotary> {
    // transformers' positions heed it, and its projections don't.
    if c.size_or("head_dim", head_dim)? != head_dim {
        let must_be = format!("{head_dim}, which is `hidden_size` over `num_attention_heads`");
        return Err(c.wrong("head_dim", must_be));
    }
    let mut c = c.with_defaults([("rotary_pct", 0.25.into())]);
    for (outer, inner) in OUTER_NAMES {
        c.remove(inner);
        c.rename(outer, inner);
    }
    Rotary::from_config(&c, head_dim)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_have_names_of_their_own_outside() -> Result<()> {
        let read = |text: &str| Config::parse("config.json".to_owned(), text);
        let outer = r#"{"rotary_pct": 0.5, "partial_rotary_factor": 1.0, "rotary_emb_base": 50,
            "rope_theta": 900}"#;
        assert_eq!(rotary(&read(outer)?, 8)?, Rotary::plain(50.0, 4));
        let none = r#"{"partial_rotary_factor": 1.0, "rope_theta": 900}"#;
        assert_eq!(rotary(&read(none)?, 8)?, Rotary::plain(10_000.0, 2));
        let message = rotary(&read(r#"{"head_dim": 16}"#)?, 8).expect_err("8 wide").to_string();
        assert!(message.contains("`head_dim` is `16`"), "{message}");
        Ok(())
    }
}
