//! Rotary position embedding.

use candle_core::Tensor;
use lowrank_autograd::{
    Result,
    ops::{self, Angles, RotaryStyle},
    reference,
};
use proptest::prelude::*;

use super::check::{check, normal};

/// Angles of `n` rows, all different.
pub(crate) fn angles(n: usize, half: usize, seed: u64) -> Angles {
    let turns = normal(seed, &[&[n, half]]).remove(0);
    Angles::new(turns.cos().expect("cos"), turns.sin().expect("sin"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_its_plain_version(
        (n, heads, half, rest) in (1..20usize, 1..5usize, 1..40usize, 0..5usize),
        seed: u64,
    ) {
        let dim = 2 * half + rest;
        let angles = angles(n, half, seed);
        let x = normal(seed, &[&[n, heads * dim]]);
        for style in [RotaryStyle::Halves, RotaryStyle::Pairs] {
            check(
                &x,
                |v| ops::rotary(&v[0], dim, &angles, style),
                |t| reference::rotary(&t[0], dim, &angles, style),
            );
            // What turns are the last elements, where the plain version wants them to be first.
            let moved = |t: &Tensor, first: usize| -> Result<Tensor> {
                let heads = t.reshape((n, heads, dim))?;
                let (a, b) = (heads.narrow(2, first, dim - first)?, heads.narrow(2, 0, first)?);
                Ok(Tensor::cat(&[a, b], 2)?.reshape((n, heads.elem_count() / n))?)
            };
            check(
                &x,
                |v| ops::rotary_from(&v[0], dim, rest, &angles, style),
                |t| {
                    let turned = reference::rotary(&moved(&t[0], rest)?, dim, &angles, style)?;
                    moved(&turned, dim - rest)
                },
            );
        }
    }
}
