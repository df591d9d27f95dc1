//! The last linear layer and cross-entropy in one: against the two one after the other.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Error, Gradients, Parameter, Value, Weight, ops, reference};
use proptest::prelude::*;

use super::check::{assert_close, check, indices, normal, numbers};

/// Compares with the plain version for logits `x·wᵀ + bias`, capped or not.
fn equals_plain(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, targets: &Arc<[u32]>) {
    for softcap in [None, Some(1.5)] {
        equals_plain_capped(x, w, bias, softcap, targets);
    }
}

fn equals_plain_capped(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    softcap: Option<f32>,
    targets: &Arc<[u32]>,
) {
    let plain = |x: &[Tensor]| {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let bias = bias.map(wide).transpose()?;
        let logits = reference::linear(&x[0], &wide(w)?, bias.as_ref(), &[])?;
        let capped = softcap.map(|c| (&logits / f64::from(c))?.tanh()? * f64::from(c));
        let logits = capped.transpose()?.unwrap_or(logits);
        reference::cross_entropy(&logits, targets)
    };
    let turned = w.t().and_then(|w| w.contiguous()).expect("the transpose");
    let weights = [Weight::from_tensor(w), Weight::from_tensor(&turned).map(Weight::transpose)];
    for weight in weights {
        let weight = weight.expect("a weight");
        let op = |v: &[Value]| {
            Ok(ops::linear_cross_entropy(&v[0], &weight, bias, softcap, targets)?.sum)
        };
        check(std::slice::from_ref(x), op, plain);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_its_plain_version(n in 1..20usize, d in 1..40usize, c in 1..200usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[c, d], &[c]]);
        let targets: Arc<[u32]> = indices(seed, n, c).into();
        equals_plain(&t[0], &t[1], None, &targets);
        equals_plain(&t[0], &t[1], Some(&t[2]), &targets);
    }
}

#[test]
fn is_the_same_over_several_panels_and_blocks() {
    // More classes than a panel has, more rows than a block has, and both with an odd rest.
    for (n, d, c) in [(3, 7, 9_001), (1_030, 3, 4_203)] {
        let t = normal(1, &[&[n, d], &[c, d], &[c]]);
        let targets: Arc<[u32]> = indices(1, n, c).into();
        equals_plain(&t[0], &t[1], Some(&t[2]), &targets);
    }
}

#[test]
fn weights_of_half_the_width_are_near_what_they_stand_for() {
    let (n, d, c) = (40, 96, 5_000);
    let t = normal(2, &[&[n, d], &[c, d]]);
    let w = (&t[1] * 0.1).expect("a scaled weight");
    let targets: Arc<[u32]> = indices(2, n, c).into();
    for dtype in [DType::BF16, DType::F16] {
        let narrow = w.to_dtype(dtype).expect("narrow");
        let found = gradient(&t[0], &narrow, &targets);
        let exact = gradient(&t[0], &narrow.to_dtype(DType::F32).expect("wide"), &targets);
        // A product may round its other operand to the weight's dtype too: 8 bits, and sums of
        // many such roundings.
        assert_close("the loss", &found.0, &exact.0, 2e-3);
        assert_close("the gradient", &found.1, &exact.1, 2e-2);
    }
}

/// The loss, and the gradient of `x`.
fn gradient(x: &Tensor, w: &Tensor, targets: &Arc<[u32]>) -> (Tensor, Tensor) {
    let x = Parameter::new("x", x).expect("a parameter");
    let weight = Weight::from_tensor(w).expect("a weight");
    let scored = ops::linear_cross_entropy(&x.value(true), &weight, None, None, targets);
    let sum = scored.expect("the operation").sum;
    let mut gradients = Gradients::new();
    sum.backward(0.5, &mut gradients).expect("the backward pass");
    (sum.data().clone(), gradients.get(x.id()).expect("a gradient").clone())
}

#[test]
fn a_certain_prediction_keeps_its_small_gradient() {
    // Logits 0 and 30: 1 - p is 1e-13, of which f32 probabilities near 1 know nothing.
    let x = Tensor::new(&[[1.0f32, 0.0]], &Device::Cpu).expect("x");
    let w = Tensor::new(&[[0.0f32, 3.0], [30.0, 5.0]], &Device::Cpu).expect("w");
    let (loss, dx) = gradient(&x, &w, &[1].into());
    let p0 = (-30.0f64).exp() / (1.0 + (-30.0f64).exp());
    assert_close("the loss", &(loss * 1e13).expect("scaled"), &scalar(p0 * 1e13), 1e-5);
    let expected = Tensor::new(&[[-30.0 * p0, -2.0 * p0]], &Device::Cpu).expect("dx");
    let dx = (dx.to_dtype(DType::F64).expect("f64") * 2e13).expect("scaled");
    assert_close("the gradient", &dx, &(expected * 1e13).expect("scaled"), 1e-5);
}

fn scalar(v: f64) -> Tensor {
    Tensor::new(v as f32, &Device::Cpu).expect("a scalar")
}

#[test]
fn hits_are_first_among_equals() {
    // Class `c` has the logit `levels[c]`, over more than one panel.
    let count = |levels: &[(usize, f32)], target: u32| {
        let mut w = vec![-1.0; 9_000];
        levels.iter().for_each(|&(class, level)| w[class] = level);
        let w = Tensor::from_vec(w, (9_000, 1), &Device::Cpu).expect("w");
        let x = Value::constant(Tensor::ones((1, 1), DType::F32, &Device::Cpu).expect("x"));
        let weight = Weight::from_tensor(&w).expect("a weight");
        let targets: Arc<[u32]> = [target].into();
        let fused =
            ops::linear_cross_entropy(&x, &weight, None, None, &targets).expect("the operation");
        let logits = Value::constant(w.t().expect("a row"));
        let apart = ops::scored_cross_entropy(&logits, &targets).expect("the operation");
        assert_eq!(fused.correct, apart.correct);
        fused.correct
    };
    assert_eq!(count(&[(4_500, 2.0)], 4_500), 1);
    assert_eq!(count(&[(4_500, 2.0), (8_999, 3.0)], 4_500), 0, "a later panel has a larger one");
    assert_eq!(count(&[(4_500, 2.0), (8_999, 3.0)], 8_999), 1);
    assert_eq!(count(&[(4_500, 2.0), (8_999, 2.0)], 4_500), 1, "first of two panels");
    assert_eq!(count(&[(4_500, 2.0), (8_999, 2.0)], 8_999), 0, "second of two panels");
    assert_eq!(count(&[(7, 2.0), (9, 2.0)], 7), 1, "first in a panel");
    assert_eq!(count(&[(7, 2.0), (9, 2.0)], 9), 0, "second in a panel");
}

#[test]
fn what_is_not_a_number_shows_and_infinities_are_no_more_than_that() {
    let weight = |levels: Vec<f32>| {
        let w = Tensor::from_vec(levels, (9_000, 1), &Device::Cpu).expect("w");
        Weight::from_tensor(&w).expect("a weight")
    };
    let x = Value::constant(Tensor::ones((1, 1), DType::F32, &Device::Cpu).expect("x"));
    let loss = |w: Vec<f32>, target: u32| {
        let scored = ops::linear_cross_entropy(&x, &weight(w), None, None, &[target].into());
        numbers(scored.expect("the operation").sum.data())[0]
    };
    for place in [0, 8_999] {
        let mut w = vec![0.0; 9_000];
        w[place] = f32::NAN;
        assert!(loss(w.clone(), 5).is_nan() && loss(w, place as u32).is_nan());
    }
    // A whole panel that no probability is left for, and the largest numbers there are.
    let mut w = vec![f32::NEG_INFINITY; 9_000];
    w[8_999] = f32::MAX;
    w[8_998] = f32::MAX;
    assert!((loss(w.clone(), 8_998) - 2.0f64.ln()).abs() < 1e-6);
    assert_eq!(loss(w, 0), f64::INFINITY);
}

#[test]
fn what_does_not_fit_is_refused() {
    let [x, w] = [[2, 3], [4, 3]].map(|dims| normal(3, &[&dims]).remove(0));
    let (x, w) = (Value::constant(x), Weight::from_tensor(&w).expect("a weight"));
    let loss = |w: &Weight, bias: Option<&Tensor>, targets: &[u32]| {
        ops::linear_cross_entropy(&x, w, bias, None, &targets.into()).map(drop)
    };
    assert!(loss(&w, None, &[0, 3]).is_ok());
    let outside = loss(&w, None, &[0, 4]);
    assert!(matches!(outside, Err(Error::Index { index: 4, place: 1, len: 4, .. })));
    assert!(matches!(loss(&w, None, &[0]), Err(Error::Shape { .. })));
    assert!(matches!(loss(&w.clone().transpose(), None, &[0, 1]), Err(Error::Shape { .. })));
    let bias = normal(3, &[&[3]]).remove(0);
    assert!(matches!(loss(&w, Some(&bias), &[0, 1]), Err(Error::Shape { .. })));
    let none = Value::constant(Tensor::zeros((0, 3), DType::F32, &Device::Cpu).expect("no rows"));
    let scored = ops::linear_cross_entropy(&none, &w, None, None, &[].into()).expect("no rows");
    assert_eq!((numbers(scored.sum.data()), scored.correct), (vec![0.0], 0));
}

#[test]
fn rows_of_a_weight_are_those_of_its_tensor() {
    let t = normal(4, &[&[5, 3]]).remove(0);
    let w = Weight::from_tensor(&t).expect("a weight");
    let rows =
        |range: std::ops::Range<usize>| w.rows(range).and_then(|w| w.rows(1..2)?.to_tensor());
    let expected = numbers(&t.narrow(0, 3, 1).expect("a row"));
    assert_eq!(numbers(&rows(2..5).expect("rows of rows")), expected);
    assert!(w.rows(2..6).is_err());
    assert!(w.clone().transpose().rows(0..1).is_err());
}
