//! GPT-J: attention and MLP beside each other after one norm, neighbouring elements of a head turn
//! together. Papers: Wang and Komatsuzaki, 2021; arXiv:2104.09864. Reference: transformers
//! `models/gptj/modeling_gptj.py`.

use lowrank_autograd::ops::RotaryStyle;
use lowrank_peft::layers::Linear;

use super::{
    Architecture, Parts,
    gpt2::{self, Gpt},
};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{
        CausalAttention, CausalBlock, Parallel, Positions, Projections, Rotary, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gptj",
    class: "GPTJ",
    tasks: &[Task::CausalLm, Task::SeqCls, Task::QuestionAns, Task::FeatureExtraction],
    prefixes: &["transformer"],
    paper: "https://github.com/kingoflolz/mesh-transformer-jax",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    build_with(c, task, b, |hidden, b| {
        let layer = |name| b.linear(name, hidden, hidden, false);
        let [k, v, q] = [layer("k_proj")?, layer("v_proj")?, layer("q_proj")?];
        Ok((Projections::Separate([q, k, v]), layer("out_proj")?))
    })
}

/// GPT-J with projections of another kind; `layers` builds them and the output layer at their
/// place, given the width.
pub(super) fn build_with(
    c: &Config,
    task: Task,
    b: &Builder,
    layers: impl Fn(usize, &Builder) -> Result<(Projections, Linear)>,
) -> Result<Parts> {
    let gpt = Gpt { c: &c.with_aliases(gpt2::ALIASES), dropout: 0.0 };
    let (hidden, eps) = (gpt.width()?, gpt.eps()?);
    let shape = causal_shape(gpt.c, "hidden_size", "num_attention_heads")?;
    let rotary = rotary(gpt.c, shape.head_dim)?;
    let network = gpt.decoder(
        || Ok(Positions::Rotary(rotary)),
        &b.base(),
        |_, b| {
            let norm = b.layer_norm("ln_1", hidden, eps)?;
            let wiring = Parallel::after(norm, gpt.residual_dropouts(b)?);
            let attn = b.at("attn");
            let (qkv, output) = layers(hidden, &attn)?;
            let dropout = gpt.attention_dropout(&attn)?;
            let attention = CausalAttention::new(qkv, output, shape.clone(), dropout);
            let attention = CausalAttention { rotary: RotaryStyle::Pairs, ..attention };
            let layer = |name: &str, input, out| b.linear(name, input, out, true);
            let mlp = gpt.mlp(["mlp.fc_in", "mlp.fc_out"], layer)?;
            Ok(CausalBlock::parallel(wiring, attention, mlp))
        },
    )?;
    let names = DecoderHeads { output_bias: true, tied: false, ..DecoderHeads::GENERIC };
    with_decoder_head(task, c, network, names, b)
}

fn rotary(c: &Config, head_dim: usize) -> Result<Rotary> {
    match c.size_or("rotary_dim", 64)? {
        dim if dim <= head_dim && dim.is_multiple_of(2) => Ok(Rotary::plain(10_000.0, dim)),
        _ => {
            let must_be = format!("an even number up to {head_dim}, the width of a head");
            Err(c.wrong("rotary_dim", must_be))
        }
    }
}
