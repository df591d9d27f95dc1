//! Products of bf16 against those of f32, whose results and gradients `tests/operations` holds
//! against plain sums and central differences.

use half::bf16;

use super::*;
use crate::{
    Key,
    kernels::elementwise::{narrowed, widened},
};

/// Sequences and options beyond the sizes of tiles and blocks.
fn cases() -> Vec<(AttentionShape, Vec<Span>, bool)> {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        value_dim: 64,
        scale: 0.125,
        causal: true,
        window: None,
        softcap: None,
    };
    let odd = AttentionShape { head_dim: 23, value_dim: 37, scale: 0.3, ..shape.clone() };
    let one = |queries: usize, keys: usize, offset: usize| {
        vec![Span { queries: 0..queries, keys: 0..keys, offset }]
    };
    vec![
        (shape.clone(), Span::packed(&[128]), false),
        (shape.clone(), Span::packed(&[1, 70, 3, 200, 64]), false),
        (odd.clone(), Span::packed(&[5, 131, 17]), true),
        (AttentionShape { window: Some(70), ..shape.clone() }, one(150, 150, 0), false),
        (AttentionShape { window: Some(40), ..shape.clone() }, one(310, 333, 23), false),
        (AttentionShape { causal: false, scale: 0.3, ..shape.clone() }, one(77, 601, 0), false),
        (AttentionShape { head_dim: 32, value_dim: 96, ..shape.clone() }, one(520, 520, 0), false),
        (shape.clone(), one(9, 3, 0), false),
        // Enough work to be halved, too few queries to.
        (
            AttentionShape { heads: 8, kv_heads: 1, causal: false, ..shape.clone() },
            one(32, 700, 0),
            false,
        ),
        (AttentionShape { window: Some(9), ..odd.clone() }, one(90, 130, 31), true),
        (AttentionShape { causal: false, ..odd.clone() }, one(77, 101, 0), false),
        (AttentionShape { softcap: Some(2.0), ..shape }, Span::packed(&[100, 30]), true),
        (AttentionShape { heads: 3, kv_heads: 3, ..odd }, one(600, 600, 0), false),
    ]
}

/// Numbers that bf16 holds.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let round = |v: f32| half::bf16::from_f32(v).to_f32();
    Key::new(seed).normals(n).into_iter().map(round).collect()
}

/// The error's length over the expectation's.
fn far(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let length = |x: &mut dyn Iterator<Item = f32>| {
        x.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
    };
    let error = length(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    error / length(&mut expected.iter().copied()).max(1e-9)
}

#[test]
fn products_of_bf16_are_near_those_of_f32() {
    for pairs in Pairs::all() {
        for (shape, spans, bias) in cases() {
            let n = spans.iter().map(|s| s.queries.end).max().unwrap_or_default();
            let m = spans.iter().map(|s| s.keys.end).max().unwrap_or_default();
            let q = numbers(1, n * shape.heads * shape.head_dim);
            let k = numbers(2, m * shape.kv_heads * shape.head_dim);
            let v = numbers(3, m * shape.kv_heads * shape.value_dim);
            let dy = numbers(4, n * shape.heads * shape.value_dim);
            let bias = bias.then(|| numbers(5, (4 * m + 1) * shape.heads));
            let run = |pairs: Option<Pairs>| {
                let of = Operands {
                    q: Elements::F32(&q),
                    k: Elements::F32(&k),
                    v: Elements::F32(&v),
                    bias: bias.as_deref(),
                    shape: &shape,
                    dropout: None,
                    pairs,
                };
                let mut output = vec![0.0; dy.len()];
                let rows = forward(of, &spans, &mut output);
                let saved =
                    Saved { output: Elements::F32(&output), rows: &rows, dy: Elements::F32(&dy) };
                let wanted = Wanted { q: true, k: true, v: true, bias: bias.is_some() };
                let gradients = backward(of, &spans, saved, wanted);
                [output, gradients.q.wide(), gradients.k.wide(), gradients.v.wide(), gradients.bias]
            };
            for (i, (found, expected)) in run(Some(pairs)).iter().zip(run(None)).enumerate() {
                let far = far(found, &expected);
                assert!(far < 0.01, "result {i} of {shape:?}, {spans:?}: {far}");
            }
        }
    }
}

/// The gradients of all operands, that of the values first.
fn gradients(
    of: Operands<'_>,
    spans: &[Span],
    rows: &[SoftmaxRow],
    [output, dy]: [Elements<'_>; 2],
) -> [Vec<f32>; 4] {
    let wanted = Wanted { q: true, k: true, v: true, bias: of.bias.is_some() };
    let found = backward(of, spans, Saved { output, rows, dy }, wanted);
    [found.v.wide(), found.q.wide(), found.k.wide(), found.bias]
}

#[test]
fn operands_of_bf16_have_the_results_of_the_same_numbers_in_f32() {
    for (shape, spans, bias) in cases() {
        let n = spans.iter().map(|s| s.queries.end).max().unwrap_or_default();
        let m = spans.iter().map(|s| s.keys.end).max().unwrap_or_default();
        let wide = [
            numbers(1, n * shape.heads * shape.head_dim),
            numbers(2, m * shape.kv_heads * shape.head_dim),
            numbers(3, m * shape.kv_heads * shape.value_dim),
            numbers(4, n * shape.heads * shape.value_dim),
        ];
        let narrow = wide.each_ref().map(|x| narrowed(x));
        let [q, k, v, dy] = wide.each_ref().map(|x| Elements::F32(x));
        let bias = bias.then(|| numbers(5, (4 * m + 1) * shape.heads));
        for pairs in Pairs::all() {
            let (bias, shape, pairs) = (bias.as_deref(), &shape, Some(pairs));
            let of = Operands { q, k, v, bias, shape, dropout: None, pairs };
            let mut output = vec![0.0; dy.len()];
            let rows = forward(of, &spans, &mut output);
            let output = narrowed(&output);
            let kept = Elements::Bf16(&output);
            let expected = gradients(of, &spans, &rows, [kept, dy]);

            let [q, k, v, dy] = narrow.each_ref().map(|x| Elements::Bf16(x));
            let of = Operands { q, k, v, ..of };
            let mut found = vec![bf16::ONE; dy.len()];
            let rows = forward(of, &spans, &mut found);
            let gradients = gradients(of, &spans, &rows, [kept, dy]);
            // Tiles of AMX round probabilities otherwise than pairs of bf16, which wide operands
            // are multiplied in. Otherwise a row's `Σ dy·y` alone is summed in another order.
            let tolerance = if amx::takes(&of, &spans) { 0.01 } else { 1e-5 };
            if tolerance < 0.01 {
                assert!(found == output, "the output of {shape:?}, {spans:?}");
                let values = [&gradients[0], &expected[0]];
                assert!(values[0] == values[1], "gradient of the values of {shape:?}, {spans:?}");
            }
            let error = far(&widened(&found), &widened(&output));
            assert!(error < tolerance, "the output of {shape:?}, {spans:?}: {error}");
            for (i, (found, expected)) in gradients.iter().zip(&expected).enumerate() {
                let error = far(found, expected);
                assert!(error < tolerance, "gradient {i} of {shape:?}, {spans:?}: {error}");
            }
        }
    }
}

#[test] // scores of up to 1e20, values near the end of the range, and a row's only key
fn means_of_the_largest_values_are_finite() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, ..cases()[0].0.clone() };
    let (n, dim) = (300, shape.head_dim);
    let largest = 0.9 * bf16::MAX.to_f32();
    let large =
        |seed| narrowed(&numbers(seed, n * dim).iter().map(|v| v * 1e9).collect::<Vec<_>>());
    let (q, k, v) = (large(1), large(2), narrowed(&vec![largest; n * dim]));
    for pairs in Pairs::all() {
        let [q, k, v] = [&q, &k, &v].map(|x| Elements::Bf16(x));
        let of = Operands { q, k, v, bias: None, shape: &shape, dropout: None, pairs: Some(pairs) };
        let mut output = vec![bf16::ZERO; n * dim];
        let rows = forward(of, &Span::packed(&[n]), &mut output);
        assert!(rows.iter().all(|row| row.sum >= 1.0 && row.sum.is_finite()));
        let near = |y: &bf16| (y.to_f32() / largest - 1.0).abs() < 0.01;
        assert!(
            output.iter().all(near),
            "the output of {:?}",
            amx::takes(&of, &Span::packed(&[n]))
        );
    }
}
