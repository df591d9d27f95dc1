//! OPT: GPT-3's layout; norms before or, in the 350m model, after attention and MLP, with
//! embeddings that are narrower than the blocks. Paper: arXiv:2205.01068. Reference: transformers
//! `models/opt/modeling_opt.py`.

use lowrank_peft::layers::Norm;

use super::{Architecture, Parts};
use crate::{
    Builder, Config, Result, Task,
    blocks::{
        causal_decoder::{
            CausalAttention, CausalBlock, CausalDecoder, FeedForward, LearnedPositions, Positions,
            Projections, Residual, causal_shape,
        },
        post_norm::PostNorm,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "opt",
    class: "OPT",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::QuestionAns, Task::FeatureExtraction],
    pad_token_id: Some(1),
    paper: "arXiv:2205.01068",
    build,
    ..Architecture::DECODER
};

/// Rows of the table of positions that come before the first one.
const OFFSET: u32 = 2;

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.number_or("layerdrop", 0.0)? != 0.0 {
        return Err(c.not_implemented("layerdrop", "0"));
    }
    let (base, hidden) = (b.base().at("decoder"), c.size("hidden_size")?);
    let width = c.size_or("word_embed_proj_dim", hidden)?;
    let (words, padding) = (c.size("vocab_size")?, c.padding_row()?);
    let embedding = base.padded_embedding("embed_tokens", words, width, padding)?;
    let (table, field) = ("embed_positions", "max_position_embeddings");
    let positions = LearnedPositions::counting_tokens(table, field, (hidden, OFFSET), c, &base)?;
    let project =
        |name, from, to| (width != hidden).then(|| base.linear(name, from, to, false)).transpose();
    let [project_out, project_in] =
        [project("project_out", hidden, width)?, project("project_in", width, hidden)?];
    let has_norm = c.switch_or("do_layer_norm_before", true)?
        && !c.switch_or("_remove_final_layer_norm", false)?;
    let last = has_norm.then(|| norm("final_layer_norm", c, &base)).transpose()?;
    let blocks = base.list("layers", c.size("num_hidden_layers")?, |_, b| block(c, b))?;
    let network = CausalDecoder {
        project_in,
        project_out,
        ..CausalDecoder::new(embedding, Positions::Learned(positions), blocks, last)
    };
    with_decoder_head(task, c, network, DecoderHeads::GENERIC, b)
}

fn norm(name: &str, c: &Config, b: &Builder) -> Result<Norm> {
    let (hidden, eps) = (c.size("hidden_size")?, 1e-5);
    match c.switch_or("layer_norm_elementwise_affine", true)? {
        true => b.layer_norm(name, hidden, eps),
        false => b.plain_layer_norm(name, hidden, eps),
    }
}

fn block(c: &Config, b: &Builder) -> Result<CausalBlock> {
    let (hidden, inner) = (c.size("hidden_size")?, c.size("ffn_dim")?);
    let bias = c.switch_or("enable_bias", true)?;
    let attn = b.at("self_attn");
    let layer = |name| attn.linear(name, hidden, hidden, bias);
    let [k, v, q] = [layer("k_proj")?, layer("v_proj")?, layer("q_proj")?];
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let dropout = attn.dropout("dropout", c.probability_or("attention_dropout", 0.0)?);
    let (qkv, output) = (Projections::Separate([q, k, v]), layer("out_proj")?);
    let attention = CausalAttention::new(qkv, output, shape, dropout);
    let first = (residual("self_attn_layer_norm", c, b)?, attention);
    let activation = c.activation("activation_function", "relu")?;
    let mlp = FeedForward::linear(["fc1", "fc2"], [hidden, inner], bias, activation, b)?;
    Ok(CausalBlock::sequential(first, (residual("final_layer_norm", c, b)?, mlp)))
}

fn residual(name: &str, c: &Config, b: &Builder) -> Result<Residual> {
    let p = c.probability_or("dropout", 0.1)?;
    let (norm, dropout) = (norm(name, c, b)?, b.dropout(&format!("{name}.dropout"), p));
    Ok(match c.switch_or("do_layer_norm_before", true)? {
        true => Residual::pre(norm, dropout),
        false => Residual::Post(PostNorm { norm, dropout }),
    })
}
