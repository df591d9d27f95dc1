//! AdamW against PyTorch, and which parameters decay against transformers.
//! `fixtures/run/make.py` made the numbers.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lowrank_autograd::{Gradients, Parameter, Value, ops};
use lowrank_train::optimizers::{AdamW, AdamWSettings};
use serde::Deserialize;

use crate::harness::{fixture, values};

#[derive(Deserialize)]
struct Reference {
    start: Vec<f32>,
    gradients: Vec<Option<Vec<f32>>>,
    values: Vec<Vec<f32>>,
    first: Vec<f32>,
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn parameter(name: &str, values: &[f32]) -> Parameter {
    let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
    let parameter = Parameter::new(name, &tensor).unwrap();
    parameter.set_trainable(true);
    parameter
}

/// Lets `gradient` flow to a parameter.
fn gradients(parameter: &Parameter, gradient: Option<&Vec<f32>>) -> Gradients {
    let mut gradients = Gradients::new();
    if let Some(gradient) = gradient {
        let factor = Tensor::from_slice(gradient, gradient.len(), &Device::Cpu).unwrap();
        let product = ops::mul(&parameter.value(true), &Value::constant(factor)).unwrap();
        ops::sum_all(&product).unwrap().backward(1.0, &mut gradients).unwrap();
    }
    gradients
}

fn assert_values(parameter: &Parameter, expected: &[f32], tolerance: f32) {
    for (a, b) in values(&parameter.data()).iter().zip(expected) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1e-3), "{a} instead of {b}");
    }
}

#[test]
fn adamw_is_pytorchs() {
    let reference: Reference = read("adamw.json");
    let settings = AdamWSettings {
        beta1: 0.8,
        beta2: 0.99,
        epsilon: 1e-6,
        weight_decay: 0.1,
        decay_all: true,
    };
    let weight = parameter("weight", &reference.start);
    let mut optimizer = AdamW::new(vec![weight.clone()], settings).unwrap();
    for (step, gradient) in reference.gradients.iter().enumerate() {
        // Through its state each time, as a resumed run goes.
        let state = optimizer.state().unwrap();
        optimizer = AdamW::new(vec![weight.clone()], settings).unwrap();
        optimizer.restore(&state).unwrap();
        let gradients = gradients(&weight, gradient.as_ref());
        optimizer.step(0.1 / (step + 1) as f64, &gradients).unwrap();
        assert_values(&weight, &reference.values[step], 1e-6);
    }
}

#[test]
fn the_first_step_of_adamw_isnt_rounded_away() {
    let reference: Reference = read("adamw.json");
    let weight = parameter("weight", &[0.0; 6]);
    let mut optimizer = AdamW::new(vec![weight.clone()], AdamWSettings::default()).unwrap();
    let gradients = gradients(&weight, reference.gradients[0].as_ref());
    optimizer.step(1.0, &gradients).unwrap();
    assert_values(&weight, &reference.first, 1e-6);
}

#[test]
fn biases_and_norms_decay_as_in_transformers() {
    let reference: BTreeMap<String, bool> = read("decay.json");
    assert!(reference.len() > 50);
    let settings = AdamWSettings { weight_decay: 0.5, ..AdamWSettings::default() };
    for (name, decays) in reference {
        let weight = parameter(&name, &[1.0]);
        let mut optimizer = AdamW::new(vec![weight.clone()], settings).unwrap();
        let gradients = gradients(&weight, Some(&vec![0.0]));
        optimizer.step(1.0, &gradients).unwrap();
        let expected = if decays { 0.5 } else { 1.0 };
        assert_eq!(values(&weight.data()), [expected], "{name}");
    }
}

#[test]
fn a_state_of_other_parameters_is_refused() {
    let optimizer = |name: &str, size: usize| {
        AdamW::new(vec![parameter(name, &vec![0.0; size])], AdamWSettings::default()).unwrap()
    };
    let state = optimizer("a.weight", 3).state().unwrap();
    let error = optimizer("b.weight", 3).restore(&state).unwrap_err().to_string();
    assert!(error.contains("lacks `b.weight.step`"), "{error}");
    let error = optimizer("a.weight", 2).restore(&state).unwrap_err().to_string();
    assert!(error.contains("`a.weight.exp_avg` has another size"), "{error}");
}
