//! Losses.

use std::sync::Arc;

use lowrank_autograd::{ops, reference};
use proptest::prelude::*;

use super::check::{check, indices, normal};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_their_plain_versions(n in 1..20usize, d in 1..70usize, seed: u64) {
        let x = normal(seed, &[&[n, d]]);
        let targets: Arc<[u32]> = indices(seed, n, d).into();
        check(
            &x,
            |v| ops::cross_entropy(&v[0], &targets),
            |t| reference::cross_entropy(&t[0], &targets),
        );
        let t = normal(!seed, &[&[n, d]]).remove(0);
        check(
            &x,
            |v| ops::squared_error(&v[0], &t),
            |x| reference::squared_error(&x[0], &t.to_dtype(x[0].dtype())?),
        );
        let t = t.abs().and_then(|t| t.clamp(0.0, 1.0)).expect("shares");
        check(
            &x,
            |v| ops::binary_cross_entropy(&v[0], &t),
            |x| reference::binary_cross_entropy(&x[0], &t.to_dtype(x[0].dtype())?),
        );
    }
}
