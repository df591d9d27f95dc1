//! Activation functions and gated units.

use lowrank_autograd::{
    ops::{self, Activation},
    reference,
};
use proptest::prelude::*;

use super::check::{check, normal};

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
