//! GPT-2: pre-norm blocks, learned positions, queries, keys and values from one layer.
//! Paper: Radford et al., 2019. Reference: transformers `models/gpt2/modeling_gpt2.py`.

use std::sync::Arc;

use lowrank_autograd::{
    Result as ComputeResult, Value,
    ops::{self, AttentionShape, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{Architecture, Parts};
use crate::{
    Builder, Cache, Config, Context, DropoutSite, Input, Network, Result, Sequences, Task,
    blocks::{
        feed_forward::FeedForward, fused_attention::FusedAttention, multi_head::divided_attention,
        positions::LearnedPositions, pre_norm::PreNorm,
    },
    network::run_blocks,
    task_heads::{DecoderHeads, decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt2",
    class: "GPT2",
    causal_lm: "LMHeadModel",
    prefixes: &["transformer"],
    paper: "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    build,
    ..Architecture::DECODER
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.switch_or("add_cross_attention", false)? {
        return Err(c.not_implemented("add_cross_attention", "false"));
    }
    let base = b.base();
    let hidden = c.size("n_embd")?;
    let blocks = (0..c.size("n_layer")?).map(|i| Block::build(c, i, &base.nth("h", i)));
    let network = Arc::new(Gpt2 {
        wte: base.embedding("wte", c.size("vocab_size")?, hidden)?,
        wpe: LearnedPositions::build("wpe", "n_positions", hidden, c, &base)?,
        drop: base.dropout("drop", c.probability_or("embd_pdrop", 0.1)?),
        h: blocks.collect::<Result<_>>()?,
        ln_f: base.layer_norm("ln_f", hidden, c.epsilon_or("layer_norm_epsilon", 1e-5)?)?,
    });
    let names =
        DecoderHeads { token_classifier: "classifier", token_dropout: ("hidden_dropout", 0.1) };
    let head = decoder_head(task, c, network.as_ref(), names, b)?;
    Ok((network, head))
}

#[derive(Clone, Debug)]
struct Gpt2 {
    wte: Embedding,
    wpe: LearnedPositions,
    drop: DropoutSite,
    h: Vec<Block>,
    ln_f: Norm,
}

#[derive(Clone, Debug)]
struct Block {
    ln_1: PreNorm,
    attn: FusedAttention,
    ln_2: PreNorm,
    mlp: FeedForward,
}

impl Block {
    fn build(c: &Config, index: usize, b: &Builder) -> Result<Self> {
        let hidden = c.size("n_embd")?;
        let inner = c.size_or("n_inner", 4 * hidden)?;
        let eps = c.epsilon_or("layer_norm_epsilon", 1e-5)?;
        let resid_pdrop = c.probability_or("resid_pdrop", 0.1)?;
        let pre_norm = |name, dropout| -> Result<PreNorm> {
            let norm = b.layer_norm(name, hidden, eps)?;
            Ok(PreNorm { norm, dropout: b.dropout(dropout, resid_pdrop) })
        };
        Ok(Self {
            ln_1: pre_norm("ln_1", "attn.resid_dropout")?,
            attn: FusedAttention {
                qkv: b.conv1d("attn.c_attn", hidden, 3 * hidden)?,
                output: b.conv1d("attn.c_proj", hidden, hidden)?,
                shape: attention(c, index)?,
                dropout: b.dropout("attn.attn_dropout", c.probability_or("attn_pdrop", 0.1)?),
            },
            ln_2: pre_norm("ln_2", "mlp.dropout")?,
            mlp: FeedForward::plain(
                b.conv1d("mlp.c_fc", hidden, inner)?,
                c.activation("activation_function", "gelu_new")?,
                b.conv1d("mlp.c_proj", inner, hidden)?,
            ),
        })
    }

    fn forward(
        &self,
        x: &Value,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> ComputeResult<Value> {
        let attn = |x: &Value| self.attn.forward(x, sequences, cache, pass);
        let x = self.ln_1.around(x, pass, attn)?;
        self.ln_2.around(&x, pass, |x| self.mlp.forward(x, pass))
    }
}

/// The attention of a layer. `reorder_and_upcast_attn` changes nothing where scores are f32.
fn attention(c: &Config, index: usize) -> Result<AttentionShape> {
    let shape = divided_attention(c, "n_embd", "n_head")?;
    let scale = if c.switch_or("scale_attn_weights", true)? { shape.scale } else { 1.0 };
    let by_layer = c.switch_or("scale_attn_by_inverse_layer_idx", false)?;
    let layer = if by_layer { (index + 1) as f32 } else { 1.0 };
    Ok(AttentionShape { causal: true, scale: scale / layer, ..shape })
}

impl Network for Gpt2 {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> ComputeResult<Value> {
        let sequences = &input.sequences;
        let mut x = self.wte.forward(&input.ids, pass)?;
        x = ops::add(&x, &self.wpe.forward(sequences, pass)?)?;
        if let Some(types) = &input.token_types {
            x = ops::add(&x, &self.wte.forward(types, pass)?)?;
        }
        x = self.drop.forward(&x, pass)?;
        x = run_blocks(&self.h, x, sequences, context.cache, pass, Block::forward)?;
        self.ln_f.forward(&x, pass)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.h.len(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.wte
    }
}
