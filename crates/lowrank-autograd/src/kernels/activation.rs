//! Activation functions and their derivatives, without branches, so that loops over them are
//! vectorized.

use std::marker::PhantomData;

use super::{
    Computed,
    buffer::{PIECE, computed, computed_pair, piece_rows},
    each::{Each, each, each_in_rows},
    elementwise::{with_pieces, with_pieces_of},
    simd::{exp, sigmoid, tanh, vectorized},
};
use crate::{elements::Elements, ops::Activation};

/// A function and its derivative, as a type: a loop over it is compiled for it alone.
trait Curve {
    fn of(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

/// Evaluates an expression with `$curve` standing for the type of an [`Activation`].
macro_rules! with_curve {
    ($f:expr, $curve:ident => $value:expr) => {
        match $f {
            Activation::Relu => with_curve!(@ Relu, $curve => $value),
            Activation::Silu => with_curve!(@ Silu, $curve => $value),
            Activation::Gelu => with_curve!(@ Gelu, $curve => $value),
            Activation::GeluTanh => with_curve!(@ GeluTanh, $curve => $value),
            Activation::QuickGelu => with_curve!(@ QuickGelu, $curve => $value),
            Activation::Tanh => with_curve!(@ Tanh, $curve => $value),
            Activation::Sigmoid => with_curve!(@ Sigmoid, $curve => $value),
            Activation::Identity => with_curve!(@ Identity, $curve => $value),
        }
    };
    (@ $name:ident, $curve:ident => $value:expr) => {{
        type $curve = $name;
        $value
    }};
}

/// `f(x)`, rounded to bf16 if `narrow`, as the functions below are.
pub(crate) fn activation(f: Activation, x: Elements<'_>, narrow: bool) -> Computed {
    vectorized! {
        fn run[C: Curve](y: &mut [f32], x: &[f32], _curve: C) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = C::of(*x);
            }
        }
    }
    with_curve!(f, C => computed(narrow, x.len(), PIECE, |i, y| {
        with_pieces([x], i..i + y.len(), |[x]| run(y, x, C {}));
    }))
}

/// `dy·f'(x)`.
pub(crate) fn activation_gradient(
    f: Activation,
    x: Elements<'_>,
    dy: Elements<'_>,
    narrow: bool,
) -> Computed {
    vectorized! {
        fn run[C: Curve](dx: &mut [f32], x: &[f32], dy: &[f32], _curve: C) {
            for (dx, (x, dy)) in dx.iter_mut().zip(x.iter().zip(dy)) {
                *dx = dy * C::slope(*x);
            }
        }
    }
    with_curve!(f, C => computed(narrow, x.len(), PIECE, |i, dx| {
        with_pieces([x, dy], i..i + dx.len(), |[x, dy]| run(dx, x, dy, C {}));
    }))
}

vectorized! {
    /// `y = f(g)·u`.
    fn gate[C: Curve](y: &mut [f32], g: &[f32], u: &[f32], _curve: C) {
        for (y, (g, u)) in y.iter_mut().zip(g.iter().zip(u)) {
            [*y] = Gate::<C>::of([*g, *u]);
        }
    }
}

vectorized! {
    /// `dg = dy·u·f'(g)` and `du = dy·f(g)`.
    fn gate_gradients[C: Curve](
        dg: &mut [f32],
        du: &mut [f32],
        g: &[f32],
        u: &[f32],
        dy: &[f32],
        _curve: C,
    ) {
        for (((dg, du), dy), (g, u)) in dg.iter_mut().zip(du).zip(dy).zip(g.iter().zip(u)) {
            [*dg, *du] = GateGradients::<C>::of([*g, *u, *dy]);
        }
    }
}

/// [`gate`] of one element.
struct Gate<C>(PhantomData<C>);

impl<C: Curve> Each<2, 1> for Gate<C> {
    #[inline(always)]
    fn of([g, u]: [f32; 2]) -> [f32; 1] {
        [C::of(g) * u]
    }
}

/// [`gate_gradients`] of one element.
struct GateGradients<C>(PhantomData<C>);

impl<C: Curve> Each<3, 2> for GateGradients<C> {
    #[inline(always)]
    fn of([g, u, dy]: [f32; 3]) -> [f32; 2] {
        [dy * u * C::slope(g), C::of(g) * dy]
    }
}

/// `f(g)·u`. It is the gradient with respect to `u` as well, if `u` is that of the result.
pub(crate) fn gated(f: Activation, g: Elements<'_>, u: Elements<'_>, narrow: bool) -> Computed {
    if narrow && let Some([y]) = with_curve!(f, C => each::<Gate<C>, 2, 1>([g, u])) {
        return Computed::Bf16(y);
    }
    with_curve!(f, C => computed(narrow, g.len(), PIECE, |i, y| {
        with_pieces([g, u], i..i + y.len(), |[g, u]| gate(y, g, u, C {}));
    }))
}

/// [`gated`] of the two halves of each of `n` rows of `2·d` elements.
pub(crate) fn gated_halves(
    f: Activation,
    x: Elements<'_>,
    [n, d]: [usize; 2],
    narrow: bool,
) -> Computed {
    if narrow
        && let Some(y) = with_curve!(f, C => each_in_rows::<Gate<C>, 2, 1>([n, d], [x, x], [0, d]))
    {
        return Computed::Bf16(y);
    }
    let rows = piece_rows(2 * d);
    with_curve!(f, C => computed(narrow, n * d, rows * d, |i, y| {
        with_pieces([x], 2 * i..2 * (i + y.len()), |[x]| {
            for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(2 * d)) {
                let (g, u) = x.split_at(d);
                gate(y, g, u, C {});
            }
        });
    }))
}

/// Gradient of [`gated_halves`].
pub(crate) fn gated_halves_gradient(
    f: Activation,
    x: Elements<'_>,
    dy: Elements<'_>,
    [n, d]: [usize; 2],
    narrow: bool,
) -> Computed {
    let (factors, columns) = ([x, x, dy], [0, d, 0]);
    if narrow
        && let Some(dx) =
            with_curve!(f, C => each_in_rows::<GateGradients<C>, 3, 2>([n, d], factors, columns))
    {
        return Computed::Bf16(dx);
    }
    let rows = piece_rows(2 * d);
    with_curve!(f, C => computed(narrow, n * 2 * d, rows * 2 * d, |i, dx| {
        let range = i..i + dx.len();
        with_pieces_of([(x, range.clone()), (dy, i / 2..range.end / 2)], |[x, dy]| {
            let rows = x.chunks_exact(2 * d).zip(dy.chunks_exact(d));
            for (dx, (x, dy)) in dx.chunks_exact_mut(2 * d).zip(rows) {
                let ((g, u), (dg, du)) = (x.split_at(d), dx.split_at_mut(d));
                gate_gradients(dg, du, g, u, dy, C {});
            }
        });
    }))
}

/// Gradient of [`gated`] with respect to `g`: `dy·u·f'(g)`.
pub(crate) fn gate_gradient(
    f: Activation,
    [g, u, dy]: [Elements<'_>; 3],
    narrow: bool,
) -> Computed {
    vectorized! {
        fn run[C: Curve](dg: &mut [f32], g: &[f32], u: &[f32], dy: &[f32], _curve: C) {
            for ((dg, dy), (g, u)) in dg.iter_mut().zip(dy).zip(g.iter().zip(u)) {
                *dg = dy * u * C::slope(*g);
            }
        }
    }
    with_curve!(f, C => computed(narrow, g.len(), PIECE, |i, dg| {
        with_pieces([g, u, dy], i..i + dg.len(), |[g, u, dy]| run(dg, g, u, dy, C {}));
    }))
}

/// Gradients of [`gated`] with respect to `g` and `u`, in one pass.
pub(crate) fn gated_gradients(
    f: Activation,
    [g, u, dy]: [Elements<'_>; 3],
    narrow: bool,
) -> [Computed; 2] {
    if narrow && let Some(found) = with_curve!(f, C => each::<GateGradients<C>, 3, 2>([g, u, dy])) {
        return found.map(Computed::Bf16);
    }
    with_curve!(f, C => computed_pair(narrow, g.len(), PIECE / 2, |i, dg, du| {
        with_pieces([g, u, dy], i..i + dg.len(), |[g, u, dy]| {
            gate_gradients(dg, du, g, u, dy, C {});
        });
    }))
}

struct Relu {}

impl Curve for Relu {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        // Not `max`, which would make 0 of a NaN.
        if x < 0.0 { 0.0 } else { x }
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

/// `x·σ(x)`
struct Silu {}

impl Curve for Silu {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        swish_slope(x, 1.0)
    }
}

/// `x·σ(1.702x)`
struct QuickGelu {}

impl Curve for QuickGelu {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x * sigmoid(1.702 * x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        swish_slope(x, 1.702)
    }
}

/// Derivative of `x·σ(βx)`.
#[inline(always)]
fn swish_slope(x: f32, beta: f32) -> f32 {
    let s = sigmoid(beta * x);
    s + x * (beta * s * (1.0 - s)) // `beta * x` could overflow
}

/// `x·Φ(x)`, `Φ(x) = (1 + erf(x/√2))/2`
struct Gelu {}

impl Curve for Gelu {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let density = exp(-0.5 * x * x) * 0.398_942_3; // 1/√(2π)
        0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * density
    }
}

/// `x·(1 + tanh(u))/2` with `u = √(2/π)·(x + 0.044715·x³)`; written as `x·σ(2u)`.
struct GeluTanh {}

impl GeluTanh {
    const SCALE: f32 = 1.595_769; // 2·√(2/π)
    const CUBIC: f32 = 0.044_715;

    #[inline(always)]
    fn gate(x: f32) -> f32 {
        sigmoid(Self::SCALE * (x + Self::CUBIC * x * x * x))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x * Self::gate(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = Self::gate(x);
        let inner = Self::SCALE * (1.0 + 3.0 * Self::CUBIC * x * x);
        // Where the first factor is 0, the other may be infinite.
        let tail = x * (s * (1.0 - s));
        s + if tail == 0.0 { 0.0 } else { tail * inner }
    }
}

struct Tanh {}

impl Curve for Tanh {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        tanh(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = tanh(x);
        1.0 - t * t
    }
}

/// `1/(1 + e⁻ˣ)`
struct Sigmoid {}

impl Curve for Sigmoid {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 - s)
    }
}

struct Identity {}

impl Curve for Identity {
    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn slope(_: f32) -> f32 {
        1.0
    }
}

/// The value of a polynomial, its coefficients from the highest power down.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    let mut sum = coefficients[0];
    for c in &coefficients[1..] {
        sum = sum * x + c;
    }
    sum
}

/// The error function: the quotient of an odd polynomial of degree 13 and an even one of degree
/// 10, which is within f32 rounding of it up to 4, where it is 1. The coefficients are those of
/// XLA's and Eigen's f32 kernels.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const EVEN: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2];
    let near = x.clamp(-4.0, 4.0);
    let square = near * near;
    let inner = near * polynomial(ODD, square) / polynomial(EVEN, square);
    // Exactly 1 beyond, where a rounding error would be multiplied by a huge `x`.
    if x.abs() > 4.0 { 1.0f32.copysign(x) } else { inner }
}
