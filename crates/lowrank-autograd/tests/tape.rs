//! The tape: what is recorded, in which order gradients come, when saved tensors go.
#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Tensor};
use lowrank_autograd::{
    Dropout, Error, Gradients, Key, Parameter, Result, Value, Weight,
    ops::{self, Activation, LowRank, Matrix},
    recompute,
};

fn parameter(numbers: &[f32]) -> Parameter {
    Parameter::new("p", &Tensor::new(numbers, &Device::Cpu).expect("numbers")).expect("p")
}

fn matrix(seed: u64, rows: usize, columns: usize) -> Tensor {
    let numbers = Key::new(seed).normals(rows * columns);
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).expect("a matrix")
}

fn numbers(t: Option<&Tensor>) -> Vec<f32> {
    t.expect("a gradient").flatten_all().and_then(|t| t.to_vec1()).expect("numbers")
}

/// Counts how many of its kind exist.
struct Saved(Arc<AtomicUsize>);

impl Saved {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The same tensor, by an operation that saves one counted thing and notes how many were alive
/// when its backward function had run.
fn counted(x: &Value, count: &Arc<AtomicUsize>, seen: &Arc<AtomicUsize>) -> Value {
    Value::record("counted", x.data().clone(), [x], |_| {
        let (saved, count, seen) = (Saved::new(count), Arc::clone(count), Arc::clone(seen));
        move |dy: Tensor| {
            drop(saved);
            seen.store(count.load(Ordering::Relaxed), Ordering::Relaxed);
            Ok([Some(dy)])
        }
    })
}

#[test]
fn nothing_is_recorded_for_frozen_inputs() {
    let frozen = parameter(&[1.0]);
    frozen.set_trainable(false);
    let live = parameter(&[1.0]);
    for x in [frozen.value(true), live.value(false), live.value(true).detach()] {
        let unasked = |_: [bool; 1]| -> fn(Tensor) -> Result<[Option<Tensor>; 1]> {
            panic!("asked what to save")
        };
        let y = Value::record("op", x.data().clone(), [&x], unasked);
        assert!(!x.needs_gradient() && !y.needs_gradient());
        assert!(!ops::sum_all(&y).expect("a sum").needs_gradient());
        let mut gradients = Gradients::new();
        let nothing = y.backward(1.0, &mut gradients);
        assert!(matches!(nothing, Err(Error::NothingToDifferentiate)), "{nothing:?}");
    }
    assert!(live.value(true).needs_gradient());
}

#[test]
fn an_operation_is_told_which_parents_need_gradients() {
    let (a, b) = (parameter(&[1.0]).value(true), Value::constant(matrix(1, 1, 1)));
    Value::record("op", a.data().clone(), [&a, &b, &a], |needs| {
        assert_eq!(needs, [true, false, true]);
        |dy: Tensor| Ok([Some(dy), None, None])
    });
    Value::record_many("op", a.data().clone(), &[&b, &a], |needs| {
        assert_eq!(needs, [false, true]);
        |dy: Tensor| Ok(vec![None, Some(dy)])
    });
}

#[test]
fn saved_tensors_are_freed_as_the_pass_leaves_them() {
    let [count, first, second] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let p = parameter(&[2.0]);
    let y = counted(&counted(&p.value(true), &count, &first), &count, &second);
    let loss = ops::sum_all(&y).expect("a sum");
    assert_eq!(count.load(Ordering::Relaxed), 2);
    loss.backward(1.0, &mut Gradients::new()).expect("the pass");
    // The later operation goes first and leaves one alive; `loss` itself lives on with none.
    assert_eq!((second.load(Ordering::Relaxed), first.load(Ordering::Relaxed)), (1, 0));
    assert_eq!(count.load(Ordering::Relaxed), 0);
    drop(loss);
}

#[test]
fn a_tape_that_is_dropped_frees_what_it_saved() {
    let [count, seen] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    drop(counted(&parameter(&[2.0]).value(true), &count, &seen));
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[test] // freeing it must not recurse once for each operation
fn a_chain_may_be_very_long() {
    let p = parameter(&[1.0]);
    let mut x = p.value(true);
    for _ in 0..200_000 {
        x = Value::record("same", x.data().clone(), [&x], |_| |dy: Tensor| Ok([Some(dy)]));
    }
    let unused = x.clone();
    let mut gradients = Gradients::new();
    ops::sum_all(&x).and_then(|loss| loss.backward(3.0, &mut gradients)).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [3.0]);
    drop((x, unused));
}

#[test]
fn a_second_pass_is_an_error() {
    let p = parameter(&[2.0]);
    let loss = ops::sum_all(&p.value(true)).expect("a sum");
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients).expect("the first pass");
    let second = loss.backward(1.0, &mut gradients);
    assert!(matches!(second, Err(Error::AlreadyDifferentiated { op: "sum_all" })), "{second:?}");
    assert_eq!(numbers(gradients.get(p.id())), [1.0], "the second pass added nothing");
}

#[test]
fn a_backward_pass_starts_from_a_scalar() {
    let p = parameter(&[2.0, 3.0]);
    let wrong = p.value(true).backward(1.0, &mut Gradients::new());
    assert!(matches!(wrong, Err(Error::Shape { op: "backward", .. })), "{wrong:?}");
}

#[test]
fn gradients_of_two_passes_add_up() {
    let (p, q) = (parameter(&[1.0, -2.0]), parameter(&[5.0, 7.0]));
    let mut gradients = Gradients::new();
    for seed in [1.0, 0.5] {
        let product = ops::mul(&p.value(true), &q.value(true)).expect("a product");
        let loss = ops::sum_all(&product).expect("a sum");
        loss.backward(seed, &mut gradients).expect("the pass");
    }
    assert_eq!(numbers(gradients.get(p.id())), [7.5, 10.5]);
    assert_eq!(numbers(gradients.get(q.id())), [1.5, -3.0]);
    let norm = gradients.global_norm().expect("a norm");
    assert_eq!(norm, (7.5f64.powi(2) + 10.5f64.powi(2) + 1.5f64.powi(2) + 3.0f64.powi(2)).sqrt());
    gradients.scale(2.0).expect("scaled");
    assert_eq!(numbers(gradients.get(q.id())), [3.0, -6.0]);
    assert_eq!(numbers(Some(&p.data())), [1.0, -2.0], "a buffer shares nothing with its parameter");
    gradients.clear();
    assert!(gradients.get(p.id()).is_none());
}

#[test] // y = (x + x)·x and z = y + x: 4x + 1
fn a_value_used_many_times_gets_the_sum() {
    let p = parameter(&[3.0, -1.0]);
    let x = p.value(true);
    let y = ops::mul(&ops::add(&x, &x).expect("2x"), &x).expect("2x²");
    let loss = ops::sum_all(&ops::add(&y, &x).expect("2x² + x")).expect("a sum");
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [13.0, -3.0]);
}

#[test] // from the third gradient on a sum is added to in place, which must not reach another's
fn a_sum_of_gradients_shares_nothing_with_its_terms() {
    let (p, q) = (parameter(&[3.0, -1.0]), parameter(&[5.0, 2.0]));
    let (x, y) = (p.value(true), q.value(true));
    // The gradient of a sum goes on to both of its terms as one tensor.
    let shared = ops::add(&x, &y).expect("x + y");
    let mut sum = ops::add(&x, &shared).expect("2x + y");
    for factor in [2.0, 4.0, 8.0] {
        let term = ops::scale(&x, factor).expect("a term");
        sum = ops::add(&ops::add(&sum, &term).expect("+ term"), &y).expect("+ y");
    }
    let mut gradients = Gradients::new();
    ops::sum_all(&sum).and_then(|loss| loss.backward(1.0, &mut gradients)).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [16.0, 16.0]);
    assert_eq!(numbers(gradients.get(q.id())), [4.0, 4.0]);
}

#[test] // two values of one parameter, as of a weight that two layers share
fn a_parameter_used_twice_gets_the_sum() {
    let p = parameter(&[3.0]);
    let product = ops::mul(&p.value(true), &p.value(true)).expect("p²");
    let mut gradients = Gradients::new();
    ops::sum_all(&product).and_then(|l| l.backward(1.0, &mut gradients)).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [6.0]);
}

#[test]
fn a_parameter_may_be_replaced_by_its_like_only() {
    let p = parameter(&[1.0, 2.0]);
    let before = p.value(true);
    p.set(&Tensor::new(&[4.0f32, 5.0], &Device::Cpu).expect("numbers")).expect("of one shape");
    assert_eq!(numbers(Some(before.data())), [1.0, 2.0], "a tape keeps what it saw");
    assert_eq!(numbers(Some(&p.clone().data())), [4.0, 5.0]);
    assert!(matches!(p.set(&matrix(1, 2, 1)), Err(Error::Shape { .. })));
}

/// A block with an adapter under dropout, a norm and a gate; all its parameters.
struct Block {
    a: Parameter,
    b: Parameter,
    norm: Parameter,
    weight: Weight,
    mask: Dropout,
}

impl Block {
    fn new() -> Arc<Self> {
        let parameter = |t: &Tensor| Parameter::new("p", t).expect("a parameter");
        Arc::new(Self {
            a: parameter(&matrix(1, 2, 6)),
            b: parameter(&matrix(2, 6, 2)),
            norm: parameter(&matrix(3, 1, 6).flatten_all().expect("a vector")),
            weight: Weight::from_tensor(&matrix(4, 6, 6)).expect("a weight"),
            mask: Dropout { p: 0.5, key: Key::new(9), rows: (0..5).collect() },
        })
    }

    fn forward(&self, x: &Value, residual: &Value) -> Result<Value> {
        let dropout = Some(self.mask.clone());
        let (a, b) = (self.a.value(true), self.b.value(true));
        let term = LowRank { a, b, bias: None, scale: 2.0, dropout };
        let h = ops::rms_norm(x, &self.norm.value(true), 1e-6)?;
        let h = ops::linear(&h, Matrix::Frozen(&self.weight), None, vec![term])?;
        ops::add(&ops::gated(&h, x, Activation::Silu)?, residual)
    }

    fn parameters(&self) -> [&Parameter; 3] {
        [&self.a, &self.b, &self.norm]
    }
}

/// How [`two_blocks`] runs each of its blocks.
#[derive(Clone, Copy, PartialEq)]
enum Run {
    Recorded,
    Recomputed,
    /// With its input passed twice, as two inputs.
    RecomputedOfTwo,
}

/// Loss of two stacked blocks, and the gradients of `x` and all parameters.
fn two_blocks(block: &Arc<Block>, x: &Parameter, run: Run, train_x: bool) -> Vec<Vec<f32>> {
    let x_value = x.value(train_x);
    let forward = |x: &Value| {
        let inner = Arc::clone(block);
        match run {
            Run::Recorded => block.forward(x, x),
            Run::Recomputed => recompute(&[x], move |v| inner.forward(&v[0], &v[0])),
            Run::RecomputedOfTwo => recompute(&[x, x], move |v| inner.forward(&v[0], &v[1])),
        }
    };
    let y = forward(&forward(&x_value).expect("the first block")).expect("the second block");
    let loss = ops::squared_error(&y, &matrix(8, 5, 6)).expect("a loss");
    let mut gradients = Gradients::new();
    loss.backward(0.25, &mut gradients).expect("the pass");
    assert_eq!(gradients.get(x.id()).is_some(), train_x);
    let mut found = vec![numbers(Some(loss.data()))];
    found.extend(gradients.get(x.id()).map(|t| numbers(Some(t))));
    found.extend(block.parameters().map(|p| numbers(gradients.get(p.id()))));
    found
}

#[test]
fn recomputing_a_block_changes_no_bit() {
    let x = Parameter::new("x", &matrix(7, 5, 6)).expect("x");
    let block = Block::new();
    let bits = |found: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        found.into_iter().map(|v| v.into_iter().map(f32::to_bits).collect()).collect()
    };
    for train_x in [true, false] {
        let recorded = bits(two_blocks(&block, &x, Run::Recorded, train_x));
        assert_eq!(bits(two_blocks(&block, &x, Run::Recomputed, train_x)), recorded);
    }
}

#[test] // the gradients of the two are added in another order
fn a_recomputed_block_may_get_a_value_twice() {
    let x = Parameter::new("x", &matrix(7, 5, 6)).expect("x");
    let block = Block::new();
    let [once, twice] = [Run::Recomputed, Run::RecomputedOfTwo]
        .map(|run| two_blocks(&block, &x, run, true).concat());
    for (once, twice) in once.iter().zip(&twice) {
        assert!((once - twice).abs() <= 1e-4 * once.abs().max(1.0), "{twice}, expected {once}");
    }
}

#[test]
fn a_block_without_parameters_may_return_its_input() {
    let p = parameter(&[1.0, 2.0]);
    let y = recompute(&[&p.value(true)], |v| Ok(v[0].clone())).expect("a block");
    let mut gradients = Gradients::new();
    ops::sum_all(&y).and_then(|loss| loss.backward(1.0, &mut gradients)).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [1.0, 1.0]);
}

#[test]
fn a_block_in_which_nothing_trains_records_nothing() {
    let y = recompute(&[&Value::constant(matrix(1, 2, 2))], |v| ops::scale(&v[0], 2.0));
    assert!(!y.expect("a block").needs_gradient());
}

#[test] // asked for nothing to save, yet told apart from a frozen block
fn the_first_run_of_a_block_records_nothing() {
    let [count, seen] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let p = parameter(&[2.0]);
    // The input of the block trains, only a parameter inside does, or both.
    for (outer, inner) in [(true, false), (false, true), (true, true)] {
        let (count, seen, q) = (Arc::clone(&count), Arc::clone(&seen), p.clone());
        let alive = Arc::clone(&count);
        let x = p.value(outer);
        let y = recompute(&[&x], move |v| {
            let y = counted(&ops::mul(&v[0], &q.value(inner))?, &count, &seen);
            // Within a block of its own, too.
            let (count, seen) = (Arc::clone(&count), Arc::clone(&seen));
            recompute(&[&y], move |v| Ok(counted(&v[0], &count, &seen)))
        });
        let y = y.expect("a block");
        assert!(y.needs_gradient());
        assert_eq!(alive.load(Ordering::Relaxed), 0, "the first run saved something");
        let mut gradients = Gradients::new();
        ops::sum_all(&y).and_then(|loss| loss.backward(1.0, &mut gradients)).expect("the pass");
        let expected = if outer && inner { 4.0 } else { 2.0 };
        assert_eq!(numbers(gradients.get(p.id())), [expected]);
        assert_eq!(alive.load(Ordering::Relaxed), 0, "the pass left something alive");
    }
}

#[test]
fn a_block_in_which_nothing_trains_may_be_followed_by_one_that_does() {
    let p = parameter(&[2.0]);
    let x = Value::constant(parameter(&[3.0]).data());
    let y = recompute(&[&x], |v| ops::scale(&v[0], 2.0)).expect("a block");
    let loss = ops::mul(&y, &p.value(true)).and_then(|y| ops::sum_all(&y)).expect("a sum");
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients).expect("the pass");
    assert_eq!(numbers(gradients.get(p.id())), [6.0]);
}

#[test]
fn an_error_of_the_second_run_is_reported() {
    let runs = AtomicUsize::new(0);
    let p = parameter(&[1.0, 2.0]);
    let y = recompute(&[&p.value(true)], move |v| match runs.fetch_add(1, Ordering::Relaxed) {
        0 => ops::scale(&v[0], 2.0),
        _ => ops::add(&v[0], &Value::constant(v[0].data().narrow(0, 0, 1)?)),
    });
    let loss = ops::sum_all(&y.expect("the first run")).expect("a sum");
    let failed = loss.backward(1.0, &mut Gradients::new());
    assert!(matches!(failed, Err(Error::Shape { op: "add", .. })), "{failed:?}");
}
