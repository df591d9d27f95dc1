//! GPT-2: pre-norm blocks, learned positions, queries, keys and values from one layer.
//! Paper: Radford et al., 2019. Reference: transformers `models/gpt2/modeling_gpt2.py`.

use lowrank_autograd::ops::AttentionShape;
use lowrank_peft::layers::Linear;

use super::{Architecture, OtherType, Parts};
use crate::{
    Builder, Config, DropoutSite, Result, Task,
    blocks::causal_decoder::{
        CausalAttention, CausalBlock, CausalDecoder, FeedForward, Fused, LearnedPositions,
        Positions, Projections, Residual, causal_shape,
    },
    task_heads::{DecoderHeads, with_decoder_head},
};

pub(super) const ENTRY: Architecture = Architecture {
    model_type: "gpt2",
    other_types: &[OtherType { model_type: "gpt-sw3", known: true, ..OtherType::REMOTE }],
    class: "GPT2",
    causal_lm: "LMHeadModel",
    prefixes: &["transformer"],
    paper: "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    build,
    ..Architecture::DECODER
};

/// Other names of the fields that say how large the model is.
pub(super) const ALIASES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
    ("max_position_embeddings", "n_positions"),
];

/// A config of GPT-2's fields, and the dropout where it names none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gpt<'a> {
    pub(super) c: &'a Config,
    pub(super) dropout: f64,
}

fn build(c: &Config, task: Task, b: &Builder) -> Result<Parts> {
    let gpt = Gpt { c: &c.with_aliases(ALIASES), dropout: 0.1 };
    let hidden = gpt.width()?;
    let network = gpt.with_learned_positions(&b.base(), |i, b| {
        let attention = |b: &Builder| {
            let qkv = Fused::new(b.conv1d("c_attn", hidden, 3 * hidden)?, 1);
            let output = b.conv1d("c_proj", hidden, hidden)?;
            let (shape, dropout) = (attention(gpt.c, i)?, gpt.attention_dropout(b)?);
            Ok(CausalAttention::new(Projections::Fused(qkv), output, shape, dropout))
        };
        gpt.pre_norm_block(b, attention, |name, input, out| b.conv1d(name, input, out))
    })?;
    finish(c, task, network, b)
}

/// The decoder with its head.
pub(super) fn finish(c: &Config, task: Task, network: CausalDecoder, b: &Builder) -> Result<Parts> {
    let names = DecoderHeads { token_classifier: "classifier", ..DecoderHeads::GENERIC };
    with_decoder_head(task, c, network, names, b)
}

/// The attention of a layer. `reorder_and_upcast_attn` changes nothing where scores are f32.
pub(super) fn attention(c: &Config, index: usize) -> Result<AttentionShape> {
    if c.switch_or("add_cross_attention", false)? {
        return Err(c.not_implemented("add_cross_attention", "false"));
    }
    let shape = causal_shape(c, "hidden_size", "num_attention_heads")?;
    let scale = if c.switch_or("scale_attn_weights", true)? { shape.scale } else { 1.0 };
    let by_layer = c.switch_or("scale_attn_by_inverse_layer_idx", false)?;
    let layer = if by_layer { (index + 1) as f32 } else { 1.0 };
    Ok(AttentionShape { scale: scale / layer, ..shape })
}

impl Gpt<'_> {
    /// Width of the residual stream.
    pub(super) fn width(self) -> Result<usize> {
        self.c.size("hidden_size")
    }

    /// [`Gpt::decoder`] with a table of positions.
    pub(super) fn with_learned_positions(
        self,
        b: &Builder,
        block: impl Fn(usize, &Builder) -> Result<CausalBlock>,
    ) -> Result<CausalDecoder> {
        let wpe =
            || LearnedPositions::build("wpe", "max_position_embeddings", self.width()?, self.c, b);
        self.decoder(|| Ok(Positions::Learned(wpe()?)), b, block)
    }

    /// The decoder at `b`; `block` builds a block at its place, given its number.
    pub(super) fn decoder(
        self,
        positions: impl FnOnce() -> Result<Positions>,
        b: &Builder,
        block: impl Fn(usize, &Builder) -> Result<CausalBlock>,
    ) -> Result<CausalDecoder> {
        let (c, hidden) = (self.c, self.width()?);
        let embedding = b.embedding("wte", c.size("vocab_size")?, hidden)?;
        let positions = positions()?;
        let blocks = b.list("h", c.size("num_hidden_layers")?, block)?;
        let norm = b.layer_norm("ln_f", hidden, self.eps()?)?;
        Ok(CausalDecoder {
            token_types: true,
            dropout: Some(b.dropout("drop", c.probability_or("embd_pdrop", self.dropout)?)),
            ..CausalDecoder::new(embedding, positions, blocks, Some(norm))
        })
    }

    /// A block with norms before attention and MLP; `attention` and `layer` build what is in it.
    pub(super) fn pre_norm_block(
        self,
        b: &Builder,
        attention: impl FnOnce(&Builder) -> Result<CausalAttention>,
        layer: impl Fn(&str, usize, usize) -> Result<Linear>,
    ) -> Result<CausalBlock> {
        let (hidden, eps) = (self.width()?, self.eps()?);
        let [first, second] = self.residual_dropouts(b)?;
        let around = |name, dropout| -> Result<Residual> {
            Ok(Residual::pre(b.layer_norm(name, hidden, eps)?, dropout))
        };
        let first = (around("ln_1", first)?, attention(&b.at("attn"))?);
        let second = (around("ln_2", second)?, self.mlp(["mlp.c_fc", "mlp.c_proj"], layer)?);
        Ok(CausalBlock::sequential(first, second))
    }

    /// Epsilon of all norms.
    pub(super) fn eps(self) -> Result<f64> {
        self.c.epsilon_or("layer_norm_epsilon", 1e-5)
    }

    /// Dropout on the probabilities of the attention at `b`.
    pub(super) fn attention_dropout(self, b: &Builder) -> Result<DropoutSite> {
        Ok(b.dropout("attn_dropout", self.c.probability_or("attn_pdrop", self.dropout)?))
    }

    /// Dropout on what attention and MLP add.
    pub(super) fn residual_dropouts(self, b: &Builder) -> Result<[DropoutSite; 2]> {
        let p = self.c.probability_or("resid_pdrop", self.dropout)?;
        Ok(["attn.resid_dropout", "mlp.dropout"].map(|name| b.dropout(name, p)))
    }

    /// The MLP of two layers, which `layer` builds.
    pub(super) fn mlp(
        self,
        [up, down]: [&str; 2],
        layer: impl Fn(&str, usize, usize) -> Result<Linear>,
    ) -> Result<FeedForward> {
        let hidden = self.width()?;
        let inner = self.c.size_or("n_inner", 4 * hidden)?;
        let activation = self.c.activation("activation_function", "gelu_new")?;
        Ok(FeedForward::plain(layer(up, hidden, inner)?, activation, layer(down, inner, hidden)?))
    }
}
