//! What doesn't fit is an error that names the operation and the operand, never a panic.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Dropout, Error, Jitter, Key, MappedFile, Result, Value, Weight,
    ops::{
        self, Activation, Angles, AttentionShape, LowRank, LowRankRows, LowRankStack, Matrix,
        RotaryStyle, Routing, Rows, Score, Span, Stack,
    },
};

use super::{check::normal, linear::temporary_file};

fn value(shape: &[usize]) -> Value {
    Value::constant(normal(1, &[shape]).remove(0))
}

fn weight(shape: &[usize]) -> Weight {
    Weight::from_tensor(value(shape).data()).expect("a weight")
}

/// Values of the dtypes that no operation computes with.
fn unreadable(shape: &[usize]) -> [Value; 2] {
    [DType::F16, DType::F64]
        .map(|dtype| Value::constant(value(shape).data().to_dtype(dtype).expect("a dtype")))
}

#[track_caller]
fn dtype_error(op: &str, found: Result<Value>) {
    match found {
        Err(Error::Dtype { op: named, .. }) => assert_eq!(named, op),
        other => panic!("{op}: {other:?}"),
    }
}

#[track_caller]
fn shape_error<T: std::fmt::Debug>(op: &str, found: Result<T>) {
    match found {
        Err(Error::Shape { op: named, .. }) => assert_eq!(named, op),
        other => panic!("{op}: {other:?}"),
    }
}

#[track_caller]
fn index_error(op: &str, found: Result<Value>, wrong: usize, at: usize) {
    match found {
        Err(Error::Index { op: named, index, place, .. }) => {
            assert_eq!((named, index, place), (op, wrong, at));
        }
        other => panic!("{op}: {other:?}"),
    }
}

#[test]
fn linear() {
    let term = |a: &[usize], b: &[usize], bias: Option<&[usize]>| LowRank {
        a: value(a),
        b: value(b),
        bias: bias.map(value),
        scale: 1.0,
        dropout: None,
    };
    let run = |x: &[usize], w: &[usize], bias: Option<&[usize]>, terms: Vec<LowRank>| {
        let bias = bias.map(value);
        ops::linear(&value(x), Matrix::Frozen(&weight(w)), bias.as_ref(), terms)
    };
    assert!(run(&[2, 3], &[4, 3], Some(&[4]), vec![term(&[1, 3], &[4, 1], Some(&[4]))]).is_ok());
    for wrong in [
        run(&[3], &[4, 3], None, vec![]),
        run(&[2, 2, 3], &[4, 3], None, vec![]),
        run(&[2, 4], &[4, 3], None, vec![]),
        run(&[2, 3], &[12], None, vec![]),
        run(&[2, 3], &[4, 3], Some(&[3]), vec![]),
        run(&[2, 3], &[4, 3], None, vec![term(&[3], &[4, 1], None)]),
        run(&[2, 3], &[4, 3], None, vec![term(&[1, 4], &[4, 1], None)]),
        run(&[2, 3], &[4, 3], None, vec![term(&[1, 3], &[1, 4], None)]),
        run(&[2, 3], &[4, 3], None, vec![term(&[1, 3], &[4, 2], None)]),
        run(&[2, 3], &[4, 3], None, vec![term(&[1, 3], &[4, 1], Some(&[1]))]),
    ] {
        shape_error("linear", wrong);
    }
    for x in unreadable(&[2, 3]) {
        dtype_error("linear", ops::linear(&x, Matrix::Frozen(&weight(&[4, 3])), None, vec![]));
        dtype_error("linear", ops::logits(&x, Matrix::Frozen(&weight(&[4, 3])), None, vec![]));
    }
}

#[test]
fn empty_operands_give_empty_or_zero_results() {
    let linear = |n: usize, input: usize, out: usize, r: usize| {
        let (a, b) = (value(&[r, input]), value(&[out, r]));
        let terms = vec![LowRank { a, b, bias: None, scale: 1.0, dropout: None }];
        let y =
            ops::linear(&value(&[n, input]), Matrix::Frozen(&weight(&[out, input])), None, terms);
        y.expect("a linear layer").data().to_vec2::<f32>().expect("numbers")
    };
    assert!(linear(0, 3, 4, 1).is_empty());
    assert_eq!(linear(2, 0, 4, 1), vec![vec![0.0; 4]; 2]);
    assert_eq!(linear(2, 3, 0, 1), vec![vec![0.0; 0]; 2]);
    assert_eq!(linear(2, 3, 4, 0).len(), 2);
    let y = ops::rms_norm(&value(&[2, 0]), &value(&[0]), 1e-6).expect("a norm");
    assert_eq!(y.dims(), [2, 0]);
    let y = ops::cross_entropy(&value(&[0, 3]), &[].into()).expect("a loss");
    assert_eq!(y.data().to_scalar::<f32>().expect("a number"), 0.0);
    let y =
        ops::embedding(Rows::Frozen(&weight(&[3, 2])), &[].into(), vec![], None).expect("no rows");
    assert_eq!(y.dims(), [0, 2]);
}

#[test]
fn weights_and_files() {
    let ids = Tensor::new(&[1u32, 2], &Device::Cpu).expect("ids");
    assert!(matches!(Weight::from_tensor(&ids), Err(Error::Dtype { op: "weight", .. })));
    let path = temporary_file();
    assert!(matches!(MappedFile::open(&path), Err(Error::Map { .. })));
    std::fs::write(&path, [0; 16]).expect("a temporary file");
    let file = MappedFile::open(&path).expect("mapped");
    std::fs::remove_file(&path).expect("the temporary file");
    assert!(Weight::mapped(&file, 0, &[2, 2], DType::F32).is_ok());
    for (start, shape) in [(4, [2, 2]), (usize::MAX, [1, 1]), (0, [usize::MAX, 2]), (17, [0, 1])] {
        let wrong = Weight::mapped(&file, start, &shape, DType::F32);
        assert!(matches!(wrong, Err(Error::OutsideFile { len: 16, .. })), "{wrong:?}");
    }
    let wrong = Weight::mapped(&file, 0, &[2], DType::I64);
    assert!(matches!(wrong, Err(Error::Dtype { found: DType::I64, .. })), "{wrong:?}");
}

#[test]
fn embedding() {
    let w = weight(&[3, 2]);
    let run =
        |w: &Weight, ids: &[u32], terms| ops::embedding(Rows::Frozen(w), &ids.into(), terms, None);
    index_error("embedding", run(&w, &[0, 2, 3], vec![]), 3, 2);
    index_error("embedding", run(&w, &[u32::MAX], vec![]), u32::MAX as usize, 0);
    let trained = value(&[3, 2]);
    index_error(
        "embedding",
        ops::embedding(Rows::Trained(&trained), &[9].into(), vec![], None),
        9,
        0,
    );
    shape_error("embedding", run(&weight(&[6]), &[0], vec![]));
    for (a, b) in [([1, 2], [2, 1]), ([1, 3], [1, 2]), ([1, 3], [2, 2])] {
        let term = LowRankRows { a: value(&a), b: value(&b), scale: 1.0 };
        shape_error("embedding", run(&w, &[0], vec![term]));
    }
}

#[test]
fn attention() {
    let good = AttentionShape {
        heads: 4,
        kv_heads: 2,
        head_dim: 3,
        value_dim: 2,
        scale: 1.0,
        causal: true,
        window: None,
        softcap: None,
    };
    let span = |queries: Range<usize>, keys: Range<usize>, offset| Span { queries, keys, offset };
    let run = |dims: [&[usize]; 3], bias: Option<&[usize]>, shape: &AttentionShape, span: Span| {
        let [q, k, v] = dims.map(value);
        let bias = bias.map(value);
        ops::attention(&q, &k, &v, bias.as_ref(), shape, &[span].into(), None)
    };
    let dims: [&[usize]; 3] = [&[5, 12], &[6, 6], &[6, 4]];
    let all = || span(0..5, 0..6, 1);
    assert!(run(dims, Some(&[11, 4]), &good, all()).is_ok());
    let with = |heads, kv_heads, head_dim, value_dim| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        value_dim,
        ..good.clone()
    };
    for wrong in [
        run([&[5, 11], dims[1], dims[2]], None, &good, all()),
        run([&[60], dims[1], dims[2]], None, &good, all()),
        run([&[], dims[1], dims[2]], None, &good, all()),
        run([dims[0], &[6, 7], dims[2]], None, &good, all()),
        run([dims[0], dims[1], &[5, 4]], None, &good, all()),
        run(dims, None, &with(4, 3, 3, 2), all()),
        run(dims, None, &with(4, 0, 3, 2), all()),
        run([&[5, 0], &[6, 6], &[6, 4]], None, &with(0, 2, 3, 2), all()),
        run([&[5, 0], &[6, 0], &[6, 4]], None, &with(4, 2, 0, 2), all()),
        run([&[5, 12], &[6, 6], &[6, 0]], None, &with(4, 2, 3, 0), all()),
        run(dims, None, &good, span(0..6, 0..6, 0)),
        run(dims, None, &good, span(0..5, 0..7, 0)),
        #[expect(clippy::reversed_empty_ranges, reason = "a wrong range is the test")]
        run(dims, None, &good, span(3..2, 0..6, 0)),
        run(dims, Some(&[9, 4]), &good, all()),
        run(dims, Some(&[12, 4]), &good, all()),
        run(dims, Some(&[11, 3]), &good, all()),
        run(dims, Some(&[44]), &good, all()),
        run(dims, Some(&[11, 4]), &good, span(0..5, 0..6, 2)),
        run(dims, Some(&[11, 4]), &good, span(0..5, 0..6, usize::MAX)),
    ] {
        shape_error("attention", wrong);
    }
    assert!(run(dims, Some(&[1, 4]), &good, span(0..0, 0..0, 0)).is_ok(), "an empty sequence");
}

#[test]
fn noise_for_too_few_rows() {
    let noise = Jitter { amount: 0.1, key: Key::new(1), rows: [7].into() };
    shape_error("jitter", ops::jitter(&value(&[2, 3]), Some(&noise)));
}

#[test]
fn masks_too_short_or_impossible() {
    let mask = |n: usize, p: f32| Dropout { p, key: Key::new(1), rows: vec![7; n].into() };
    for mask in [mask(1, 0.1), mask(2, -0.1), mask(2, 1.0), mask(2, f32::NAN)] {
        shape_or_probability(ops::dropout(&value(&[2, 3]), Some(&mask)));
        let (a, b) = (value(&[1, 3]), value(&[4, 1]));
        let terms = vec![LowRank { a, b, bias: None, scale: 1.0, dropout: Some(mask.clone()) }];
        let w = weight(&[4, 3]);
        shape_or_probability(ops::linear(&value(&[2, 3]), Matrix::Frozen(&w), None, terms));
        let [q, k, v] = [value(&[2, 3]), value(&[2, 3]), value(&[2, 3])];
        let shape = AttentionShape {
            heads: 1,
            kv_heads: 1,
            head_dim: 3,
            value_dim: 3,
            scale: 1.0,
            causal: true,
            window: None,
            softcap: None,
        };
        let spans: Arc<[Span]> = Span::packed(&[2]).into();
        shape_or_probability(ops::attention(&q, &k, &v, None, &shape, &spans, Some(mask)));
    }
}

#[track_caller]
fn shape_or_probability(found: Result<Value>) {
    let named = matches!(found, Err(Error::Shape { .. } | Error::Probability { .. }));
    assert!(named, "{found:?}");
}

#[test]
fn norms_rotary_and_activations() {
    let x = value(&[2, 6]);
    for w in [&[5][..], &[1, 6], &[]] {
        shape_error("rms_norm", ops::rms_norm(&x, &value(w), 1e-6));
        shape_error("layer_norm", ops::layer_norm(&x, &value(&[6]), Some(&value(w)), 1e-6));
    }
    shape_error("rms_norm", ops::rms_norm(&value(&[6]), &value(&[6]), 1e-6));
    let rotate = |x: &[usize], dim: usize, cos: &[usize], sin: &[usize]| {
        let angles = Angles::new(value(cos).data().clone(), value(sin).data().clone());
        ops::rotary(&value(x), dim, &angles, RotaryStyle::Halves)
    };
    assert!(rotate(&[2, 12], 6, &[2, 3], &[2, 3]).is_ok());
    assert!(rotate(&[2, 0], 6, &[2, 3], &[2, 3]).is_ok());
    for wrong in [
        rotate(&[2, 13], 6, &[2, 3], &[2, 3]),
        rotate(&[2, 12], 0, &[2, 3], &[2, 3]),
        rotate(&[2, 0], 0, &[2, 3], &[2, 3]),
        rotate(&[2, 12], 6, &[3, 3], &[3, 3]),
        rotate(&[2, 12], 6, &[2, 3], &[2, 2]),
        rotate(&[2, 12], 6, &[2, 4], &[2, 4]),
        rotate(&[2, 12], 6, &[6], &[6]),
        rotate(&[12], 6, &[2, 3], &[2, 3]),
    ] {
        shape_error("rotary", wrong);
    }
    shape_error("gated", ops::gated(&x, &value(&[6, 2]), Activation::Silu));
    let angles = Angles::new(value(&[2, 3]).data().clone(), value(&[2, 3]).data().clone());
    for wrong in unreadable(&[2, 6]) {
        dtype_error("rms_norm", ops::rms_norm(&wrong, &value(&[6]), 1e-6));
        dtype_error("layer_norm", ops::layer_norm(&wrong, &value(&[6]), None, 1e-6));
        dtype_error("activation", ops::activation(&wrong, Activation::Relu));
        dtype_error("gated", ops::gated(&wrong, &x, Activation::Silu));
        dtype_error("gated", ops::gated(&x, &wrong, Activation::Silu));
        dtype_error("gated_halves", ops::gated_halves(&wrong, Activation::Silu));
        dtype_error("rotary", ops::rotary(&wrong, 6, &angles, RotaryStyle::Pairs));
    }
}

#[test]
fn experts() {
    let (x, stack) = (value(&[4, 3]), weight(&[2, 6, 3]));
    #[expect(clippy::single_range_in_vec_init, reason = "a list of one group is the test")]
    let lists: [&[Range<usize>]; 5] = [&[0..4], &[0..2, 2..5], &[0..2, 3..4], &[1..2, 2..4], &[]];
    let run = |x: &Value, w: &Weight, groups: &[Range<usize>]| {
        ops::grouped_linear(x, &groups.into(), Stack::Frozen(w), Vec::new())
    };
    assert!(run(&x, &stack, &[0..0, 0..4]).is_ok());
    assert!(run(&value(&[0, 3]), &stack, &[0..0, 0..0]).is_ok());
    assert!(run(&x, &weight(&[2, 0, 3]), &[0..1, 1..4]).is_ok());
    for groups in lists {
        shape_error("grouped_linear", run(&x, &stack, groups));
    }
    for wrong in
        [run(&x, &weight(&[6, 3]), &[0..1, 1..4]), run(&value(&[4, 2]), &stack, &[0..1, 1..4])]
    {
        shape_error("grouped_linear", wrong);
    }
    let term = LowRankStack { a: value(&[3, 3]), b: value(&[6, 4]), scale: 1.0 };
    let groups = [0..1, 1..4].into();
    let frozen = Stack::Frozen(&stack);
    shape_error("grouped_linear", ops::grouped_linear(&x, &groups, frozen, vec![term]));

    let routing = |chosen, groups| Routing {
        score: Score::Sigmoid,
        chosen,
        normalized: true,
        scale: 1.0,
        bias: None,
        groups,
    };
    assert!(ops::route(&value(&[0, 4]), &routing(4, None)).is_ok());
    for (chosen, groups) in [
        (0, None),
        (5, None),
        (1, Some((3, 1))),
        (3, Some((2, 1))),
        (1, Some((2, 3))),
        (1, Some((0, 0))),
        (1, Some((2, 0))),
    ] {
        let wrong = ops::route(&value(&[2, 4]), &routing(chosen, groups));
        shape_error("route", wrong.map(|(w, _)| w));
    }
    let biased = Routing { bias: Some([0.0; 3].into()), ..routing(1, None) };
    shape_error("route", ops::route(&value(&[2, 4]), &biased).map(|(w, _)| w));

    for (shape, chosen) in [(&[2, 4][..], 5), (&[2, 4], 0), (&[0, 4], 1), (&[8], 1)] {
        shape_error("balance", ops::balance(&value(shape), chosen));
    }

    let mix = |places: &[usize]| ops::mix_rows(&x, &value(&[2, 2]), &places.into());
    assert!(mix(&[3, 1, 0, 2]).is_ok());
    for places in [&[3, 1, 0][..], &[3, 1, 0, 0], &[3, 1, 0, 4], &[0, 1, 2, 3, 3]] {
        shape_error("mix_rows", mix(places));
    }
}

#[test]
fn stacks() {
    let part = |rows: usize| weight(&[rows, 3]);
    let stack = |parts: Vec<Weight>| Weight::stacked(parts, &[2, 4, 3]);
    let whole = stack(vec![part(2), part(2), part(2), part(2)]).expect("four halves");
    assert_eq!(whole.rows(2..4).expect("a part").dims(), [2, 3]);
    assert_eq!(whole.rows(3..4).expect("half a part").dims(), [1, 3]);
    assert_eq!(whole.rows(4..8).expect("two parts").dims(), [4, 3]);
    for range in [1..3, 3..6, 2..5, 6..10] {
        assert!(matches!(whole.rows(range), Err(Error::Shape { op: "rows", .. })));
    }
    for wrong in [vec![], vec![part(4)], vec![part(4), part(2), part(2)], vec![weight(&[4, 2]); 2]]
    {
        assert!(matches!(stack(wrong), Err(Error::Shape { op: "stacked", .. })));
    }
    let mixed = vec![part(4), part(4).to_dtype(DType::BF16).expect("bf16")];
    assert!(matches!(stack(mixed), Err(Error::Dtype { op: "stacked", .. })));
}

#[test]
fn losses() {
    let z = value(&[2, 3]);
    index_error("cross_entropy", ops::cross_entropy(&z, &[0, 3].into()), 3, 1);
    shape_error("cross_entropy", ops::cross_entropy(&z, &[0].into()));
    shape_error("cross_entropy", ops::cross_entropy(&value(&[3]), &[0].into()));
    index_error("cross_entropy", ops::cross_entropy(&value(&[1, 0]), &[0].into()), 0, 0);
    shape_error("squared_error", ops::squared_error(&z, value(&[3, 2]).data()));
    shape_error("binary_cross_entropy", ops::binary_cross_entropy(&z, value(&[2]).data()));
}

#[test]
fn plumbing() {
    let x = value(&[2, 3]);
    shape_error("add", ops::add(&x, &value(&[3, 2])));
    shape_error("add_row", ops::add_row(&x, &value(&[2])));
    shape_error("concat_rows", ops::concat_rows(&[&x, &value(&[2, 2])]));
    shape_error("mul", ops::mul(&x, &value(&[2])));
    assert!(ops::reshape(&x, &[4]).is_err());
    index_error("select_rows", ops::select_rows(&x, &[1, 2].into()), 2, 1);
    index_error("select_rows", ops::select_rows(&x, &[usize::MAX].into()), usize::MAX, 0);
    index_error("select_rows", ops::select_rows(&value(&[2, 0]), &[5].into()), 5, 0);
    #[expect(clippy::reversed_empty_ranges, reason = "a wrong range is the test")]
    for wrong in [0..4, 4..5, 2..1] {
        assert!(ops::columns(&x, wrong.clone()).is_err(), "{wrong:?}");
    }
}
