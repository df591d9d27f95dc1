//! Compiling a loop for several instruction sets and choosing one at run time, and the
//! transcendental functions that such loops need: branchless, so that the compiler vectorizes them.

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    not(any(target_arch = "x86_64", test)),
    expect(dead_code, reason = "instructions of x86-64")
)]
pub(crate) enum Level {
    /// What the build target has.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// The best level that this machine has.
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        // The macro caches what it finds.
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let has_avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (has_avx2, has_avx512) {
            (true, true) => return Level::Avx512,
            (true, false) => return Level::Avx2,
            _ => {}
        }
    }
    Level::Portable
}

/// Whether the machine has AVX-512's instructions for bf16 besides.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_bf16() -> bool {
    level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
}

/// Defines a function that is compiled for every [`Level`] and runs the best that the machine has.
/// Generic parameters stand in square brackets: `fn map[F: Fn(f32) -> f32](x: &mut [f32], f: F)`.
/// What the body calls has to be `#[inline(always)]` to be compiled with it.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $([$($generics:tt)*])?
     ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, reason = "calls of functions compiled for another instruction set")]
        $vis fn $name $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($generics)*>)? ($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::kernels::simd::level() {
                    // SAFETY: `level` has found the instructions on this machine.
                    $crate::kernels::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::simd::Level::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// Asks for the memory at an element, which may lie beyond the end.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "a prefetch takes a pointer")]
pub(crate) fn prefetch<T>(data: &[T], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address is allowed; nothing is read.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().wrapping_add(index).cast()) };
}

/// The same into the second-level cache, for what is read later.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "a prefetch takes a pointer")]
pub(crate) fn prefetch_early<T>(data: &[T], index: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(data.as_ptr().wrapping_add(index).cast()) };
}

/// Asks for the memory of all elements, for what is read later. Nothing where the machine isn't known
/// to have an instruction for it.
pub(crate) fn ask_for<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    (0..data.len()).step_by((64 / size_of::<T>()).max(1)).for_each(|i| prefetch_early(data, i));
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// `eˣ` of a number up to 88, to within 2 units in the last place; 0 where the result would be near
/// the smallest normal number (an operation whose result is subnormal takes Intel's processors a
/// hundred times as long). NaN stays NaN.
#[inline(always)]
pub(crate) fn exp_or_zero(x: f32) -> f32 {
    const SMALLEST: f32 = -87.0;
    let (p, n) = exp_parts(if x < SMALLEST { SMALLEST } else { x });
    if x < SMALLEST { 0.0 } else { p * power_of_two(n) }
}

/// `eˣ` to within 2 units in the last place over the whole range, subnormal results included; NaN
/// stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Not `clamp`, whose result for a NaN the compiler has to arrange for by itself.
    let x = if x > 89.0 { 89.0 } else { x };
    let (p, n) = exp_parts(if x < -104.0 { -104.0 } else { x });
    // 2ⁿ in two factors: n runs from -150 to 128, beyond what one exponent holds.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `eˣ = p·2ⁿ`: argument reduction by Cody and Waite, then a polynomial.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    const ROUND: f32 = 12_582_912.0; // 1.5·2²³: adding it rounds to an integer
    const LN2_HIGH: f32 = 0.693_359_4; // 355/512
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = polynomial(
        r,
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5],
    );
    let n = shifted.to_bits().cast_signed().wrapping_sub(ROUND.to_bits().cast_signed());
    ((p * r).mul_add(r, r) + 1.0, n)
}

/// `2ⁿ` of an exponent that a normal number has.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
}

/// Horner's rule, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().reduce(|sum, c| f32::mul_add(sum, x, c)).unwrap_or_default()
}

/// `1/(1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The bits of the nearest bf16, ties to even; a NaN stays one.
#[inline(always)]
pub(crate) fn nearest_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    if v.is_nan() { quiet } else { rounded }
}

/// Hyperbolic tangent: a polynomial where `1 - 2/(e²ˣ + 1)` would cancel, else that; within 3 units
/// in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let p = polynomial(
        square,
        [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1],
    );
    let near = (x * square).mul_add(p, x);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place_everywhere() {
        // Every 997th bit pattern: subnormals, infinities and NaNs of both signs among them.
        for bits in (0..=u32::MAX).step_by(997) {
            let x = f32::from_bits(bits);
            let (got, want) = (exp(x), f64::from(x).exp());
            if x.is_nan() {
                assert!(got.is_nan(), "exp({x})");
                continue;
            }
            let rounded = want as f32;
            let unit = (f64::from(rounded.next_up()) - f64::from(rounded)).max(1.5e-45);
            let close = got == rounded || (f64::from(got) - want).abs() <= 2.0 * unit;
            assert!(close, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_or_zero_is_exp_down_to_the_smallest_normal_number() {
        for bits in (0..=u32::MAX).step_by(997) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(exp_or_zero(x).is_nan(), "exp({x})");
            } else if x <= 88.0 {
                let want = if x < -87.0 { 0.0 } else { exp(x) };
                assert_eq!(exp_or_zero(x), want, "exp({x})");
            }
        }
    }

    #[test]
    fn tanh_is_within_three_units_in_the_last_place_everywhere() {
        for bits in (0..=u32::MAX).step_by(997) {
            let x = f32::from_bits(bits);
            let (got, want) = (tanh(x), f64::from(x).tanh());
            if x.is_nan() {
                assert!(got.is_nan(), "tanh({x})");
                continue;
            }
            let rounded = want as f32;
            let unit = f64::from(rounded.abs().next_up()) - f64::from(rounded.abs());
            let error = (f64::from(got) - want).abs();
            assert!(error <= 3.0 * unit, "tanh({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn a_vectorized_function_gives_what_its_body_says() {
        vectorized! {
            fn apply[F: Fn(f32) -> f32](x: &mut [f32], f: F) {
                for x in x {
                    *x = f(*x);
                }
            }
        }
        let mut x = [1.0, 2.0, 3.0];
        apply(&mut x, |x| x * 2.0);
        assert_eq!(x, [2.0, 4.0, 6.0]);
    }
}
