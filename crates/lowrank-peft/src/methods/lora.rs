//! LoRA (arXiv:2106.09685): `ΔW = s·B·A` with `A` `[r, in]`, `B` `[out, r]` and `s = alpha/r`, or
//! `alpha/√r` with `use_rslora` (arXiv:2312.03732). Reference: PEFT 0.21 `peft/tuners/lora`.

use candle_core::{Device, Tensor};
use lowrank_autograd::{Key, Parameter, Result, ops, random};

use crate::Pass;

/// What `init_lora_weights` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitLora {
    /// `true`: `A` uniform within `1/√in`, `B` zero; on embeddings `A` zero, `B` normal.
    Standard,
    /// `"gaussian"`: `A` normal with deviation `1/r`, `B` zero; on embeddings as the standard.
    Gaussian,
    /// `false`: `A` and `B` both random, so that the adapter does something from the start.
    Random,
}

/// Rank, scale and dropout of one layer's adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraShape {
    /// Rank.
    pub r: usize,
    /// Factor of the product `B·A`.
    pub scaling: f32,
    /// Probability with which elements of `A`'s input are dropped in training.
    pub dropout: f32,
    /// Whether `B` has a bias.
    pub lora_bias: bool,
}

/// The adapter of one layer. Clones share their parameters.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// `[r, in]`; on embeddings `[r, rows]`, on experts `[experts·r, in]`.
    pub a: Parameter,
    /// `[out, r]`; on embeddings `[dim, r]`, on experts `[out, r·experts]`.
    pub b: Parameter,
    /// `[out]`
    pub b_bias: Option<Parameter>,
    /// Rank, scale and dropout.
    pub shape: LoraShape,
    site: u64,
}

/// The tensors that a LoRA layer starts from.
#[derive(Clone, Debug)]
pub struct LoraTensors {
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
    /// `[out]`
    pub b_bias: Option<Tensor>,
}

impl LoraTensors {
    /// Fresh tensors for a linear layer `[out, input]`. `key` is the layer's own random stream.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn fresh(
        init: InitLora,
        shape: LoraShape,
        [out, input]: [usize; 2],
        key: Key,
    ) -> Result<Self> {
        let r = shape.r;
        let a = match init {
            InitLora::Standard | InitLora::Random => {
                key.at("A").uniforms(r * input, 1.0 / (input.max(1) as f64).sqrt())
            }
            InitLora::Gaussian => scaled(key.at("A").normals(r * input), 1.0 / r as f32),
        };
        let b = match init {
            InitLora::Standard | InitLora::Gaussian => vec![0.0; out * r],
            InitLora::Random => key.at("B").uniforms(out * r, 1.0 / (r as f64).sqrt()),
        };
        let b_bias = match init {
            InitLora::Standard | InitLora::Gaussian => vec![0.0; out],
            InitLora::Random => key.at("bias").uniforms(out, 1.0 / (r as f64).sqrt()),
        };
        let b_bias = shape.lora_bias.then(|| Tensor::from_vec(b_bias, out, &Device::Cpu));
        Ok(Self {
            a: Tensor::from_vec(a, (r, input), &Device::Cpu)?,
            b: Tensor::from_vec(b, (out, r), &Device::Cpu)?,
            b_bias: b_bias.transpose()?,
        })
    }

    /// Fresh tensors for the matrices `[out, input]` of experts: `A` `[experts·r, input]` and `B`
    /// `[out, r·experts]`, which PEFT starts as those of one layer of that rank.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn fresh_stack(
        init: InitLora,
        shape: LoraShape,
        [experts, out, input]: [usize; 3],
        key: Key,
    ) -> Result<Self> {
        let whole = LoraShape { r: experts * shape.r, ..shape };
        let tensors = Self::fresh(init, whole, [out, input], key)?;
        // The deviation goes by the rank of one expert.
        let a = match init {
            InitLora::Gaussian => tensors.a.affine(experts as f64, 0.0)?,
            InitLora::Standard | InitLora::Random => tensors.a,
        };
        Ok(Self { a, ..tensors })
    }

    /// Fresh tensors for an embedding `[rows, dim]`.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn fresh_rows(init: InitLora, r: usize, [rows, dim]: [usize; 2], key: Key) -> Result<Self> {
        let a = match init {
            InitLora::Standard | InitLora::Gaussian => vec![0.0; r * rows],
            InitLora::Random => key.at("A").normals(r * rows),
        };
        Ok(Self {
            a: Tensor::from_vec(a, (r, rows), &Device::Cpu)?,
            b: Tensor::from_vec(key.at("B").normals(dim * r), (dim, r), &Device::Cpu)?,
            b_bias: None,
        })
    }
}

impl LoraTensors {
    /// The same tensors on a device.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn on(&self, device: &Device) -> Result<Self> {
        let there = |tensor: &Tensor| tensor.to_device(device);
        let b_bias = self.b_bias.as_ref().map(there).transpose()?;
        Ok(Self { a: there(&self.a)?, b: there(&self.b)?, b_bias })
    }
}

fn scaled(mut values: Vec<f32>, factor: f32) -> Vec<f32> {
    values.iter_mut().for_each(|v| *v *= factor);
    values
}

impl LoraLayer {
    /// The adapter of the module at `path`; `names` are those of A, B and B's bias in the file.
    ///
    /// # Errors
    /// Those of the copy.
    pub fn new(
        path: &str,
        names: [String; 3],
        tensors: &LoraTensors,
        shape: LoraShape,
    ) -> Result<Self> {
        let [a, b, bias] = names;
        Ok(Self {
            a: Parameter::new(a, &tensors.a)?,
            b: Parameter::new(b, &tensors.b)?,
            b_bias: tensors.b_bias.as_ref().map(|t| Parameter::new(bias, t)).transpose()?,
            shape,
            site: random::site(path),
        })
    }

    /// Its parameters: A, B and B's bias.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [&self.a, &self.b].into_iter().chain(&self.b_bias)
    }

    /// The term of a linear layer.
    pub(crate) fn low_rank(&self, pass: &Pass) -> ops::LowRank {
        ops::LowRank {
            a: self.a.value(pass.records()),
            b: self.b.value(pass.records()),
            bias: self.b_bias.as_ref().map(|p| p.value(pass.records())),
            scale: self.shape.scaling,
            dropout: pass.dropout(self.shape.dropout, self.site),
        }
    }

    /// The term of an embedding; PEFT applies no dropout there.
    pub(crate) fn low_rank_rows(&self, pass: &Pass) -> ops::LowRankRows {
        ops::LowRankRows {
            a: self.a.value(pass.records()),
            b: self.b.value(pass.records()),
            scale: self.shape.scaling,
        }
    }

    /// The term of experts; PEFT allows no dropout there.
    pub(crate) fn low_rank_stack(&self, pass: &Pass) -> ops::LowRankStack {
        ops::LowRankStack {
            a: self.a.value(pass.records()),
            b: self.b.value(pass.records()),
            scale: self.shape.scaling,
        }
    }

    /// `s·B_e·A_e`, `[out, in]`, of one expert: its rows of `A` lie next to each other, its columns
    /// of `B` as far apart as there are experts.
    pub(crate) fn delta_of(&self, expert: usize, experts: usize) -> Result<Tensor> {
        let (r, b) = (self.shape.r, self.b.data());
        let (out, width) = b.dims2()?;
        let a = self.a.data().narrow(0, expert * r, r)?;
        let b = b.reshape((out, width / experts.max(1), experts))?;
        let b = b.narrow(2, expert, 1)?.squeeze(2)?.contiguous()?;
        Ok(b.matmul(&a)?.affine(f64::from(self.shape.scaling), 0.0)?)
    }

    /// `s·B·A`, `[out, in]`.
    pub(crate) fn delta(&self) -> Result<Tensor> {
        Ok(self.b.data().matmul(&self.a.data())?.affine(f64::from(self.shape.scaling), 0.0)?)
    }

    /// `s·bias of B`.
    pub(crate) fn delta_bias(&self) -> Result<Option<Tensor>> {
        let scale = f64::from(self.shape.scaling);
        let scaled = self.b_bias.as_ref().map(|b| b.data().affine(scale, 0.0));
        Ok(scaled.transpose()?)
    }
}
