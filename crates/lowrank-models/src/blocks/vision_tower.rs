//! A vision transformer: an image's patches as tokens behind one that stands for the whole. Paper:
//! arXiv:2010.11929. Reference: transformers `models/blip_2/modeling_blip_2.py`,
//! `Blip2VisionModel`.

use std::sync::Arc;

use candle_core::Tensor;
use lowrank_autograd::{
    Result, Value,
    ops::{self, AttentionShape, KeyValues, Matrix},
};
use lowrank_peft::{
    Pass,
    layers::{Bare, Linear, Norm},
};

use super::{feed_forward::FeedForward, multi_head::divided_attention, pre_norm::PreNorm};
use crate::{Builder, Config, DropoutSite, Encoded, Sequences, network::run_blocks};

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Embeddings of patches, blocks and final norm.
#[derive(Clone, Debug)]
pub struct VisionTower {
    class_embedding: Bare,
    /// A convolution whose steps are as wide as its kernel: a linear layer of a patch's pixels.
    patch_embedding: [Bare; 2],
    position_embedding: Bare,
    layers: Vec<Block>,
    post_layernorm: Norm,
    hidden_size: usize,
    image_size: usize,
    patch_size: usize,
}

#[derive(Clone, Debug)]
struct Block {
    qkv: Linear,
    projection: Linear,
    shape: AttentionShape,
    dropout: DropoutSite,
    around_attention: PreNorm,
    mlp: FeedForward,
    around_mlp: PreNorm,
}

impl Block {
    fn build(c: &Config, b: &Builder) -> crate::Result<Self> {
        let (hidden, inner) = (c.size("hidden_size")?, c.size("intermediate_size")?);
        let pre_norm = |name: &str| -> crate::Result<PreNorm> {
            let norm = b.layer_norm(name, hidden, c.epsilon_or("layer_norm_eps", 1e-6)?)?;
            Ok(PreNorm { norm, dropout: b.dropout(name, 0.0) })
        };
        let attn = b.at("self_attn");
        Ok(Self {
            qkv: attn.linear("qkv", hidden, 3 * hidden, c.switch_or("qkv_bias", true)?)?,
            projection: attn.linear("projection", hidden, hidden, true)?,
            shape: divided_attention(c, "hidden_size", "num_attention_heads")?,
            dropout: attn.dropout("dropout", c.probability_or("attention_dropout", 0.0)?),
            around_attention: pre_norm("layer_norm1")?,
            mlp: FeedForward::plain(
                b.linear("mlp.fc1", hidden, inner, true)?,
                c.activation("hidden_act", "gelu")?,
                b.linear("mlp.fc2", inner, hidden, true)?,
            ),
            around_mlp: pre_norm("layer_norm2")?,
        })
    }

    fn attend(&self, x: &Value, sequences: &Sequences, pass: &Pass) -> Result<Value> {
        let qkv = self.qkv.forward(x, pass)?;
        let width = self.shape.heads * self.shape.head_dim;
        let part = |i: usize| ops::columns(&qkv, i * width..(i + 1) * width);
        let (q, k, v, mask) = (part(0)?, part(1)?, part(2)?, self.dropout.mask(pass));
        let mixed = ops::attention(&q, &k, &v, None, &self.shape, &sequences.spans, mask)?;
        self.projection.forward(&mixed, pass)
    }

    fn forward(
        &self,
        x: &Value,
        sequences: &Sequences,
        _: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let x = self.around_attention.around(x, pass, |x| self.attend(x, sequences, pass))?;
        self.around_mlp.around(&x, pass, |x| self.mlp.forward(x, pass))
    }
}

impl VisionTower {
    /// The tower at `b`.
    ///
    /// # Errors
    /// When a tensor is missing or misshapen, or a config field wrong.
    pub fn build(c: &Config, b: &Builder) -> crate::Result<Self> {
        let (hidden_size, eps) = (c.size("hidden_size")?, c.epsilon_or("layer_norm_eps", 1e-6)?);
        let (image_size, patch_size) = (c.size("image_size")?, c.size("patch_size")?);
        if patch_size > image_size {
            return Err(c.wrong("patch_size", format!("at most `image_size`, {image_size}")));
        }
        let patches = (image_size / patch_size).pow(2);
        let place = b.at("embeddings");
        let kernel = [hidden_size, CHANNELS, patch_size, patch_size];
        Ok(Self {
            class_embedding: place.parameter("class_embedding", &[1, 1, hidden_size])?,
            position_embedding: place
                .parameter("position_embedding", &[1, patches + 1, hidden_size])?,
            patch_embedding: [
                place.parameter("patch_embedding.weight", &kernel)?,
                place.parameter("patch_embedding.bias", &[hidden_size])?,
            ],
            layers: (0..c.size("num_hidden_layers")?)
                .map(|i| Block::build(c, &b.nth("encoder.layers", i)))
                .collect::<crate::Result<_>>()?,
            post_layernorm: b.layer_norm("post_layernorm", hidden_size, eps)?,
            hidden_size,
            image_size,
            patch_size,
        })
    }

    /// What it sees in `images` `[batch, 3, image_size, image_size]`: `[batch·tokens, hidden_size]`.
    /// `rows` are those of `pass` on which each image's dropout depends.
    ///
    /// # Errors
    /// When the images have another size.
    pub fn forward(&self, images: &Tensor, rows: &[usize], pass: &Pass) -> Result<Encoded> {
        let grid = self.image_size / self.patch_size;
        let (batch, tokens) = (rows.len(), grid * grid + 1);
        let pass = pass.for_parts(rows, tokens);
        let patches = self.embed(&self.patches(images, batch)?, &pass)?;
        let vectors = ops::concat_rows(&[&self.class_embedding.rows(&pass)?, &patches])?;
        let token = |i: usize| if i.is_multiple_of(tokens) { 0 } else { i - i / tokens };
        let order: Arc<[usize]> = (0..batch * tokens).map(token).collect();
        let places: Arc<[usize]> = (0..batch * tokens).map(|i| i % tokens).collect();
        let positions = ops::select_rows(&self.position_embedding.rows(&pass)?, &places)?;
        let x = ops::add(&ops::select_rows(&vectors, &order)?, &positions)?;
        let sequences = Sequences::packed(&vec![tokens; batch]);
        let x = run_blocks(&self.layers, x, &sequences, None, &pass, Block::forward)?;
        Ok(Encoded { hidden: self.post_layernorm.forward(&x, &pass)?, sequences, pass })
    }

    /// The pixels of every patch, `[batch·patches, 3·patch_size²]`.
    fn patches(&self, images: &Tensor, batch: usize) -> Result<Tensor> {
        let (size, patch) = (self.image_size, self.patch_size);
        if images.dims() != [batch, CHANNELS, size, size] {
            let what = format!(
                "the images have shape {:?}; {batch} texts need [{batch}, {CHANNELS}, {size}, {size}]",
                images.dims()
            );
            return Err(candle_core::Error::Msg(what).into());
        }
        let grid = size / patch;
        let whole = images.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?;
        let cut = whole.reshape(vec![batch, CHANNELS, grid, patch, grid, patch])?;
        let cut = cut.permute(vec![0, 2, 4, 1, 3, 5])?.contiguous()?;
        Ok(cut.reshape((batch * grid * grid, CHANNELS * patch * patch))?)
    }

    fn embed(&self, patches: &Tensor, pass: &Pass) -> Result<Value> {
        let [weight, bias] = &self.patch_embedding;
        let pixels = patches.dims().last().copied().unwrap_or_default();
        let value = &ops::reshape(&weight.value(pass)?, &[self.hidden_size, pixels])?;
        let matrix = Matrix::Trained { value, transposed: false };
        let patches = Value::constant(patches.clone());
        ops::linear(&patches, matrix, Some(&bias.value(pass)?), Vec::new())
    }
}
