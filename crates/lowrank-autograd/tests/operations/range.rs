//! The whole range of finite numbers: where PyTorch in f32 has a number, so has an operation.

use lowrank_autograd::{
    Result, Value, Weight,
    ops::{self, Routing, Score, Span, Stack},
};

use super::{
    activation::ALL,
    attention::attend,
    check::{numbers, run_with},
    torch::{Case, layer},
};

/// Elements must agree to this, relative to their own size, or to an absolute limit.
const RELATIVE: f64 = 1e-5;
/// What rounding leaves where gradients of the size of 1 cancel.
const ABSOLUTE: f64 = 1e-5;
/// The same where they are multiplied by keys of the size of 1e4.
const ABSOLUTE_LARGE: f64 = 1e-2;

/// Compares element by element what PyTorch has as a number.
fn finite(name: &str, absolute: f64, op: impl Fn(&[Value]) -> Result<Value>) {
    let case = Case::of(&format!("range/{name}"));
    let run = run_with(&case.all("input"), &op, None, false, |_| case.get("dy"));
    let run = run.expect("the operation");
    let mut pairs = vec![("output", run.output, case.get("output"))];
    for (found, expected) in run.gradients.into_iter().zip(case.all("gradient")) {
        pairs.push(("gradient", found.expect("a gradient"), expected));
    }
    let mut compared = 0;
    for (what, found, expected) in pairs {
        for (i, (f, e)) in numbers(&found).iter().zip(numbers(&expected)).enumerate() {
            if e.is_finite() {
                let near = (f - e).abs() <= absolute + RELATIVE * e.abs();
                assert!(near, "{name}: {what} [{i}] is {f}, PyTorch has {e}");
                compared += 1;
            }
        }
    }
    assert!(compared > 0, "{name}: nothing to compare");
}

#[test]
fn activations() {
    for (name, f) in ALL {
        finite(&format!("activation/{name}"), ABSOLUTE, |v| ops::activation(&v[0], f));
    }
}

#[test]
fn norms() {
    finite("rms_norm", ABSOLUTE, |v| ops::rms_norm(&v[0], &v[1], 1e-3));
    finite("layer_norm", ABSOLUTE, |v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-3));
}

#[test]
fn losses() {
    for row in 0..6 {
        let name = format!("cross_entropy/{row}");
        let targets = Case::of(&format!("range/{name}")).indices("targets");
        finite(&name, ABSOLUTE, |v| ops::cross_entropy(&v[0], &targets));
    }
    for t in ["0.0", "0.25", "1.0"] {
        let name = format!("binary_cross_entropy/{t}");
        let targets = Case::of(&format!("range/{name}")).get("constant/targets");
        finite(&name, ABSOLUTE, |v| ops::binary_cross_entropy(&v[0], &targets));
    }
}

#[test]
fn attention() {
    let spans = Span::packed(&[9]).into();
    finite("attention/large", ABSOLUTE_LARGE, |v| attend(v, &layer(true), &spans, None));
    finite("attention/ties", ABSOLUTE_LARGE, |v| attend(v, &layer(true), &spans, None));
}

mod not_a_number {
    //! A NaN in the input is never hidden: the loop must be able to see that a step went wrong.

    use candle_core::{Device, Tensor};

    use super::*;

    fn nan(n: usize, d: usize) -> Value {
        Value::constant(Tensor::full(f32::NAN, (n, d), &Device::Cpu).expect("a tensor"))
    }

    fn assert_nan(what: &str, y: Result<Value>) {
        let y = numbers(y.expect("the operation").data());
        assert!(y.iter().all(|v| v.is_nan()), "{what}: {y:?}");
    }

    #[test]
    fn goes_through_every_operation() {
        for (name, f) in ALL {
            assert_nan(name, ops::activation(&nan(2, 3), f));
        }
        let spans = Span::packed(&[4]).into();
        // Values are numbers: the probabilities alone must carry it.
        let v = Tensor::ones((4, 10), candle_core::DType::F32, &Device::Cpu).expect("v");
        let qkv = [nan(4, 24), nan(4, 12), Value::constant(v)];
        assert_nan("attention", attend(&qkv, &layer(true), &spans, None));
        let w = Value::constant(Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).expect("w"));
        assert_nan("rms_norm", ops::rms_norm(&nan(2, 3), &w, 1e-6));
        assert_nan("layer_norm", ops::layer_norm(&nan(2, 3), &w, None, 1e-6));
        assert_nan("cross_entropy", ops::cross_entropy(&nan(1, 3), &[1].into()));
        for score in [Score::Softmax, Score::Sigmoid] {
            let (chosen, scale, normalized) = (2, 1.0, true);
            let routing = Routing { score, chosen, normalized, scale, bias: None, groups: None };
            assert_nan("route", ops::route(&nan(2, 3), &routing).map(|(w, _)| w));
        }
        let ones = Tensor::ones((2, 4, 3), candle_core::DType::F32, &Device::Cpu).expect("ones");
        let stack = Weight::from_tensor(&ones).expect("a stack");
        let (groups, stack) = ([0..1, 1..2].into(), Stack::Frozen(&stack));
        let product = ops::grouped_linear(&nan(2, 3), &groups, stack, Vec::new());
        assert_nan("grouped_linear", product);
        let one = Value::constant(
            Tensor::ones((2, 1), candle_core::DType::F32, &Device::Cpu).expect("w"),
        );
        assert_nan("mix_rows", ops::mix_rows(&nan(2, 3), &one, &[1, 0].into()));
        let zeros = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).expect("zeros");
        assert_nan("binary_cross_entropy", ops::binary_cross_entropy(&nan(2, 3), &zeros));
    }
}
