//! Activation functions, one number at a time, and their derivatives.

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
            Self::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
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
                0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
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

/// The error function: the quotient of an odd polynomial of degree 13 and an even one of degree
/// 10, which is within f32 rounding of it up to 4, where it is 1. The coefficients are those of
/// XLA's and Eigen's f32 kernels. Branchless, so that loops over it are vectorized.
fn erf(x: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const EVEN: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let near = x.clamp(-4.0, 4.0);
    let square = near * near;
    let polynomial = |c: &[f32]| c.iter().fold(0.0, |sum, c| sum * square + c);
    let inner = near * polynomial(&ODD) / polynomial(&EVEN);
    // Exactly 1 beyond, where a rounding error would be multiplied by a huge `x`.
    if x.abs() > 4.0 { x.signum() } else { inner }
}

/// `f` of every element.
pub(crate) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    if x.len() <= CHUNK {
        return x.iter().map(|x| f(*x)).collect();
    }
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
    if a.len() <= CHUNK {
        return a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect();
    }
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
