//! RMSNorm and LayerNorm.

use lowrank_autograd::{ops, reference};
use proptest::prelude::*;

use super::check::{check, normal};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // More than 32 rows cross the kernels' blocks; from 2 columns on a LayerNorm has a slope.
    #[test]
    fn equal_their_plain_versions(n in 1..70usize, d in 2..70usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[d], &[d]]);
        check(
            &t[..2],
            |v| ops::rms_norm(&v[0], &v[1], 1e-2),
            |t| reference::rms_norm(&t[0], &t[1], 1e-2),
        );
        check(
            &t[..2],
            |v| ops::layer_norm(&v[0], &v[1], None, 1e-2),
            |t| reference::layer_norm(&t[0], &t[1], None, 1e-2),
        );
        check(
            &t,
            |v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-2),
            |t| reference::layer_norm(&t[0], &t[1], Some(&t[2]), 1e-2),
        );
    }
}
