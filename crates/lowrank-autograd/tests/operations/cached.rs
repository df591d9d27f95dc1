//! Attention over a growing cache gives what attention over the whole sequence gives.

use candle_core::Tensor;
use lowrank_autograd::{
    Error, Value,
    ops::{self, AttentionShape, KeyValues, Span},
};
use proptest::prelude::*;

use super::check::{assert_close, composed, normal};

fn shape(window: Option<usize>, softcap: Option<f32>) -> AttentionShape {
    let (heads, kv_heads, head_dim, value_dim) = (4, 2, 6, 3);
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        value_dim,
        scale: 0.4,
        causal: true,
        window,
        softcap,
    }
}

/// `q`, `k`, `v` of `n` rows for [`shape`], and a bias for 100 distances each way.
fn inputs(n: usize, seed: u64) -> Vec<Tensor> {
    normal(seed, &[&[n, 24], &[n, 12], &[n, 6], &[201, 4]])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    // Two sequences that grow by chunks, fed side by side.
    #[test]
    fn equals_attention_over_whole_sequences(
        first in prop::collection::vec(1..20usize, 1..5),
        second in 1..20usize,
        window in prop::option::of(1..9usize),
        softcap in prop::option::of(0.5..4.0f32),
        seed: u64,
    ) {
        let shape = shape(window, softcap);
        let lengths = [first.iter().sum(), second * first.len()];
        let sequences = lengths.map(|n| inputs(n, seed ^ n as u64));
        let bias = &sequences[0][3];
        let mut caches = [KeyValues::default(), KeyValues::default()];
        let mut done = [0, 0];
        let mut rows: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
        for &chunk in &first {
            let chunk = [chunk, second];
            let together = |i: usize| {
                let part = |s: usize| sequences[s][i].narrow(0, done[s], chunk[s]);
                Tensor::cat(&[part(0)?, part(1)?], 0)
            };
            let [q, k, v] = [0, 1, 2].map(|i| together(i).expect("rows"));
            let spans = Span::packed(&chunk);
            let y = ops::attention_cached(&q, &k, &v, Some(bias), &shape, &spans, &mut caches);
            let y = y.expect("attention");
            for s in 0..2 {
                rows[s].push(y.narrow(0, s * chunk[0], chunk[s]).expect("rows"));
                done[s] += chunk[s];
            }
        }
        for s in 0..2 {
            let t: Vec<Value> = sequences[s].iter().cloned().map(Value::constant).collect();
            let spans = Span::packed(&[lengths[s]]).into();
            let whole =
                ops::attention(&t[0], &t[1], &t[2], Some(&Value::constant(bias.clone())), &shape, &spans, None);
            let rows = Tensor::cat(&rows[s], 0).expect("rows");
            assert_close("the rows", &rows, whole.expect("attention").data(), 1e-5);
        }
    }
}

#[test] // over more keys than one tile holds
fn token_by_token_equals_attention_over_the_whole_sequence() {
    token_by_token();
    composed(token_by_token);
}

fn token_by_token() {
    for (window, softcap) in [(None, None), (Some(70), Some(2.0))] {
        let (n, shape) = (90, shape(window, softcap));
        let t = inputs(n, 5);
        let mut caches = [KeyValues::default()];
        let row = |i: usize, caches: &mut [KeyValues]| {
            let [q, k, v] = [0, 1, 2].map(|x| t[x].narrow(0, i, 1).expect("a row"));
            ops::attention_cached(&q, &k, &v, Some(&t[3]), &shape, &Span::packed(&[1]), caches)
        };
        let rows: Result<Vec<Tensor>, Error> = (0..n).map(|i| row(i, &mut caches)).collect();
        let rows = Tensor::cat(&rows.expect("attention"), 0).expect("rows");
        let v: Vec<Value> = t.into_iter().map(Value::constant).collect();
        let spans = Span::packed(&[n]).into();
        let whole = ops::attention(&v[0], &v[1], &v[2], Some(&v[3]), &shape, &spans, None);
        assert_close("the rows", &rows, whole.expect("attention").data(), 1e-5);
    }
}

#[test] // rows stand where the spans say, whatever the order of the spans
fn spans_may_come_in_any_order() {
    spans_in_two_orders();
    composed(spans_in_two_orders);
}

fn spans_in_two_orders() {
    let t = inputs(7, 3);
    let run = |spans: &[Span]| {
        let mut caches = vec![KeyValues::default(); spans.len()];
        ops::attention_cached(&t[0], &t[1], &t[2], None, &shape(None, None), spans, &mut caches)
            .and_then(|y| Ok(y.to_vec2::<f32>()?))
            .expect("attention")
    };
    let spans = Span::packed(&[3, 4]);
    let reversed: Vec<Span> = spans.iter().rev().cloned().collect();
    assert_eq!(run(&spans), run(&reversed));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let t = inputs(7, 3);
    let run = |k: &Tensor, bias: Option<&Tensor>, spans: &[usize], caches: usize| {
        let mut caches = vec![KeyValues::default(); caches];
        let spans = Span::packed(spans);
        ops::attention_cached(&t[0], k, &t[2], bias, &shape(None, None), &spans, &mut caches)
    };
    let short = normal(1, &[&[5, 4]]).remove(0);
    let fewer = t[1].narrow(0, 0, 5).expect("rows");
    for wrong in [
        run(&t[1], None, &[3, 4], 1),
        run(&t[1], Some(&short), &[3, 4], 2),
        run(&fewer, None, &[3, 4], 2),
    ] {
        assert!(matches!(wrong, Err(Error::Shape { .. })), "{wrong:?}");
    }
}
