//! GPT-Neo: GPT-2 with layers that see only the last tokens, and scores that aren't scaled.
//! Paper: Black et al., 2021. Reference: transformers `models/gpt_neo/modeling_gpt_neo.py`.

use lowrank_autograd::ops::AttentionShape;
use serde_json::Value;

use super::{Architecture, Parts, gpt2::Gpt};
use crate::{
    Builder, Config, Result, Task,
    blocks::causal_decoder::{CausalAttention, Projections, causal_shape},
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt_neo",
    class: "GPTNeo",
    prefixes: &["transformer"],
    paper: "https://doi.org/10.5281/zenodo.5297715",
    build,
    ..Architecture::DECODER
};

/// What GPT-2's fields are called here.
const FIELDS: &[(&str, &str)] = &[
    ("num_attention_heads", "num_heads"),
    ("num_hidden_layers", "num_layers"),
    ("n_inner", "intermediate_size"),
    ("embd_pdrop", "embed_dropout"),
    ("attn_pdrop", "attention_dropout"),
    ("resid_pdrop", "resid_dropout"),
];

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let gpt = Gpt { c: &c.with_aliases(FIELDS), dropout: 0.0 };
    let windows = windows(gpt.c)?;
    let network = gpt.with_learned_positions(&b.base(), |i, b| {
        let window = windows.get(i).copied().flatten();
        let layer = |name: &str, input, out| b.linear(name, input, out, true);
        gpt.pre_norm_block(b, |b| attention(gpt, window, &b.at("attention")), layer)
    })?;
    let names = DecoderHeads {
        token_classifier: "classifier",
        token_dropout: ("classifier_dropout", 0.1),
        ..DecoderHeads::GENERIC
    };
    with_decoder_head(task, c, network, names, b)
}

fn attention(gpt: Gpt<'_>, window: Option<usize>, b: &Builder) -> Result<CausalAttention> {
    let hidden = gpt.width()?;
    let layer = |name, bias| b.linear(name, hidden, hidden, bias);
    let [k, v, q] = [layer("k_proj", false)?, layer("v_proj", false)?, layer("q_proj", false)?];
    let shape = causal_shape(gpt.c, "hidden_size", "num_attention_heads")?;
    let shape = AttentionShape { scale: 1.0, window, ..shape };
    let (output, dropout) = (layer("out_proj", true)?, gpt.attention_dropout(b)?);
    Ok(CausalAttention::new(Projections::Separate([q, k, v]), output, shape, dropout))
}

/// How many tokens each layer sees: `attention_types` holds lists of `global` and `local`, and how
/// often each is repeated.
fn windows(c: &Config) -> Result<Vec<Option<usize>>> {
    let (key, layers) = ("attention_types", c.size("num_hidden_layers")?);
    let must_be = || {
        let what = "a list such as [[[\"global\", \"local\"], 12]] of as many layers as";
        c.wrong(key, format!("{what} `num_layers`, which is {layers}"))
    };
    let default = serde_json::json!([[["global", "local"], 12]]);
    let window = c.size_or("window_size", 256)?;
    let mut windows = Vec::new();
    for item in c.get(key).unwrap_or(&default).as_array().ok_or_else(must_be)? {
        let kinds = item.get(0).and_then(Value::as_array).ok_or_else(must_be)?;
        let times = item.get(1).and_then(Value::as_u64).ok_or_else(must_be)?;
        for kind in (0..times.min(layers as u64)).flat_map(|_| kinds) {
            windows.push(match kind.as_str() {
                Some("global") => None,
                Some("local") => Some(window),
                _ => return Err(must_be()),
            });
        }
    }
    if windows.len() == layers { Ok(windows) } else { Err(must_be()) }
}
