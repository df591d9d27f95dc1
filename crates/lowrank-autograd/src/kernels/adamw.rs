//! AdamW's update (arXiv:1711.05101) in one pass over a parameter, its gradient and its moments, in
//! place, in the order of operations of PyTorch's `torch.optim.AdamW`.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor};
use rayon::prelude::*;

use super::{F32, check_dims, elementwise::slice_mut, simd::vectorized};
use crate::{Parameter, Result, composed};

/// Elements of a task.
const PIECE: usize = 4096;

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate {
    /// `1 - lr·λ`
    pub keep: f32,
    /// `1 - β₁`
    pub new_mean: f32,
    /// `β₂`
    pub old_square: f32,
    /// `1 - β₂`
    pub new_square: f32,
    /// `lr / (1 - β₁ᵗ)`
    pub size: f32,
    /// `√(1 - β₂ᵗ)`
    pub root: f32,
    /// ε
    pub epsilon: f32,
}

/// The running means of a parameter's gradient and of its square, f32, where the parameter lies.
#[derive(Debug)]
pub struct Moments(Place);

#[derive(Debug)]
enum Place {
    /// As a kernel updates them.
    Here {
        mean: Vec<f32>,
        square: Vec<f32>,
    },
    Elsewhere {
        mean: Tensor,
        square: Tensor,
    },
}

impl Moments {
    /// Those of a parameter before its first update.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(parameter: &Parameter) -> Result<Self> {
        let data = parameter.data();
        Ok(Self(match composed::device([&data]) {
            Some(_) => Place::Elsewhere { mean: data.zeros_like()?, square: data.zeros_like()? },
            None => {
                let zeros = vec![0.0; data.elem_count()];
                Place::Here { mean: zeros.clone(), square: zeros }
            }
        }))
    }

    /// Numbers in each of the two.
    fn len(&self) -> usize {
        match &self.0 {
            Place::Here { mean, .. } => mean.len(),
            Place::Elsewhere { mean, .. } => mean.elem_count(),
        }
    }

    /// Mean and mean square, for a checkpoint.
    ///
    /// # Errors
    /// Those of the device.
    pub fn to_vecs(&self) -> Result<[Vec<f32>; 2]> {
        match &self.0 {
            Place::Here { mean, square } => Ok([mean.clone(), square.clone()]),
            Place::Elsewhere { mean, square } => {
                let numbers = |t: &Tensor| t.flatten_all()?.to_vec1();
                Ok([numbers(mean)?, numbers(square)?])
            }
        }
    }

    /// Takes up what a checkpoint holds for `parameter`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when it isn't as many numbers.
    pub fn restore(parameter: &Parameter, [mean, square]: [Vec<f32>; 2]) -> Result<Self> {
        let data = parameter.data();
        for (what, moment) in [("the mean", &mean), ("the mean square", &square)] {
            if moment.len() != data.elem_count() {
                let (op, found) = ("adamw", vec![moment.len()]);
                let must_be = format!("{} numbers", data.elem_count());
                return Err(crate::Error::Shape { op, what, found, must_be });
            }
        }
        Ok(Self(match composed::device([&data]) {
            None => Place::Here { mean, square },
            Some(device) => {
                let there = |v: Vec<f32>| {
                    Tensor::from_vec(v, data.dims(), &Device::Cpu)?.to_device(&device)
                };
                Place::Elsewhere { mean: there(mean)?, square: there(square)? }
            }
        }))
    }
}

impl AdamWUpdate {
    /// Updates `parameter` and its moments. In the processor's memory the parameter's tensor changes
    /// where it lies: whoever shares it sees the new numbers.
    ///
    /// # Errors
    /// When gradient or moments don't have the parameter's size.
    pub fn apply(
        self,
        parameter: &Parameter,
        gradient: &Tensor,
        moments: &mut Moments,
    ) -> Result<()> {
        let data = parameter.data();
        check_dims("adamw", "the gradient", gradient, data.dims())?;
        if moments.len() != data.elem_count() {
            let (op, what, found) = ("adamw", "the moments", vec![moments.len()]);
            let must_be = format!("{} numbers each", data.elem_count());
            return Err(crate::Error::Shape { op, what, found, must_be });
        }
        let (mean, square) = match &mut moments.0 {
            Place::Here { mean, square } => (mean, square),
            Place::Elsewhere { mean, square } => {
                return composed::update(self, parameter, gradient, [mean, square]);
            }
        };
        let gradient = gradient.contiguous()?;
        let gradient = &F32::of("adamw", &gradient)?;
        let fused = Fused { numbers: self, gradient, moments: Mutex::new((mean, square)) };
        Ok(data.inplace_op1(&fused)?)
    }
}

/// candle hands out an operation by shared reference, hence the lock.
struct Fused<'a> {
    numbers: AdamWUpdate,
    gradient: &'a [f32],
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
}

impl InplaceOp1 for Fused<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let values = slice_mut(values, layout)?;
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (mean, square) = &mut *moments;
        let moments = mean.par_chunks_mut(PIECE).zip(square.par_chunks_mut(PIECE));
        values
            .par_chunks_mut(PIECE)
            .zip(self.gradient.par_chunks(PIECE).zip(moments))
            .for_each(|(p, (g, (m, v)))| update(p, g, m, v, self.numbers));
        Ok(())
    }
}

vectorized! {
    fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], n: AdamWUpdate) {
        for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            *p *= n.keep;
            *m += (g - *m) * n.new_mean;
            *v = *v * n.old_square + g * g * n.new_square;
            *p -= n.size * (*m / (v.sqrt() / n.root + n.epsilon));
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{Gradients, Key, Value, ops};

    #[test]
    fn the_fused_update_has_the_bits_of_one_element_after_another() {
        // Several tasks, and a rest that no vector fills.
        const N: usize = 2 * PIECE + 37;
        let numbers = |seed| Key::new(seed).normals(N);
        let (g, mut p, mut m) = (numbers(1), numbers(2), numbers(3));
        let mut v: Vec<f32> = numbers(4).iter().map(|v| v * v).collect();
        let n = AdamWUpdate {
            keep: 0.999,
            new_mean: 0.1,
            old_square: 0.999,
            new_square: 0.001,
            size: 0.01,
            root: 0.7,
            epsilon: 1e-8,
        };
        let tensor = |v: &[f32]| Tensor::from_slice(v, N, &Device::Cpu).unwrap();
        let parameter = Parameter::new("p", &tensor(&p)).unwrap();
        let mut gradients = Gradients::new();
        let product = ops::mul(&parameter.value(true), &Value::constant(tensor(&g))).unwrap();
        ops::sum_all(&product).unwrap().backward(1.0, &mut gradients).unwrap();
        let gradient = gradients.get(parameter.id()).unwrap();
        let mut moments = Moments::restore(&parameter, [m.clone(), v.clone()]).unwrap();
        n.apply(&parameter, gradient, &mut moments).unwrap();
        let [mean, square] = moments.to_vecs().unwrap();
        for i in 0..N {
            p[i] *= n.keep;
            m[i] += (g[i] - m[i]) * n.new_mean;
            v[i] = v[i] * n.old_square + g[i] * g[i] * n.new_square;
            p[i] -= n.size * (m[i] / (v[i].sqrt() / n.root + n.epsilon));
        }
        let found = parameter.data().to_vec1::<f32>().unwrap();
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!([&found, &mean, &square].map(|v| bits(v)), [&p, &m, &v].map(|v| bits(v)));
    }

    #[test]
    fn what_has_another_size_is_refused() {
        let tensor = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();
        let parameter = Parameter::new("p", &tensor(3)).unwrap();
        let n = AdamWUpdate {
            keep: 1.0,
            new_mean: 0.1,
            old_square: 0.9,
            new_square: 0.1,
            size: 0.1,
            root: 1.0,
            epsilon: 1e-8,
        };
        let apply = |gradient: usize, mean: usize, square: usize| {
            let moments = [vec![0.0; mean], vec![0.0; square]];
            let mut moments = Moments::restore(&parameter, moments)?;
            n.apply(&parameter, &tensor(gradient), &mut moments)
        };
        assert!(apply(3, 3, 3).is_ok());
        assert!(apply(2, 3, 3).is_err() && apply(3, 2, 3).is_err() && apply(3, 3, 2).is_err());
    }
}
