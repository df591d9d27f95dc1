//! Activation functions, one number at a time, and their derivatives.

use candle_core::cpu::erf::erf_f32;
use rayon::prelude::*;

use crate::ops::Activation;

/// Elements that one task handles.
const CHUNK: usize = 1 << 14;

impl Activation {
    /// The function.
    pub(crate) fn of(self, x: f32) -> f32 {
        match self {
            // Not `max`, which would make 0 of a NaN.
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Silu => x * sigmoid(x),
            Self::Gelu => 0.5 * x * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)),
            Self::GeluTanh => 0.5 * x * (1.0 + gelu_inner(x).tanh()),
            Self::QuickGelu => x * sigmoid(1.702 * x),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => sigmoid(x),
            Self::Identity => x,
        }
    }

    /// Its derivative.
    pub(crate) fn slope(self, x: f32) -> f32 {
        match self {
            Self::Relu => f32::from(x > 0.0),
            Self::Silu => swish_slope(x, 1.0),
            Self::Gelu => {
                let density = (-0.5 * x * x).exp() * 0.398_942_3; // 1/√(2π)
                0.5 * (1.0 + erf_f32(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
            }
            Self::GeluTanh => {
                let t = gelu_inner(x).tanh();
                let inner_slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
                // Where the first factor is 0, the other may be infinite.
                let tail = 0.5 * x * (1.0 - t * t);
                0.5 * (1.0 + t) + if tail == 0.0 { 0.0 } else { tail * inner_slope }
            }
            Self::QuickGelu => swish_slope(x, 1.702),
            Self::Tanh => 1.0 - x.tanh().powi(2),
            Self::Sigmoid => {
                let s = sigmoid(x);
                s * (1.0 - s)
            }
            Self::Identity => 1.0,
        }
    }
}

const GELU_SCALE: f32 = 0.797_884_6; // √(2/π)
const GELU_CUBIC: f32 = 0.044_715;

fn gelu_inner(x: f32) -> f32 {
    GELU_SCALE * (x + GELU_CUBIC * x * x * x)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Derivative of `x·σ(βx)`.
fn swish_slope(x: f32, beta: f32) -> f32 {
    let s = sigmoid(beta * x);
    s + x * (beta * s * (1.0 - s)) // `beta * x` could overflow
}

/// `f` of every element.
pub(crate) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y = f(*x);
        }
    });
    y
}

/// `f` of every pair of elements.
pub(crate) fn zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut y = vec![0.0; a.len()];
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK))).for_each(
        |(y, (a, b))| {
            for (y, (a, b)) in y.iter_mut().zip(a.iter().zip(b)) {
                *y = f(*a, *b);
            }
        },
    );
    y
}
