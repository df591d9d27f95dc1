//! Activation functions and gated units.

use candle_core::{Device, Tensor};
use lowrank_autograd::{
    Value,
    ops::{self, Activation},
    reference,
};
use proptest::prelude::*;

use super::check::{check, normal, numbers};

/// Every function there is.
pub(crate) const ALL: [(&str, Activation); 8] = [
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
    ("linear", Activation::Identity),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_their_plain_versions(n in 1..9usize, d in 1..70usize, which in 0..8usize, seed: u64) {
        let (_, f) = ALL[which];
        let x = normal(seed, &[&[n, d], &[n, d]]);
        check(&x[..1], |v| ops::activation(&v[0], f), |t| reference::activation(&t[0], f));
        check(&x, |v| ops::gated(&v[0], &v[1], f), |t| reference::gated(&t[0], &t[1], f));
        let wide = normal(seed, &[&[n, 2 * d]]);
        let half = |t: &Tensor, from| t.narrow(1, from, d);
        check(
            &wide,
            |v| ops::gated_halves(&v[0], f),
            |t| reference::gated(&half(&t[0], 0)?, &half(&t[0], d)?, f),
        );
    }
}

/// Small inputs keep their relative precision, as the definition in f64 has it.
#[test]
fn small_numbers_keep_their_precision() {
    let x: Vec<f32> = (-120..0).map(|e| 1.37 * 2f32.powi(e)).flat_map(|x| [x, -x]).collect();
    let tanh = |x: f64| x.tanh();
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x * x * x)).tanh());
    let silu = |x: f64| x / (1.0 + (-x).exp());
    type Plain<'a> = &'a dyn Fn(f64) -> f64;
    let all: [(_, Plain<'_>); 3] =
        [(Activation::Tanh, &tanh), (Activation::GeluTanh, &gelu), (Activation::Silu, &silu)];
    for (f, plain) in all {
        let t = Tensor::new(&x[..], &Device::Cpu).expect("a vector");
        let y = ops::activation(&Value::constant(t), f).expect("the operation");
        for (x, y) in x.iter().zip(numbers(y.data())) {
            let expected = plain(f64::from(*x));
            assert!((y - expected).abs() <= 4e-7 * expected.abs(), "{f:?}({x}) = {y}");
        }
    }
}

#[test]
fn names_are_those_of_transformers() {
    for name in ["relu", "silu", "gelu", "gelu_new", "quick_gelu", "tanh", "sigmoid", "linear"] {
        assert!(Activation::named(name).is_some(), "{name}");
    }
    assert_eq!(Activation::named("swish"), Some(Activation::Silu));
    assert_eq!(Activation::named("gelu_pytorch_tanh"), Some(Activation::GeluTanh));
    assert_eq!(Activation::named("no such function"), None);
}

#[test]
fn an_odd_number_of_columns_has_no_halves() {
    let x = Value::constant(normal(1, &[&[2, 3]]).remove(0));
    assert!(ops::gated_halves(&x, Activation::Silu).is_err());
}
