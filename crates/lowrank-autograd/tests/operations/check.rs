//! What is asked of every operation, in one call: [`check`].

use std::{
    cell::RefCell,
    sync::{LazyLock, OnceLock},
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Gradients, Key, Parameter, Placement, Result, Value, compose_on_cpu, ops};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Largest error of an output, relative to its largest element.
pub(crate) const OUTPUT: f64 = 1e-5;
/// Largest error of a gradient along a direction, relative to the sum of its terms' sizes or 1.
pub(crate) const GRADIENT: f64 = 5e-5;
/// Largest error of a result that was rounded to bf16, relative to the largest element.
pub(crate) const BF16: f64 = 4e-3;
/// Largest error of a product of bf16 weights with adapters, relative to the largest element: some
/// machines multiply what adapters add in two parts of bf16.
pub(crate) const PARTS: f64 = 1.0 / 32_768.0;
/// Half the distance between the two points of a difference; in f64 its error is near 1e-10.
const STEP: f64 = 1e-5;

/// Operation and plain version, the latter in f64, agree on `inputs`: outputs; gradients with the
/// plain version's central differences. So does what is composed of candle's operations. Bits don't
/// change with the number of threads, with the strides of inputs and gradient, or with which of the
/// inputs are trained.
pub(crate) fn check(
    inputs: &[Tensor],
    op: impl Fn(&[Value]) -> Result<Value> + Sync,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    check_weight(DType::F32, inputs, op, plain);
}

/// [`check`] of an operation on weights of `dtype`, whose output may be bf16 if they are. The first
/// input is what they are multiplied by.
pub(crate) fn check_weight(
    dtype: DType,
    inputs: &[Tensor],
    op: impl Fn(&[Value]) -> Result<Value> + Sync,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let done = run(inputs, &op, None, false).expect("the operation");
    let wide: Vec<Tensor> =
        inputs.iter().map(|t| t.to_dtype(DType::F64)).collect::<Result<_, _>>().expect("f64");
    let expected = plain(&wide).expect("the plain version in f64");
    if dtype != DType::BF16 {
        assert_eq!(done.output.dtype(), DType::F32, "the output");
    }
    assert_close("the output", &done.output, &expected, OUTPUT);
    let parts: &[usize] = if dtype == DType::BF16 { &[0] } else { &[] };
    assert_differences(&wide, &done, Allowed { parts, ..Allowed::default() }, plain);
    for pool in pools() {
        let again = pool.install(|| run(inputs, &op, None, false)).expect("in a pool");
        assert_same(&format!("{} threads", pool.current_num_threads()), &again, &done);
    }
    let near = if dtype == DType::BF16 { [BF16; 2] } else { [OUTPUT, GRADIENT] };
    let strided = run(inputs, &op, None, true).expect("with other strides");
    assert_same("other strides", &strided, &done);
    for restrided in [false, true] {
        let composed = composed(|| run(inputs, &op, None, restrided)).expect("composed");
        assert_near(&composed, &done, near);
    }
    for only in 0..inputs.len() {
        let composed = composed(|| run(inputs, &op, Some(only), false)).expect("composed");
        let alone = |(i, gradient): (usize, &Option<Tensor>)| gradient.is_none() || i == only;
        assert!(composed.gradients.iter().enumerate().all(alone), "frozen inputs have gradients");
        assert_near(&composed, &done, near);
        let one = run(inputs, &op, Some(only), false).expect("with one input trained");
        assert_bits("output with one input trained", &one.output, &done.output);
        for (i, (one, all)) in one.gradients.iter().zip(&done.gradients).enumerate() {
            match one {
                Some(one) if i == only => {
                    assert_bits("gradient alone", one, all.as_ref().expect("a gradient"));
                }
                found => assert!(found.is_none() || i == only, "frozen input {i} has a gradient"),
            }
        }
    }
}

/// What `f` returns where operations are composed of candle's, as for a GPU; with what it makes by
/// [`normal`] and [`run`] on the GPU that `LOWRANK_TEST_DEVICE` names, if that is set.
pub(crate) fn composed<R>(f: impl FnOnce() -> R) -> R {
    static GPU: LazyLock<Option<Device>> = LazyLock::new(|| {
        let name = std::env::var("LOWRANK_TEST_DEVICE").ok()?;
        let place: Placement = name.parse().expect("LOWRANK_TEST_DEVICE");
        Some(place.open().expect("the device to test"))
    });
    let before = PLACE.replace(GPU.clone().unwrap_or(Device::Cpu));
    compose_on_cpu(true);
    let found = f();
    compose_on_cpu(false);
    PLACE.set(before);
    found
}

thread_local! {
    /// Where inputs are put.
    static PLACE: RefCell<Device> = const { RefCell::new(Device::Cpu) };
}

fn placed(t: &Tensor) -> Tensor {
    PLACE.with_borrow(|place| t.to_device(place)).expect("a copy")
}

/// Fails unless output and gradients, as far as there are some, are those of another run, up to
/// errors relative to the largest element. What is composed rounds what it multiplies by bf16
/// weights to bf16.
fn assert_near(found: &Run, expected: &Run, [output, gradient]: [f64; 2]) {
    assert_close("the output, composed", &found.output, &expected.output, output);
    for (i, (found, expected)) in found.gradients.iter().zip(&expected.gradients).enumerate() {
        let Some(found) = found else { continue };
        let expected = expected.clone().map_or_else(|| found.zeros_like(), Ok).expect("zeros");
        let what = format!("gradient {i}, composed");
        assert_within(&what, found, &expected, gradient, 1.0); // of terms that may cancel
    }
}

/// Output and gradients of one run.
pub(crate) struct Run {
    pub(crate) output: Tensor,
    /// One for each input that is trained and that something flowed to.
    pub(crate) gradients: Vec<Option<Tensor>>,
    /// The gradient of the output.
    pub(crate) dy: Tensor,
}

/// Runs `op` and its backward pass for the loss `Σ dy·output` with random `dy`. `only` trains a
/// single input; `restrided` puts inputs and gradients into another order of memory.
pub(crate) fn run(
    inputs: &[Tensor],
    op: &impl Fn(&[Value]) -> Result<Value>,
    only: Option<usize>,
    restrided: bool,
) -> Result<Run> {
    run_with(inputs, op, only, restrided, |output| {
        // What products of bf16 round is exact then, and wrong gradients are as wrong as before.
        rounded(&normal(99, &[output.dims()]).remove(0), DType::BF16)
    })
}

/// [`run`] with a given gradient of the output.
pub(crate) fn run_with(
    inputs: &[Tensor],
    op: &impl Fn(&[Value]) -> Result<Value>,
    only: Option<usize>,
    restrided: bool,
    dy: impl FnOnce(&Tensor) -> Tensor,
) -> Result<Run> {
    let parameters: Vec<Parameter> =
        inputs.iter().map(|t| Parameter::new("input", &placed(t))).collect::<Result<_>>()?;
    let trained = |i: usize| only.is_none_or(|only| only == i);
    let mut values: Vec<Value> =
        parameters.iter().enumerate().map(|(i, p)| p.value(trained(i))).collect();
    if restrided {
        values = values.iter().map(restride).collect::<Result<_>>()?;
    }
    let output = op(&values)?;
    let dy = dy(output.data());
    let seen = if restrided { restride(&output)? } else { output.clone() };
    let loss = ops::sum_all(&ops::mul(&seen, &Value::constant(dy.clone()))?)?;
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients)?;
    let gradients = parameters.iter().map(|p| gradients.get(p.id()).cloned()).collect();
    Ok(Run { output: output.data().clone(), gradients, dy })
}

/// The same numbers, laid out otherwise, as is the gradient on its way back.
fn restride(x: &Value) -> Result<Value> {
    let y = strided(x.data())?;
    Ok(Value::record("restride", y, [x], |_| |dy: Tensor| Ok([Some(strided(&dy)?)])))
}

/// A matrix column by column; anything else from the middle of a longer buffer.
pub(crate) fn strided(t: &Tensor) -> Result<Tensor> {
    match t.dims() {
        [_, _] => Ok(t.t()?.contiguous()?.t()?),
        [n] => Ok(t.pad_with_zeros(0, 3, 2)?.narrow(0, 3, *n)?),
        _ => Ok(t.clone()),
    }
}

/// Normal variates of these shapes, the same for the same seed.
pub(crate) fn normal(seed: u64, shapes: &[&[usize]]) -> Vec<Tensor> {
    let one = |(i, shape): (usize, &&[usize])| {
        let numbers = Key::new(seed).with(i as u64).normals(shape.iter().product());
        placed(&Tensor::from_vec(numbers, *shape, &Device::Cpu).expect("a shape of its own"))
    };
    shapes.iter().enumerate().map(one).collect()
}

/// What is left of `x` after rounding to `dtype`.
pub(crate) fn rounded(x: &Tensor, dtype: DType) -> Tensor {
    x.to_dtype(dtype).and_then(|x| x.to_dtype(DType::F32)).expect("a dtype")
}

/// Numbers below `below`.
pub(crate) fn indices(seed: u64, n: usize, below: usize) -> Vec<u32> {
    let key = Key::new(seed).at("indices");
    (0..n as u64).map(|i| (key.uniform(i) * below as f64) as u32).collect()
}

/// Elements as f64, row by row.
pub(crate) fn numbers(t: &Tensor) -> Vec<f64> {
    let here = t.to_device(&Device::Cpu).and_then(|t| t.to_dtype(DType::F64));
    here.and_then(|t| t.flatten_all()?.to_vec1()).expect("numbers")
}

/// Fails unless the largest difference is at most `tolerance` times the largest element (or 1e-3),
/// and half a unit of bf16 where one of the two was rounded to it.
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_within(what, found, expected, tolerance, 1e-3);
}

/// [`assert_close`] with another `least` largest element.
fn assert_within(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64, least: f64) {
    assert_eq!(found.dims(), expected.dims(), "shape of {what}");
    let rounded = [found, expected].iter().any(|t| t.dtype() == DType::BF16);
    let (found, expected) = (numbers(found), numbers(expected));
    let size = expected.iter().fold(least, |m: f64, v| m.max(v.abs()));
    for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
        let allowed = tolerance * size;
        let allowed = allowed + if rounded { half_unit(e.abs() + allowed) } else { 0.0 };
        // Written so that a NaN fails.
        assert!((f - e).abs() <= allowed, "{what} [{i}]: {f}, expected {e}");
    }
}

/// The most by which rounding to bf16 changes a number of this size.
fn half_unit(x: f64) -> f64 {
    let power = f32::from_bits((x as f32).to_bits() & 0x7F80_0000);
    f64::from(power) / 256.0 // of 8 bits the first is the power of 2
}

pub(crate) fn assert_bits(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "shape of {what}");
    assert_eq!(found.dtype(), expected.dtype(), "dtype of {what}");
    assert!(bits(found) == bits(expected), "{what}: not the same bits");
}

/// The bits of every element, f32 or bf16, as an f32.
pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    assert!(matches!(t.dtype(), DType::F32 | DType::BF16), "{:?}", t.dtype());
    let wide = t.to_dtype(DType::F32).and_then(|t| t.flatten_all()?.to_vec1());
    let numbers: Vec<f32> = wide.expect("f32");
    numbers.into_iter().map(f32::to_bits).collect()
}

pub(crate) fn assert_same(what: &str, found: &Run, expected: &Run) {
    assert_bits(&format!("output with {what}"), &found.output, &expected.output);
    for (found, expected) in found.gradients.iter().zip(&expected.gradients) {
        assert_eq!(found.is_some(), expected.is_some(), "gradients with {what}");
        if let (Some(found), Some(expected)) = (found, expected) {
            assert_bits(&format!("gradient with {what}"), found, expected);
        }
    }
}

/// Pools of 1, 2 and 3 threads.
pub(crate) fn pools() -> &'static [ThreadPool] {
    static POOLS: OnceLock<Vec<ThreadPool>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let pool = |n| ThreadPoolBuilder::new().num_threads(n).build().expect("a pool");
        [1, 2, 3].map(pool).into()
    })
}

/// Which gradients may be farther from the plain version's than [`GRADIENT`], by input.
#[derive(Clone, Copy)]
pub(crate) struct Allowed<'a> {
    /// Those that were rounded to bf16.
    pub(crate) rounded: &'a [usize],
    /// Those that may miss [`PARTS`] in each element.
    pub(crate) parts: &'a [usize],
    /// Those that may miss [`BF16`], since something that they are made of was rounded to it.
    pub(crate) of_bf16: &'a [usize],
    /// The size of what an element is a sum of, at least.
    pub(crate) least: f64,
}

impl Default for Allowed<'_> {
    fn default() -> Self {
        Self { rounded: &[], parts: &[], of_bf16: &[], least: 1.0 }
    }
}

impl Allowed<'_> {
    /// The limit for the gradient `g` of input `i` along a direction.
    fn along(self, direction: &[f64], i: usize, g: &[f64], expected: f64) -> f64 {
        let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
            g.iter().zip(direction).map(|(g, d)| f(g.abs()) * d.abs()).sum()
        };
        let size = sum(&|g| g).max(expected.abs());
        let mut limit = match self.of_bf16.contains(&i) {
            true => {
                BF16 * size.max(self.least * direction.iter().map(|d| d * d).sum::<f64>().sqrt())
            }
            false => GRADIENT * size.max(self.least),
        };
        if self.parts.contains(&i) {
            let largest = g.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
            limit += sum(&|_| PARTS * largest);
        }
        if self.rounded.contains(&i) {
            limit += sum(&half_unit);
        }
        limit
    }
}

/// Gradients against central differences of the plain version: along two dense directions, which
/// reach every element, and along a few single elements.
pub(crate) fn assert_differences(
    wide: &[Tensor],
    run: &Run,
    allowed: Allowed<'_>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let dy = numbers(&run.dy);
    let loss = |inputs: &[Tensor]| -> f64 {
        let y = numbers(&plain(inputs).expect("the plain version in f64"));
        y.iter().zip(&dy).map(|(y, d)| y * d).sum()
    };
    for (i, input) in wide.iter().enumerate() {
        let gradient = match &run.gradients[i] {
            Some(gradient) => gradient.clone(),
            None => input.zeros_like().expect("zeros"),
        };
        assert_eq!(gradient.dims(), input.dims(), "shape of gradient {i}");
        let gradient = numbers(&gradient);
        for direction in directions(gradient.len(), i as u64) {
            let moved = |step: f64| {
                let numbers: Vec<f64> =
                    numbers(input).iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                let moved = Tensor::from_vec(numbers, input.shape(), &Device::Cpu).expect("moved");
                let mut inputs = wide.to_vec();
                inputs[i] = moved;
                loss(&inputs)
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            assert!(
                (found - expected).abs() <= allowed.along(&direction, i, &gradient, expected),
                "gradient of input {i}: {found} along a direction, expected {expected}"
            );
        }
    }
}

fn directions(n: usize, seed: u64) -> Vec<Vec<f64>> {
    let dense = (0..2).map(|i| numbers(&normal(1_000 + 10 * seed + i, &[&[n]]).remove(0)));
    let single = indices(seed, 3.min(n), n).into_iter().map(|at| {
        let mut direction = vec![0.0; n];
        direction[at as usize] = 1.0;
        direction
    });
    dense.chain(single).collect()
}
