//! Attention with every option.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Dropout, Error, Value,
    ops::{self, AttentionShape, Span},
    reference,
};
use proptest::prelude::*;

use super::{
    bf16::Narrow,
    check::{Allowed, BF16, OUTPUT, check, normal, numbers},
    plumbing::mask,
};

/// An attention layer and the sequences it sees.
#[derive(Clone, Debug)]
struct Case {
    shape: AttentionShape,
    spans: Vec<Span>,
    bias: bool,
    dropout: bool,
    seed: u64,
}

/// Lengths of queries and what stands before or after them among the keys: one sequence crosses
/// the block of 64 rows now and then, a cache stands before the queries, or the keys are others.
fn spans() -> impl Strategy<Value = Vec<Span>> {
    let sequence = (1..20usize, prop_oneof![4 => Just(0), 1 => 50..80usize], 0..9usize, 0..4usize);
    prop::collection::vec(sequence, 1..4).prop_map(|sequences| {
        let (mut query, mut key) = (0, 0);
        let mut spans = Vec::new();
        for (short, more, offset, after) in sequences {
            let (queries, keys) = (short + more, offset + short + more + after);
            spans.push(Span { queries: query..query + queries, keys: key..key + keys, offset });
            (query, key) = (query + queries, key + keys);
        }
        spans
    })
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (1..4usize, 1..4usize, 1..20usize, 1..20usize);
    let window = prop::option::of(prop_oneof![1..9usize, 60..90usize]);
    let options = (any::<bool>(), window, prop::option::of(0.5..4.0f32));
    (sizes, options, spans(), any::<[bool; 2]>(), any::<u64>()).prop_map(
        |((kv_heads, group, head_dim, value_dim), options, spans, [bias, dropout], seed)| {
            let (causal, window, softcap) = options;
            let (heads, scale) = (kv_heads * group, 1.0 / (head_dim as f32).sqrt());
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                value_dim,
                scale,
                causal,
                window,
                softcap,
            };
            Case { shape, spans, bias, dropout, seed }
        },
    )
}

impl Case {
    /// `q`, `k`, `v` and perhaps a bias; the mask of the probabilities.
    fn inputs(&self) -> (Vec<Tensor>, Option<Dropout>) {
        let s = &self.shape;
        let n = self.spans.last().map_or(0, |span| span.queries.end);
        let m = self.spans.last().map_or(0, |span| span.keys.end);
        let longest = self.spans.iter().map(|span| span.keys.len()).max().unwrap_or(0);
        let mut inputs = normal(
            self.seed,
            &[
                &[n, s.heads * s.head_dim],
                &[m, s.kv_heads * s.head_dim],
                &[m, s.kv_heads * s.value_dim],
                &[2 * longest + 1, s.heads],
            ],
        );
        if !self.bias {
            inputs.truncate(3);
        }
        (inputs, self.dropout.then(|| mask(self.seed, n, 0.3)))
    }

    fn check(&self) {
        let (inputs, mask) = self.inputs();
        check(
            &inputs,
            |v| attend(v, &self.shape, &self.spans.clone().into(), mask.clone()),
            |t| plain(t, &self.shape, &self.spans, mask.as_ref()),
        );
    }

    /// The same of operands that are bf16; products may be those of bf16 if they are marked as
    /// coming from weights of it.
    fn check_bf16(&self, marked: bool) {
        let (inputs, mask) = self.inputs();
        let (narrow, output) = (3, DType::BF16);
        // Gradients of scores are made with the output as it was rounded.
        let of_bf16: &[usize] = if marked { &[0, 1, 2, 3] } else { &[0, 1, 3] };
        let allowed = Allowed { of_bf16, least: 16.0, ..Allowed::default() };
        // Of scaled queries, and of probabilities.
        let error = if marked { 4.0 * BF16 } else { OUTPUT };
        Narrow { inputs: &inputs, narrow, marked, output, error, allowed }.check(
            |v| attend(v, &self.shape, &self.spans.clone().into(), mask.clone()),
            |t| plain(t, &self.shape, &self.spans, mask.as_ref()),
        );
    }
}

/// Attention over `q`, `k`, `v` and perhaps a bias.
pub(crate) fn attend(
    v: &[Value],
    shape: &AttentionShape,
    spans: &Arc<[Span]>,
    dropout: Option<Dropout>,
) -> lowrank_autograd::Result<Value> {
    ops::attention(&v[0], &v[1], &v[2], v.get(3), shape, spans, dropout)
}

fn plain(
    t: &[Tensor],
    shape: &AttentionShape,
    spans: &[Span],
    dropout: Option<&Dropout>,
) -> lowrank_autograd::Result<Tensor> {
    reference::attention(&t[0], &t[1], &t[2], t.get(3), shape, spans, dropout)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn equals_its_plain_version(case in case()) {
        case.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn of_bf16_equals_its_plain_version(case in case(), marked: bool) {
        case.check_bf16(marked);
    }
}

/// A layer whose operands kernels of a GPU take in tiles when they are bf16: heads of a multiple of 16
/// up to 128, neither bias nor dropout.
fn in_tiles() -> impl Strategy<Value = Case> {
    let width = prop::sample::select(vec![16, 64, 80, 96, 128]);
    let far = prop::option::of(prop_oneof![1..9usize, 60..150usize]);
    (case(), width, far).prop_map(|(mut case, width, window)| {
        let shape = &mut case.shape;
        (shape.head_dim, shape.value_dim, shape.window) = (width, width, window);
        shape.scale = 1.0 / (width as f32).sqrt();
        (case.bias, case.dropout) = (false, false);
        case
    })
}

/// Causal attention of six query heads to two key heads.
fn tiled(width: usize, spans: Vec<Span>) -> Case {
    let (heads, kv_heads, head_dim, value_dim) = (6, 2, width, width);
    let (scale, causal) = (1.0 / (width as f32).sqrt(), true);
    let (window, softcap) = (None, None);
    let shape =
        AttentionShape { heads, kv_heads, head_dim, value_dim, scale, causal, window, softcap };
    Case { shape, spans, bias: false, dropout: false, seed: 13 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn in_tiles_equals_its_plain_version(case in in_tiles()) {
        case.check_bf16(true);
    }
}

#[test] // several tiles of queries and keys, and rests
fn in_tiles_over_long_sequences() {
    tiled(64, Span::packed(&[331])).check_bf16(true);
    let mut case = tiled(80, vec![Span { queries: 0..150, keys: 3..204, offset: 50 }]);
    (case.shape.window, case.shape.softcap) = (Some(70), Some(2.0));
    case.check_bf16(true);
}

#[test] // more than one launch takes
fn in_tiles_over_many_sequences() {
    tiled(16, Span::packed(&[3; 70])).check_bf16(true);
}

#[test] // keys that come too late for every query, and queries for every key
fn in_tiles_where_none_is_seen() {
    let mut case = tiled(16, vec![Span { queries: 0..90, keys: 0..30, offset: 0 }]);
    case.shape.window = Some(20);
    case.check_bf16(true);
    tiled(16, vec![Span { queries: 0..30, keys: 0..200, offset: 0 }]).check_bf16(true);
}

#[test]
fn in_tiles_rows_of_no_sequence_are_zeros() {
    let case = tiled(16, Span::packed(&[20]));
    let spans: Arc<[Span]> = Arc::new([Span { queries: 5..25, keys: 2..22, offset: 0 }]);
    let inputs = normal(case.seed, &[&[29, 96], &[23, 32], &[23, 32]]);
    let allowed = Allowed { of_bf16: &[0, 1, 2], least: 16.0, ..Allowed::default() };
    Narrow { error: 4.0 * BF16, allowed, ..Narrow::all(&inputs) }.check(
        |v| attend(v, &case.shape, &spans, None),
        |t| {
            let rows = |t: &Tensor, first| t.narrow(0, first, 20);
            let inner = [rows(&t[0], 5)?, rows(&t[1], 2)?, rows(&t[2], 2)?];
            Ok(plain(&inner, &case.shape, &case.spans, None)?.pad_with_zeros(0, 5, 4)?)
        },
    );
}

#[test] // a prompt that several answers share
fn sequences_may_share_keys() {
    let shape = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 5,
        value_dim: 3,
        scale: 0.4,
        causal: false,
        window: None,
        softcap: None,
    };
    let spans = vec![
        Span { queries: 0..3, keys: 0..6, offset: 0 },
        Span { queries: 3..8, keys: 0..6, offset: 0 },
        Span { queries: 8..9, keys: 4..7, offset: 0 },
    ];
    Case { shape, spans, bias: true, dropout: true, seed: 7 }.check();
}

/// One sequence of causal attention that sees `window` keys back.
fn long(n: usize, window: Option<usize>, bias: bool) -> Case {
    let (heads, kv_heads, head_dim, value_dim) = (2, 1, 40, 33);
    let (scale, causal, softcap) = (0.2, true, None);
    let shape =
        AttentionShape { heads, kv_heads, head_dim, value_dim, scale, causal, window, softcap };
    Case { shape, spans: Span::packed(&[n]), bias, dropout: false, seed: 11 }
}

#[test] // so long that two tasks share the keys of a head in the backward pass
fn long_sequences() {
    long(470, None, true).check();
    long(500, Some(300), false).check();
}

#[test] // a mean of the largest numbers is one of them
fn large_values_stay_finite() {
    let case = long(300, None, false);
    let zeros = |width| Tensor::zeros((300, width), DType::F32, &Device::Cpu).expect("zeros");
    let v = zeros(33).affine(1.0, f64::from(f32::MAX) * 0.999).expect("v");
    let inputs = [zeros(80), zeros(40), v].map(Value::constant);
    let y = attend(&inputs, &case.shape, &case.spans.clone().into(), None).expect("attention");
    for y in numbers(y.data()) {
        assert!((y / f64::from(f32::MAX) - 0.999).abs() < 1e-5, "{y}");
    }
}

#[test]
fn a_query_row_belongs_to_one_sequence() {
    let case = long(8, None, false);
    let t: Vec<Value> =
        normal(1, &[&[8, 80], &[8, 40], &[8, 33]]).into_iter().map(Value::constant).collect();
    let span = |queries| Span { queries, keys: 0..8, offset: 0 };
    let spans = vec![span(3..8), span(0..4)];
    let y = attend(&t, &case.shape, &spans.into(), None);
    assert!(matches!(y, Err(Error::Shape { .. })), "{y:?}");
}

#[test]
fn packing_changes_nothing_but_the_rows_place() {
    let shape = AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        value_dim: 4,
        scale: 0.5,
        causal: true,
        window: Some(5),
        softcap: None,
    };
    let t = normal(3, &[&[12, 8], &[12, 4], &[12, 4]]);
    let run = |first: usize, len: usize, spans: &[usize]| {
        let part: Vec<Value> = t
            .iter()
            .map(|t| {
                Value::constant(t.narrow(0, first, len).expect("rows").contiguous().expect("c"))
            })
            .collect();
        let y = attend(&part, &shape, &Span::packed(spans).into(), None).expect("attention");
        y.data().to_vec2::<f32>().expect("numbers")
    };
    let packed = run(0, 12, &[5, 7]);
    assert_eq!(packed[..5], run(0, 5, &[5]));
    assert_eq!(packed[5..], run(5, 7, &[7]));
}
