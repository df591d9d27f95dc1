//! Operations against PyTorch's numbers, which `fixtures/make_torch_reference.py` wrote.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Dropout, Key, Result, RowKeys, Value,
    ops::{self, Angles, AttentionShape, LowRank, LowRankRows, Matrix, RotaryStyle, Rows, Span},
};

use super::{
    activation::ALL,
    attention::attend,
    check::{assert_close, run_with},
};

const TOLERANCE: f64 = 5e-6;

/// One case of the fixture.
pub(crate) struct Case {
    tensors: HashMap<String, Tensor>,
    name: String,
}

impl Case {
    /// The case of that name.
    pub(crate) fn of(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/torch_reference.safetensors");
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("the fixture");
        Self { tensors, name: name.to_owned() }
    }

    /// A tensor of the case.
    pub(crate) fn get(&self, what: &str) -> Tensor {
        let name = format!("{}/{what}", self.name);
        self.tensors.get(&name).cloned().unwrap_or_else(|| panic!("the fixture has no `{name}`"))
    }

    /// The tensors `what/0`, `what/1`, ….
    pub(crate) fn all(&self, what: &str) -> Vec<Tensor> {
        let one = |i: usize| self.tensors.get(&format!("{}/{what}/{i}", self.name)).cloned();
        (0..).map_while(one).collect()
    }

    /// A constant of whole numbers.
    pub(crate) fn indices(&self, name: &str) -> Arc<[u32]> {
        let numbers = self.get(&format!("constant/{name}")).to_dtype(DType::U32);
        numbers.and_then(|t| t.to_vec1()).expect("indices").into()
    }

    /// Cosine and sine.
    fn angles(&self) -> Angles {
        Angles::new(self.get("constant/cos"), self.get("constant/sin"))
    }

    /// Compares output and gradients.
    fn equals(&self, op: impl Fn(&[Value]) -> Result<Value>) {
        let run = run_with(&self.all("input"), &op, None, false, |_| self.get("dy"));
        let run = run.expect("the operation");
        let name = &self.name;
        assert_close(&format!("{name}: output"), &run.output, &self.get("output"), TOLERANCE);
        for (i, expected) in self.all("gradient").iter().enumerate() {
            let found = run.gradients[i].as_ref().expect("a gradient");
            assert_close(&format!("{name}: gradient {i}"), found, expected, TOLERANCE);
        }
    }
}

/// The fixture's dropout masks belong to these rows.
fn rows() -> RowKeys {
    [11, (1 << 40) + 3, 5, 7, 90, 1, 2, 4, 8].into()
}

#[test]
fn activations_and_gated_units_equal_torch() {
    for (name, f) in ALL {
        Case::of(&format!("activation/{name}")).equals(|v| ops::activation(&v[0], f));
        Case::of(&format!("gated/{name}")).equals(|v| ops::gated(&v[0], &v[1], f));
    }
}

#[test]
fn norms_equal_torch() {
    Case::of("rms_norm").equals(|v| ops::rms_norm(&v[0], &v[1], 1e-3));
    Case::of("layer_norm").equals(|v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-3));
    Case::of("layer_norm_without_bias").equals(|v| ops::layer_norm(&v[0], &v[1], None, 1e-3));
}

#[test]
fn rotary_equals_transformers() {
    for (name, style) in [("halves", RotaryStyle::Halves), ("pairs", RotaryStyle::Pairs)] {
        let case = Case::of(&format!("rotary/{name}"));
        case.equals(|v| ops::rotary(&v[0], 8, &case.angles(), style));
    }
}

#[test]
fn losses_equal_torch() {
    let case = Case::of("cross_entropy");
    case.equals(|v| ops::cross_entropy(&v[0], &case.indices("targets")));
    let case = Case::of("squared_error");
    case.equals(|v| ops::squared_error(&v[0], &case.get("constant/targets")));
    let case = Case::of("binary_cross_entropy");
    case.equals(|v| ops::binary_cross_entropy(&v[0], &case.get("constant/targets")));
}

#[test]
fn embedding_with_an_adapter_equals_torch() {
    let case = Case::of("embedding");
    case.equals(|v| {
        let term = LowRankRows { a: v[1].clone(), b: v[2].clone(), scale: 0.5 };
        ops::embedding(Rows::Trained(&v[0]), &case.indices("ids"), vec![term], None)
    });
}

#[test]
fn linear_with_two_adapters_equals_torch() {
    Case::of("linear").equals(|v| {
        let dropout = Some(Dropout { p: 0.4, key: Key::new(12_345), rows: rows() });
        let bias = Some(v[5].clone());
        let first = LowRank { a: v[3].clone(), b: v[4].clone(), bias, scale: 0.5, dropout };
        let (a, b) = (v[6].clone(), v[7].clone());
        let second = LowRank { a, b, bias: None, scale: 2.0, dropout: None };
        let matrix = Matrix::Trained { value: &v[1], transposed: false };
        ops::linear(&v[0], matrix, Some(&v[2]), vec![first, second])
    });
}

/// The fixture's attention layer.
pub(crate) fn layer(causal: bool) -> AttentionShape {
    AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        value_dim: 5,
        scale: 0.3,
        causal,
        window: None,
        softcap: None,
    }
}

#[test]
fn attention_equals_torch() {
    let whole: Arc<[Span]> = Span::packed(&[9]).into();
    let cross: Arc<[Span]> = [Span { queries: 0..9, keys: 0..13, offset: 0 }].into();
    let two: Arc<[Span]> = Span::packed(&[4, 5]).into();
    let window = AttentionShape { window: Some(3), ..layer(true) };
    let softcap = AttentionShape { softcap: Some(1.5), ..layer(true) };
    let dropout = Dropout { p: 0.3, key: Key::new(77), rows: rows() };
    Case::of("attention/full").equals(|v| attend(v, &layer(false), &cross, None));
    Case::of("attention/causal").equals(|v| attend(v, &layer(true), &whole, None));
    Case::of("attention/window").equals(|v| attend(v, &window, &whole, None));
    Case::of("attention/packed").equals(|v| attend(v, &layer(true), &two, None));
    Case::of("attention/bias").equals(|v| attend(v, &layer(false), &whole, None));
    Case::of("attention/softcap").equals(|v| attend(v, &softcap, &whole, None));
    Case::of("attention/dropout")
        .equals(|v| attend(v, &layer(true), &whole, Some(dropout.clone())));
}
