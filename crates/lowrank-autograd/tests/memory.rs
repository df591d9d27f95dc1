//! What an operation keeps alive for the backward pass, measured in bytes.
#![expect(clippy::expect_used, reason = "what fails here fails the test")]
#![expect(unsafe_code, reason = "a counting allocator is the only outside view of what is alive")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Gradients, Parameter, Result, Value, Weight,
    ops::{self, Activation, AttentionShape, LowRank, LowRankStack, Matrix, Span, Stack},
    recompute,
};

/// Counts the bytes that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting touches no memory of its.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc`'s promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rows and width of the activations: one is 1 MiB, beside which nothing else counts.
const N: usize = 512;
const D: usize = 512;
/// Rank of adapters: one `h` is an eighth of an activation.
const R: usize = 64;

fn activation() -> Tensor {
    Tensor::ones((N, D), DType::F32, &Device::Cpu).expect("a tensor")
}

fn parameter(shape: &[usize]) -> Parameter {
    let ones = Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a tensor");
    Parameter::new("p", &ones).expect("a parameter")
}

/// Runs a test while no other one does: its memory would be counted too, that of its thread's
/// buffers, which go when the thread ends, among it.
fn alone(test: fn()) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(panic) = std::thread::spawn(test).join() {
        std::panic::resume_unwind(panic);
    }
}

/// How many activations' worth of memory `forward` leaves alive beside its output, once the tensor
/// that it was given is dropped; in eighths. Checks that the backward pass frees all of it.
fn saved(train_x: bool, forward: impl Fn(Value) -> Result<Value>) -> usize {
    let eighths = |bytes: usize| (bytes * 8 + N * D * 2) / (N * D * 4);
    // Threads of the pool allocate buffers that they keep whenever they first meet a product, so
    // that single turns may count too much: what is really alive is the least of several.
    let (mut held, mut left) = (usize::MAX, usize::MAX);
    for _ in 0..8 {
        let before = LIVE.load(Ordering::Relaxed);
        // A leaf that holds no tensor of its own: `x` lives only if someone saved it.
        let root = parameter(&[1]).value(train_x);
        let x = Value::record("leaf", activation(), [&root], |_| |_: Tensor| Ok([None]));
        let y = forward(x).expect("the operation");
        let after = LIVE.load(Ordering::Relaxed);
        let own = y.data().elem_count() * y.data().dtype().size_in_bytes();
        let loss = ops::sum_all(&y).expect("a sum");
        drop(y);
        let recorded = loss.needs_gradient();
        if recorded {
            loss.backward(1.0, &mut Gradients::new()).expect("the pass");
        }
        let end = LIVE.load(Ordering::Relaxed);
        held = held.min(eighths(after.saturating_sub(before + own)));
        left = left.min(eighths(end.saturating_sub(before)));
    }
    assert_eq!(left, 0, "the backward pass left something alive");
    held
}

/// A frozen linear layer with one adapter.
fn adapted(train_x: bool, train_a: bool, train_b: bool) -> usize {
    let weight = Weight::from_tensor(&activation()).expect("a weight");
    let (a, b) = (parameter(&[R, D]), parameter(&[D, R]));
    saved(train_x, |x| {
        let (a, b) = (a.value(train_a), b.value(train_b));
        let term = LowRank { a, b, bias: None, scale: 1.0, dropout: None };
        ops::linear(&x, Matrix::Frozen(&weight), None, vec![term])
    })
}

#[test]
fn a_linear_layer_saves_its_input_for_a_and_the_low_rank_product_for_b() {
    alone(|| {
        assert_eq!(adapted(false, false, false), 0, "nothing trains");
        assert_eq!(adapted(true, false, false), 0, "only something below trains");
        assert_eq!(adapted(true, false, true), 1, "B: h");
        assert_eq!(adapted(false, false, true), 1, "B: h");
        assert_eq!(adapted(true, true, false), 8, "A: x");
        assert_eq!(adapted(true, true, true), 9, "both");
    });
}

#[test]
fn experts_save_what_a_linear_layer_does() {
    alone(|| {
        let weight = Weight::from_tensor(
            &Tensor::ones((2, D, D), DType::F32, &Device::Cpu).expect("a tensor"),
        );
        let weight = weight.expect("a weight");
        let groups = [0..N / 4, N / 4..N].into();
        let run = |train_a: bool, train_b: bool| {
            let (a, b) = (parameter(&[2 * R, D]), parameter(&[D, R * 2]));
            saved(true, |x| {
                let (a, b) = (a.value(train_a), b.value(train_b));
                let terms = vec![LowRankStack { a, b, scale: 1.0 }];
                ops::grouped_linear(&x, &groups, Stack::Frozen(&weight), terms)
            })
        };
        assert_eq!(run(false, false), 0, "only something below trains");
        assert_eq!(run(false, true), 1, "B: h");
        assert_eq!(run(true, false), 8, "A: x");
    });
}

#[test]
fn a_trained_matrix_saves_its_input() {
    alone(|| {
        let w = parameter(&[D, D]);
        for (trained, eighths) in [(true, 8), (false, 0)] {
            let found = saved(true, |x| {
                let matrix = Matrix::Trained { value: &w.value(trained), transposed: false };
                ops::linear(&x, matrix, None, Vec::new())
            });
            assert_eq!(found, eighths);
        }
    });
}

#[test]
fn what_comes_from_bf16_weights_is_kept_in_bf16() {
    alone(|| {
        for (dtype, eighths) in [(DType::F32, 8), (DType::BF16, 4)] {
            let ones = Tensor::ones((D, D), dtype, &Device::Cpu).expect("a tensor");
            let w = Weight::from_tensor(&ones).expect("a weight");
            let project = |x: &Value| ops::linear(x, Matrix::Frozen(&w), None, Vec::new());
            let gated = |gate: &Value, up: &Value| ops::gated(gate, up, Activation::Silu);
            let found = saved(true, |x| gated(&project(&x)?, &project(&x)?));
            assert_eq!(found, 2 * eighths, "{dtype:?}: gate and up");
            // They are bf16 where they lie, so that who keeps them makes no copies.
            let found = saved(true, |x| {
                let (gate, up) = (project(&x)?, project(&x)?);
                ops::add(&gated(&gate, &up)?, &gated(&gate, &up)?)
            });
            assert_eq!(found, 2 * eighths, "{dtype:?}: gate and up, kept twice");
            let norm = parameter(&[D]);
            let found = saved(true, |x| {
                let sum = ops::add(&project(&x)?, &project(&x)?)?;
                ops::rms_norm(&sum, &norm.value(false), 1e-6)
            });
            assert_eq!(found, eighths, "{dtype:?}: a sum, which is f32");
        }
    });
}

#[test]
fn operations_on_frozen_values_save_nothing() {
    alone(|| {
        let w = parameter(&[D]);
        let frozen =
            |forward: &dyn Fn(Value) -> Result<Value>| assert_eq!(saved(false, forward), 0);
        frozen(&|x| ops::rms_norm(&x, &w.value(false), 1e-6));
        frozen(&|x| ops::activation(&x, Activation::Silu));
        frozen(&|x| ops::gated(&x, &x, Activation::Silu));
        frozen(&|x| ops::cross_entropy(&x, &vec![3; N].into()));
        frozen(&|x| attention(&x));
    });
}

fn attention(x: &Value) -> Result<Value> {
    let shape = AttentionShape {
        heads: 8,
        kv_heads: 8,
        head_dim: D / 8,
        value_dim: D / 8,
        scale: 0.1,
        causal: true,
        window: None,
        softcap: None,
    };
    let spans: Arc<[Span]> = Span::packed(&[N]).into();
    ops::attention(x, x, x, None, &shape, &spans, None)
}

#[test] // its output is kept too, but that one is alive anyway; scores would be 8 more
fn attention_saves_its_operands_and_no_scores() {
    alone(|| {
        assert_eq!(saved(true, |x| attention(&x)), 8);
    });
}

#[test]
fn sums_and_changes_of_shape_save_nothing() {
    alone(|| {
        assert_eq!(saved(true, |x| ops::add(&x, &x)), 0);
        assert_eq!(saved(true, |x| ops::scale(&x, 2.0)), 0);
        assert_eq!(saved(true, |x| ops::columns(&x, 0..D / 2)), 0);
        assert_eq!(saved(true, |x| ops::select_rows(&x, &(0..N).rev().collect())), 0);
    });
}

#[test] // four activations and their products inside, one input kept
fn a_recomputed_block_keeps_its_input_alone() {
    alone(|| {
        let deep = |x: &Value| (0..4).try_fold(x.clone(), |x, _| ops::mul(&x, &x));
        assert_eq!(saved(true, |x| deep(&x)), 32);
        assert_eq!(saved(true, |x| recompute(&[&x], move |v| deep(&v[0]))), 8);
    });
}

#[test] // its first run holds what an untrained block holds: an operand and a result
fn a_recomputed_block_saves_nothing_while_it_runs_first() {
    alone(|| {
        let p = parameter(&[N, D]);
        let held = |train_x: bool| {
            let root = parameter(&[1]).value(train_x);
            let x = Value::record("leaf", activation(), [&root], |_| |_: Tensor| Ok([None]));
            let before = LIVE.load(Ordering::Relaxed);
            let most = Arc::new(AtomicUsize::new(0));
            let (p, seen) = (p.clone(), Arc::clone(&most));
            let y = recompute(&[&x], move |v| {
                let y = (0..4).try_fold(v[0].clone(), |x, _| ops::mul(&x, &p.value(true)))?;
                let now = LIVE.load(Ordering::Relaxed);
                // The run in the backward pass isn't meant.
                let _ = seen.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                Ok(y)
            });
            assert!(y.expect("the block").needs_gradient());
            (most.load(Ordering::Relaxed) - before) / (N * D * 4)
        };
        for train_x in [false, true] {
            let least = (0..8).map(|_| held(train_x)).min();
            assert_eq!(least, Some(1), "only the result is alive when the block ends");
        }
    });
}
