//! GPT-2: pre-norm blocks, learned positions, queries, keys and values from one layer.
//! Paper: "Language Models are Unsupervised Multitask Learners" (2019). Reference: transformers
//! `models/gpt2/modeling_gpt2.py`.

use std::sync::Arc;

use lowrank_autograd::{
    Result as ComputeResult, Value,
    ops::{self, AttentionShape, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Norm},
};

use super::{Architecture, Family, Parts};
use crate::{
    Builder, Cache, Config, Context, DropoutSite, Input, Network, Result, Sequences, Task,
    blocks::{
        feed_forward::FeedForward, fused_attention::FusedAttention,
        multi_head::divided_attention, positions::LearnedPositions,
    },
    recompute_block,
    task_heads::{DECODER_TASKS, DecoderHeads, decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt2",
    family: Family::Decoder,
    tasks: DECODER_TASKS,
    prefixes: &["transformer"],
    paper: "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    class: |task| match task {
        Task::CausalLm => Some("GPT2LMHeadModel"),
        Task::SeqCls => Some("GPT2ForSequenceClassification"),
        Task::TokenCls => Some("GPT2ForTokenClassification"),
        Task::QuestionAns => Some("GPT2ForQuestionAnswering"),
        Task::FeatureExtraction => Some("GPT2Model"),
        _ => None,
    },
    build,
};

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    if c.switch_or("add_cross_attention", false)? {
        return Err(c.not_implemented("add_cross_attention", "false"));
    }
    let base = if task == Task::FeatureExtraction { "" } else { "transformer" };
    let network = Arc::new(Gpt2::build(c, &b.at(base))?);
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
    ln_1: Norm,
    attn: FusedAttention,
    ln_2: Norm,
    mlp: FeedForward,
    attn_dropout: DropoutSite,
    mlp_dropout: DropoutSite,
}

impl Block {
    fn build(c: &Config, index: usize, b: &Builder) -> Result<Self> {
        let hidden = c.size("n_embd")?;
        let inner = c.size_or("n_inner", 4 * hidden)?;
        let norm = |name| b.layer_norm(name, hidden, c.epsilon_or("layer_norm_epsilon", 1e-5)?);
        let resid_pdrop = c.probability_or("resid_pdrop", 0.1)?;
        Ok(Self {
            ln_1: norm("ln_1")?,
            attn: FusedAttention {
                qkv: b.conv1d("attn.c_attn", hidden, 3 * hidden)?,
                output: b.conv1d("attn.c_proj", hidden, hidden)?,
                shape: attention(c, index)?,
                dropout: b.dropout("attn.attn_dropout", c.probability_or("attn_pdrop", 0.1)?),
            },
            ln_2: norm("ln_2")?,
            mlp: FeedForward {
                gate: None,
                up: b.conv1d("mlp.c_fc", hidden, inner)?,
                activation: c.activation("activation_function", "gelu_new")?,
                dropout: None,
                down: b.conv1d("mlp.c_proj", inner, hidden)?,
            },
            attn_dropout: b.dropout("attn.resid_dropout", resid_pdrop),
            mlp_dropout: b.dropout("mlp.dropout", resid_pdrop),
        })
    }

    fn forward(
        &self,
        x: &Value,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> ComputeResult<Value> {
        let mixed = self.attn.forward(&self.ln_1.forward(x, pass)?, sequences, cache, pass)?;
        let x = ops::add(x, &self.attn_dropout.forward(&mixed, pass)?)?;
        let y = self.mlp.forward(&self.ln_2.forward(&x, pass)?, pass)?;
        ops::add(&x, &self.mlp_dropout.forward(&y, pass)?)
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

impl Gpt2 {
    fn build(c: &Config, b: &Builder) -> Result<Self> {
        let hidden = c.size("n_embd")?;
        let (wte, wpe) = (
            b.embedding("wte", c.size("vocab_size")?, hidden)?,
            LearnedPositions::build("wpe", "n_positions", hidden, c, b)?,
        );
        let h = (0..c.size("n_layer")?).map(|i| Block::build(c, i, &b.nth("h", i)));
        Ok(Self {
            wte,
            wpe,
            drop: b.dropout("drop", c.probability_or("embd_pdrop", 0.1)?),
            h: h.collect::<Result<_>>()?,
            ln_f: b.layer_norm("ln_f", hidden, c.epsilon_or("layer_norm_epsilon", 1e-5)?)?,
        })
    }
}

impl Network for Gpt2 {
    fn forward(
        &self,
        input: &Input,
        mut context: Context<'_>,
        pass: &Pass,
    ) -> ComputeResult<Value> {
        let sequences = &input.sequences;
        let mut x = self.wte.forward(&input.ids, pass)?;
        x = ops::add(&x, &self.wpe.forward(sequences, pass)?)?;
        if let Some(types) = &input.token_types {
            x = ops::add(&x, &self.wte.forward(types, pass)?)?;
        }
        x = self.drop.forward(&x, pass)?;
        for (i, block) in self.h.iter().enumerate() {
            x = match context.cache.as_deref_mut() {
                Some(cache) => block.forward(&x, sequences, Some(cache.layer(i)), pass)?,
                None => {
                    let (block, sequences, own) = (block.clone(), sequences.clone(), pass.clone());
                    recompute_block(pass, &[&x], move |x| {
                        block.forward(&x[0], &sequences, None, &own)
                    })?
                }
            };
        }
        self.ln_f.forward(&x, pass)
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.h.len(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.wte
    }
}
