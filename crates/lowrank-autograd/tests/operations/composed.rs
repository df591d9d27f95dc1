//! What is particular to operations that are composed of candle's; [`super::check::check`] compares
//! each of them with its kernels.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use lowrank_autograd::{
    Gradients, Parameter, Result, Value, Weight,
    kernels::adamw::{AdamWUpdate, Moments},
    ops::{self, Activation, Matrix},
};

use super::check::{assert_close, composed, normal};

/// Runs `f` by kernels and composed, and compares what both return.
fn both(tolerance: f64, f: impl Fn() -> Result<Vec<Tensor>>) {
    let expected = f().expect("by kernels");
    let found = composed(f).expect("composed");
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(&format!("tensor {i}"), found, expected, tolerance);
    }
}

#[test]
fn kernels_refuse_what_is_to_be_composed() {
    let x = normal(1, &[&[2, 3]]).remove(0);
    let parameter = Parameter::new("x", &x).expect("a parameter");
    let mut moments = Moments::new(&parameter).expect("moments of kernels");
    let n = update();
    let refused = composed(|| n.apply(&parameter, &x, &mut moments));
    assert!(refused.is_err_and(|e| e.to_string().contains("`adamw` has no version")));
}

fn update() -> AdamWUpdate {
    AdamWUpdate {
        keep: 0.99,
        new_mean: 0.1,
        old_square: 0.99,
        new_square: 0.01,
        size: 0.02,
        root: 0.3,
        epsilon: 1e-8,
    }
}

#[test]
fn an_update_is_that_of_the_kernel() {
    both(1e-6, || {
        let [p, g] = <[Tensor; 2]>::try_from(normal(2, &[&[5, 7], &[5, 7]])).expect("two");
        let parameter = Parameter::new("p", &p)?;
        let mut moments = Moments::new(&parameter)?;
        for _ in 0..3 {
            update().apply(&parameter, &g, &mut moments)?;
        }
        let [mean, square] = moments.to_vecs()?;
        let restored = Moments::restore(&parameter, [mean.clone(), square.clone()])?;
        assert_eq!(restored.to_vecs()?, [mean.clone(), square.clone()]);
        let tensor = |v: Vec<f32>| Tensor::from_vec(v, 35, p.device());
        Ok(vec![parameter.data(), tensor(mean)?, tensor(square)?])
    });
}

#[test] // of which none can leave the processor
fn rows_without_a_target_have_no_loss_and_no_gradient() {
    both(0.0, || {
        let [x, w] = <[Tensor; 2]>::try_from(normal(3, &[&[4, 3], &[5, 3]])).expect("two");
        let (x, w) = (Parameter::new("x", &x)?, Weight::from_tensor(&w)?);
        let (rows, targets): (Arc<[usize]>, Arc<[u32]>) = (Arc::new([]), Arc::new([]));
        let picked = ops::select_rows(&x.value(true), &rows)?;
        let scored = ops::linear_cross_entropy(&picked, &w, None, None, &targets)?;
        let mut gradients = Gradients::new();
        scored.sum.backward(1.0, &mut gradients)?;
        assert_eq!(scored.correct, 0);
        let dx = gradients.get(x.id()).cloned().expect("a gradient");
        Ok(vec![scored.sum.data().clone(), dx])
    });
}

#[test] // bf16 weights, so that what is kept is bf16 too
fn a_chain_of_bf16_layers_is_near_that_of_the_kernels() {
    both(2e-2, || {
        let shapes: [&[usize]; 5] = [&[9, 12], &[20, 12], &[20, 12], &[12, 20], &[12]];
        let t = normal(4, &shapes);
        let x = Parameter::new("x", &t[0])?;
        let weight = |i: usize| Weight::from_tensor(&(&t[i] * 0.2)?.to_dtype(DType::BF16)?);
        let linear = |x: &Value, i| ops::linear(x, Matrix::Frozen(&weight(i)?), None, Vec::new());
        let h = ops::rms_norm(&x.value(true), &Value::constant(t[4].clone()), 1e-6)?;
        let gated = ops::gated(&linear(&h, 1)?, &linear(&h, 2)?, Activation::Silu)?;
        let y = ops::activation(&linear(&gated, 3)?, Activation::Tanh)?;
        let mut gradients = Gradients::new();
        ops::sum_all(&y)?.backward(0.5, &mut gradients)?;
        gradients.scale(2.0)?;
        let norm = Tensor::new(gradients.global_norm()? as f32, t[0].device())?;
        let dx = gradients.get(x.id()).cloned().expect("a gradient");
        Ok(vec![y.data().clone(), dx, norm])
    });
}
