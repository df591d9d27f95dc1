//! Operations on bf16, as results of bf16 weights are: against the plain versions on the same
//! numbers, up to the rounding of what is bf16 again.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Jitter, Result, Value, Weight,
    ops::{self, Activation, Matrix, RotaryStyle},
    reference,
};
use proptest::prelude::*;

use super::{
    activation::ALL,
    check::{
        Allowed, BF16, OUTPUT, PARTS, assert_bits, assert_close, assert_differences, assert_same,
        bits, composed, indices, normal, pools, rounded, run,
    },
    linear::{plain_terms, terms},
    plumbing::mask,
    rotary::angles,
};

/// What is asked of an operation whose first inputs are bf16.
#[derive(Clone, Copy)]
pub(crate) struct Narrow<'a> {
    pub(crate) inputs: &'a [Tensor],
    /// How many of the inputs are bf16, from the first on.
    pub(crate) narrow: usize,
    /// Whether they are marked as coming from bf16 weights, or, if none is, whether the first is.
    pub(crate) marked: bool,
    /// The output's dtype.
    pub(crate) output: DType,
    /// Largest error of the output beside its rounding, relative to its largest element.
    pub(crate) error: f64,
    /// The same for gradients.
    pub(crate) allowed: Allowed<'a>,
}

impl<'a> Narrow<'a> {
    /// All inputs are marked bf16, as are the output and all gradients.
    pub(crate) fn all(inputs: &'a [Tensor]) -> Self {
        let (narrow, marked, output) = (inputs.len(), true, DType::BF16);
        let rounded = [0, 1, 2].get(..narrow).unwrap_or_default();
        Self { inputs, narrow, marked, output, error: OUTPUT, allowed: rounds(rounded) }
    }

    /// Operation and plain version, the latter in f64, agree: outputs, and gradients for one of the
    /// output that is f32 and for one that is bf16. So does what is composed. Bits don't change with the number of threads,
    /// with strides, or with which of the inputs are trained.
    pub(crate) fn check(
        self,
        op: impl Fn(&[Value]) -> Result<Value> + Sync,
        plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let exact = |(i, t): (usize, &Tensor)| match i < self.narrow.max(1) {
            true => rounded(t, DType::BF16),
            false => t.clone(),
        };
        let inputs: Vec<Tensor> = self.inputs.iter().enumerate().map(exact).collect();
        let wide: Vec<Tensor> =
            inputs.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_, _>>().expect("f64");
        let expected = plain(&wide).expect("the plain version in f64");
        // The gradient of a loss is a number of f32.
        let dtypes = [DType::F32, DType::BF16];
        for dtype in dtypes.into_iter().take(1 + expected.rank().min(1)) {
            let run = |only, strides| {
                let op = |v: &[Value]| self.run(v, &op, dtype, strides);
                run(&inputs, &op, only, false).expect("the operation")
            };
            let done = run(None, false);
            assert_eq!(done.output.dtype(), self.output);
            assert_close("the output", &done.output, &expected, self.error);
            assert_differences(&wide, &done, self.allowed, &plain);
            for pool in pools() {
                let again = pool.install(|| run(None, false));
                assert_same(&format!("{} threads", pool.current_num_threads()), &again, &done);
            }
            assert_same("other strides", &run(None, true), &done);
            for strides in [false, true] {
                let composed = composed(|| run(None, strides));
                let error = self.error.max(BF16);
                assert_close("the output, composed", &composed.output, &expected, error);
                assert_differences(&wide, &composed, self.composed(), &plain);
            }
            for only in 0..inputs.len() {
                let one = run(Some(only), false);
                assert_bits("output with one input trained", &one.output, &done.output);
                for (i, (one, all)) in one.gradients.iter().zip(&done.gradients).enumerate() {
                    match (one, all) {
                        (Some(one), Some(all)) if i == only => assert_bits("alone", one, all),
                        (found, _) => assert_eq!(found.is_some(), i == only, "gradient {i}"),
                    }
                }
            }
        }
    }

    /// What gradients may miss when they are composed: all that is multiplied is rounded then.
    fn composed(&self) -> Allowed<'_> {
        let least = self.allowed.least.max(4.0);
        Allowed { of_bf16: &[0, 1, 2, 3], least, ..self.allowed }
    }

    /// The operation on inputs as they are described, whose output receives a gradient of `dtype`.
    fn run(
        &self,
        v: &[Value],
        op: &impl Fn(&[Value]) -> Result<Value>,
        dtype: DType,
        strides: bool,
    ) -> Result<Value> {
        let mark = mark()?;
        let described = |(i, v): (usize, &Value)| {
            let own = if i < self.narrow { DType::BF16 } else { DType::F32 };
            let leads = (self.marked && i < self.narrow.max(1)).then_some(&mark);
            cast(v, leads, [own, DType::F32], strides)
        };
        let v = v.iter().enumerate().map(described).collect::<Result<Vec<_>>>()?;
        let y = op(&v)?;
        let own = y.data().dtype();
        cast(&y, None, [own, dtype], strides)
    }
}

/// Gradients of some inputs were rounded.
fn rounds(rounded: &[usize]) -> Allowed<'_> {
    Allowed { rounded, ..Allowed::default() }
}

/// A constant that a bf16 weight leads to.
fn mark() -> Result<Value> {
    let one = Tensor::ones((1, 1), DType::BF16, &Device::Cpu)?;
    let weight = Weight::from_tensor(&one)?;
    ops::linear(&Value::constant(one), Matrix::Frozen(&weight), None, Vec::new())
}

/// The same numbers in a dtype of their own, as is the gradient on its way back, both laid out
/// otherwise if `strides`; a result of what `leads` to it.
fn cast(x: &Value, leads: Option<&Value>, to: [DType; 2], strides: bool) -> Result<Value> {
    let lay = move |t: Tensor| if strides { super::check::strided(&t) } else { Ok(t) };
    let y = lay(x.data().to_dtype(to[0])?)?;
    let parents: Vec<&Value> = std::iter::once(x).chain(leads).collect();
    let others = parents.len() - 1;
    Ok(Value::record_many("cast", y, &parents, |_| {
        move |dy: Tensor| Ok([vec![Some(lay(dy.to_dtype(to[1])?)?)], vec![None; others]].concat())
    }))
}

/// A matrix of this dtype as a weight, laid down as `[in, out]` if `transposed`.
fn weight(w: &Tensor, dtype: DType, transposed: bool) -> Weight {
    let w = w.to_dtype(dtype).expect("a dtype");
    let stored = if transposed { w.t().expect("a matrix") } else { w };
    let weight = Weight::from_tensor(&stored.contiguous().expect("contiguous")).expect("a weight");
    if transposed { weight.transpose() } else { weight }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_equals_its_plain_version(
        (n, input, out, r) in (1..70usize, 1..70usize, 1..70usize, 1..6usize),
        dtype in prop::sample::select(vec![DType::BF16, DType::BF16, DType::F32, DType::F16]),
        [transposed, dropped]: [bool; 2],
        seed: u64,
    ) {
        let t = normal(seed, &[
            &[n, input], &[out], &[r, input], &[out, r], &[out], &[3, input], &[out, 3],
        ]);
        let w = normal(!seed, &[&[out, input]]).remove(0);
        let (w, mask) = (rounded(&w, dtype), dropped.then(|| mask(seed, n, 0.3)));
        let weight = weight(&w, dtype, transposed);
        let plain = |t: &[Tensor]| {
            let terms = plain_terms(&t[2..], mask.as_ref());
            reference::linear(&t[0], &w.to_dtype(t[0].dtype())?, Some(&t[1]), &terms)
        };
        let output = if dtype == DType::BF16 { dtype } else { DType::F32 };
        // What an adapter with dropout adds to its input's gradient is added to f32.
        let rounded: &[usize] = if dropped { &[] } else { &[0] };
        let parts: &[usize] = if dtype == DType::BF16 { &[0] } else { &[] };
        // An element of `B`'s gradient is a sum of some fifty terms of size 7, which may cancel.
        let allowed = Allowed { parts, least: 4.0, ..rounds(rounded) };
        let of = Narrow { inputs: &t, narrow: 1, marked: true, output, error: OUTPUT, allowed };
        let frozen = Matrix::Frozen(&weight);
        of.check(
            |v| ops::linear(&v[0], frozen, Some(&v[1]), terms(&v[2..], mask.as_ref())),
            plain,
        );
        let error = if dtype == DType::BF16 { PARTS } else { OUTPUT };
        let of = Narrow { output: DType::F32, error, ..of };
        of.check(
            |v| ops::logits(&v[0], frozen, Some(&v[1]), terms(&v[2..], mask.as_ref())),
            plain,
        );
    }

    #[test]
    fn linear_trains_a_matrix_on_it(
        (n, input, out) in (1..70usize, 1..70usize, 1..70usize),
        transposed: bool,
        seed: u64,
    ) {
        let dims = if transposed { [input, out] } else { [out, input] };
        let t = normal(seed, &[&[n, input], &dims]);
        let (output, allowed) = (DType::F32, rounds(&[0]));
        let of = Narrow { narrow: 1, output, allowed, ..Narrow::all(&t) };
        of.check(
            |v| ops::linear(&v[0], Matrix::Trained { value: &v[1], transposed }, None, Vec::new()),
            |t| {
                let w = if transposed { t[1].t()?.contiguous()? } else { t[1].clone() };
                reference::linear(&t[0], &w, None, &[])
            },
        );
    }

    #[test]
    fn norms_equal_their_plain_versions(n in 1..70usize, d in 2..70usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[d], &[d]]);
        // bf16; f32 that comes from bf16 weights, as sums do; bf16 that comes from elsewhere.
        for (narrow, marked) in [(1, true), (0, true), (1, false)] {
            let output = if marked { DType::BF16 } else { DType::F32 };
            let rounded = [0].get(..narrow).expect("one at most");
            let of = |count: usize| {
                let inputs = &t[..count];
                Narrow { narrow, marked, output, allowed: rounds(rounded), ..Narrow::all(inputs) }
            };
            of(2).check(
                |v| ops::rms_norm(&v[0], &v[1], 1e-2),
                |t| reference::rms_norm(&t[0], &t[1], 1e-2),
            );
            of(3).check(
                |v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-2),
                |t| reference::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-2),
            );
        }
    }

    #[test]
    fn activations_equal_their_plain_versions(
        (n, d) in (1..9usize, 1..70usize),
        which in 0..8usize,
        seed: u64,
    ) {
        let (_, f) = ALL[which];
        let t = normal(seed, &[&[n, d], &[n, d]]);
        Narrow::all(&t[..1]).check(
            |v| ops::activation(&v[0], f),
            |t| reference::activation(&t[0], f),
        );
        let gated = |v: &[Value]| ops::gated(&v[0], &v[1], f);
        let plain = |t: &[Tensor]| reference::gated(&t[0], &t[1], f);
        Narrow::all(&t).check(gated, plain);
        // One f32 makes all of them f32.
        Narrow { narrow: 1, output: DType::F32, allowed: Allowed::default(), ..Narrow::all(&t) }.check(gated, plain);
        let halves = normal(seed, &[&[n, 2 * d]]);
        let half = |t: &Tensor, from| t.narrow(1, from, d);
        Narrow::all(&halves).check(
            |v| ops::gated_halves(&v[0], f),
            |t| reference::gated(&half(&t[0], 0)?, &half(&t[0], d)?, f),
        );
    }

    #[test]
    fn rotary_equals_its_plain_version(
        (n, heads, half, rest) in (1..20usize, 1..5usize, 1..40usize, 0..5usize),
        seed: u64,
    ) {
        let dim = 2 * half + rest;
        let angles = angles(n, half, seed);
        let x = normal(seed, &[&[n, heads * dim]]);
        for style in [RotaryStyle::Halves, RotaryStyle::Pairs] {
            Narrow::all(&x).check(
                |v| ops::rotary(&v[0], dim, &angles, style),
                |t| reference::rotary(&t[0], dim, &angles, style),
            );
        }
    }

    #[test]
    fn sums_are_f32(n in 1..20usize, d in 1..150usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[n, d]]);
        for narrow in [1, 2] {
            let of = Narrow { narrow, output: DType::F32, allowed: Allowed::default(), ..Narrow::all(&t) };
            of.check(|v| ops::add(&v[0], &v[1]), |t| Ok((&t[0] + &t[1])?));
            of.check(|v| ops::add(&v[1], &v[0]), |t| Ok((&t[0] + &t[1])?));
        }
    }

    #[test]
    fn linear_cross_entropy_equals_its_plain_version(
        (n, d, c) in (1..20usize, 1..40usize, 1..200usize),
        dtype in prop::sample::select(vec![DType::BF16, DType::F32]),
        capped: bool,
        seed: u64,
    ) {
        let t = normal(seed, &[&[n, d], &[c, d], &[c]]);
        let targets: Arc<[u32]> = indices(seed, n, c).into();
        let (w, softcap) = (rounded(&t[1], dtype), capped.then_some(1.5f32));
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        // The gradient of logits may be rounded before it is multiplied by bf16 weights.
        let of_bf16: &[usize] = if dtype == DType::BF16 { &[0] } else { &[] };
        let allowed = Allowed { of_bf16, ..Allowed::default() };
        let (inputs, output) = (&t[..1], DType::F32);
        let of = Narrow { output, allowed, ..Narrow::all(inputs) };
        for transposed in [false, true] {
            let weight = weight(&w, dtype, transposed);
            of.check(
                |v| {
                    let bias = Some(&t[2]);
                    let scored = ops::linear_cross_entropy(&v[0], &weight, bias, softcap, &targets);
                    Ok(scored?.sum)
                },
                |x| {
                    let z = reference::linear(&x[0], &wide(&w)?, Some(&wide(&t[2])?), &[])?;
                    let capped = softcap.map(|c| (&z / f64::from(c))?.tanh()? * f64::from(c));
                    reference::cross_entropy(&capped.transpose()?.unwrap_or(z), &targets)
                },
            );
        }
    }
}

#[test] // more elements than kernels read at a time, and a rest
fn several_pieces_equal_their_plain_versions() {
    let (n, d, f) = (37, 301, Activation::Silu);
    let t = normal(7, &[&[n, 2 * d], &[n, 2 * d], &[2 * d], &[2 * d]]);
    let [one, two] = [&t[..1], &t[..2]].map(Narrow::all);
    one.check(|v| ops::activation(&v[0], f), |t| reference::activation(&t[0], f));
    two.check(|v| ops::gated(&v[0], &v[1], f), |t| reference::gated(&t[0], &t[1], f));
    one.check(
        |v| ops::gated_halves(&v[0], f),
        |t| reference::gated(&t[0].narrow(1, 0, d)?, &t[0].narrow(1, d, d)?, f),
    );
    let angles = angles(n, 40, 7);
    for style in [RotaryStyle::Halves, RotaryStyle::Pairs] {
        one.check(
            |v| ops::rotary(&v[0], 86, &angles, style),
            |t| reference::rotary(&t[0], 86, &angles, style),
        );
    }
    let sum = Narrow { output: DType::F32, allowed: Allowed::default(), ..two };
    sum.check(|v| ops::add(&v[0], &v[1]), |t| Ok((&t[0] + &t[1])?));
    let [x, _, w, b] = <[Tensor; 4]>::try_from(t).expect("four");
    let with_weights = [x, w, b];
    let norm = Narrow { narrow: 1, allowed: rounds(&[0]), ..Narrow::all(&with_weights) };
    norm.check(
        |v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-2),
        |t| reference::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-2),
    );
    let inputs = &with_weights[..2];
    Narrow { inputs, ..norm }
        .check(|v| ops::rms_norm(&v[0], &v[1], 1e-2), |t| reference::rms_norm(&t[0], &t[1], 1e-2));
}

#[test] // one row, a few, many; more than one block of the inner dimension, in both directions
fn logits_are_what_a_linear_layer_rounds() {
    for (n, input, out) in [(1, 1_700, 1_000), (7, 70, 5), (45, 1_700, 1_001), (300, 65, 3)] {
        let [x, w] =
            <[Tensor; 2]>::try_from(normal(5, &[&[n, input], &[out, input]])).expect("two");
        for transposed in [false, true] {
            let (x, w) = (Value::constant(x.clone()), weight(&w, DType::BF16, transposed));
            let logits = ops::logits(&x, Matrix::Frozen(&w), None, Vec::new()).expect("logits");
            let y = ops::linear(&x, Matrix::Frozen(&w), None, Vec::new()).expect("a product");
            assert_eq!((logits.data().dtype(), y.data().dtype()), (DType::F32, DType::BF16));
            let nearest = rounded(logits.data(), DType::BF16);
            assert!(bits(&nearest) != bits(logits.data()), "nothing to round");
            assert_bits("rounded logits", &rounded(y.data(), DType::BF16), &nearest);
        }
    }
}

#[test]
fn widened_numbers_are_the_same_and_so_are_their_gradients() {
    let t = normal(6, &[&[37, 53]]);
    for marked in [false, true] {
        let of =
            Narrow { marked, output: DType::F32, allowed: Allowed::default(), ..Narrow::all(&t) };
        of.check(|v| ops::widen(&v[0]), |t| Ok(t[0].clone()));
    }
    let done = run(&t, &|v: &[Value]| ops::widen(&v[0]), None, false).expect("of f32");
    assert_bits("f32, widened", &done.output, &t[0]);
    assert_bits("its gradient", done.gradients[0].as_ref().expect("a gradient"), &done.dy);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    // Most of these are f32 again; none refuses bf16, alone or beside f32.
    #[test]
    fn the_rest_equals_its_plain_versions(n in 1..20usize, d in 1..60usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[n, d], &[d], &[2, d]]);
        let wide = |inputs, narrow| {
            let (output, allowed) = (DType::F32, Allowed::default());
            Narrow { narrow, output, allowed, ..Narrow::all(inputs) }
        };
        let one = || wide(&t[..1], 1);
        for narrow in [1, 2] {
            wide(&t[..2], narrow).check(|v| ops::mul(&v[0], &v[1]), |t| Ok((&t[0] * &t[1])?));
        }
        let with_row = [t[0].clone(), t[2].clone()];
        for narrow in [1, 2] {
            wide(&with_row, narrow)
                .check(|v| ops::add_row(&v[0], &v[1]), |t| Ok(t[0].broadcast_add(&t[1])?));
        }
        one().check(|v| ops::scale(&v[0], 0.75), |t| Ok((&t[0] * 0.75)?));
        one().check(|v| ops::shift(&v[0], 0.75), |t| Ok((&t[0] + 0.75)?));
        one().check(|v| ops::clip(&v[0], 0.752), |t| Ok(t[0].clamp(-0.752f32, 0.752f32)?));
        one().check(|v| ops::sum_all(&v[0]), |t| Ok(t[0].sum_all()?));
        let (from, to) = ((seed % d as u64) as usize, d);
        one().check(
            |v| ops::columns(&v[0], from..to),
            |t| Ok(t[0].narrow(1, from, to - from)?),
        );
        let rows = indices(seed, 2 * n, n);
        let picked: Arc<[usize]> = rows.iter().map(|&row| row as usize).collect();
        Narrow { output: DType::BF16, ..one() }.check(
            |v| ops::select_rows(&v[0], &picked),
            |t| Ok(t[0].index_select(&Tensor::new(&rows[..], t[0].device())?, 0)?),
        );
        let mask = mask(seed, n, 0.3);
        one().check(|v| ops::dropout(&v[0], Some(&mask)), |t| reference::dropout(&t[0], &mask));
        let noise = Jitter { amount: 0.3, key: mask.key, rows: mask.rows.clone() };
        one().check(|v| ops::jitter(&v[0], Some(&noise)), |t| reference::jitter(&t[0], &noise));
        let targets: Arc<[u32]> = indices(seed, n, d).into();
        one().check(
            |v| ops::cross_entropy(&v[0], &targets),
            |t| reference::cross_entropy(&t[0], &targets),
        );
        let aims = t[1].clone();
        let wide_aims = |t: &Tensor| t.to_dtype(DType::F64);
        one().check(
            |v| ops::squared_error(&v[0], &aims),
            |t| reference::squared_error(&t[0], &wide_aims(&aims)?),
        );
        let aims = (&t[1] * 0.2).and_then(|t| t + 0.5).expect("aims");
        one().check(
            |v| ops::binary_cross_entropy(&v[0], &aims),
            |t| reference::binary_cross_entropy(&t[0], &wide_aims(&aims)?),
        );
        Narrow { allowed: Allowed::default(), ..Narrow::all(&t[..1]) }
            .check(|v| ops::reshape(&v[0], &[d, n]), |t| Ok(t[0].reshape((d, n))?));
        let parts = [t[0].clone(), t[3].clone()];
        for (narrow, output) in [(1, DType::F32), (2, DType::BF16)] {
            Narrow { output, ..wide(&parts, narrow) }.check(
                |v| ops::concat_rows(&[&v[1], &v[0], &v[1]]),
                |t| Ok(Tensor::cat(&[&t[1], &t[0], &t[1]], 0)?),
            );
        }
    }
}
