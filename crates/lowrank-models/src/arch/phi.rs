//! Phi (1, 1.5 and 2): attention and MLP beside each other after one norm, a part of each head
//! turns. Paper: arXiv:2306.11644. Reference: transformers `models/phi/modeling_phi.py`.

use lowrank_autograd::ops::AttentionShape;
use lowrank_peft::layers::Norm;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{
        CausalAttention, CausalBlock, CausalDecoder, FeedForward, HeadNorm, Parallel, Positions,
        Projections, Rotary, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "phi",
    class: "Phi",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::TokenCls, Task::FeatureExtraction],
    paper: "arXiv:2306.11644",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let (base, hidden) = (b.base(), c.size("hidden_size")?);
    let shape = attention_shape(c)?;
    let rotary = c.with_defaults([("partial_rotary_factor", 0.5.into())]);
    let rotary = Rotary::from_config(&rotary, shape.head_dim)?;
    let (words, padding) = (c.size("vocab_size")?, c.padding_row()?);
    let embedding = base.padded_embedding("embed_tokens", words, hidden, padding)?;
    let layers = c.size("num_hidden_layers")?;
    let blocks = base.list("layers", layers, |_, b| block(c, &shape, b))?;
    let norm = norm("final_layernorm", hidden, c, &base)?;
    let network = CausalDecoder {
        dropout: Some(base.dropout("embed_dropout", c.probability_or("embd_pdrop", 0.0)?)),
        ..CausalDecoder::new(embedding, Positions::Rotary(rotary), blocks, Some(norm))
    };
    let names = DecoderHeads { output_bias: true, tied: false, ..DecoderHeads::GENERIC };
    with_decoder_head(task, c, network, names, b)
}

fn attention_shape(c: &Config) -> Result<AttentionShape> {
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let kv_heads = c.size_or("num_key_value_heads", shape.heads)?;
    if !shape.heads.is_multiple_of(kv_heads) {
        let must_be = format!("a divisor of {} heads", shape.heads);
        return Err(c.wrong("num_key_value_heads", must_be));
    }
    let head_dim = c.size_or("head_dim", shape.head_dim)?;
    let scale = (head_dim as f32).sqrt().recip();
    Ok(AttentionShape { kv_heads, head_dim, value_dim: head_dim, scale, ..shape })
}

fn norm(name: &str, dim: usize, c: &Config, b: &Builder) -> Result<Norm> {
    b.layer_norm(name, dim, c.epsilon_or("layer_norm_eps", 1e-5)?)
}

fn attention(c: &Config, shape: &AttentionShape, b: &Builder) -> Result<CausalAttention> {
    let hidden = c.size("hidden_size")?;
    let [queries, keys] = [shape.heads, shape.kv_heads].map(|heads| heads * shape.head_dim);
    let qkv = [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)];
    let [q, k, v] = qkv.map(|(name, out)| b.linear(name, hidden, out, true));
    let qkv = Projections::Separate([q?, k?, v?]);
    let output = b.linear("dense", queries, hidden, true)?;
    let dropout = b.dropout("dropout", c.probability_or("attention_dropout", 0.0)?);
    let norm = |name| norm(name, shape.head_dim, c, b).map(HeadNorm::Shared);
    let head_norms = match c.switch_or("qk_layernorm", false)? {
        true => Some([norm("q_layernorm")?, norm("k_layernorm")?]),
        false => None,
    };
    let plain = CausalAttention::new(qkv, output, shape.clone(), dropout);
    Ok(CausalAttention { head_norms, ..plain })
}

fn block(c: &Config, shape: &AttentionShape, b: &Builder) -> Result<CausalBlock> {
    let (hidden, inner) = (c.size("hidden_size")?, c.size("intermediate_size")?);
    let attention = attention(c, shape, &b.at("self_attn"))?;
    let activation = c.activation("hidden_act", "gelu_new")?;
    let mlp = FeedForward::linear(["mlp.fc1", "mlp.fc2"], [hidden, inner], true, activation, b)?;
    let p = c.probability_or("resid_pdrop", 0.0)?;
    let dropouts = ["self_attn.resid_dropout", "mlp.resid_dropout"].map(|at| b.dropout(at, p));
    let wiring = Parallel::after(norm("input_layernorm", hidden, c, b)?, dropouts);
    Ok(CausalBlock::parallel(wiring, attention, mlp))
}
