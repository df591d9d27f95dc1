//! RMSNorm and LayerNorm.

use candle_core::DType;
use lowrank_autograd::{ops, reference};
use proptest::prelude::*;

use super::check::{assert_close, check, normal, run};

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

/// Rows whose elements lie far from 0 and near each other lose nothing to rounding but what their
/// own f32 has lost.
#[test]
fn long_rows_with_an_offset_equal_their_plain_versions() {
    for (d, offset, size) in [(576, 1e4, 1.0), (4_099, -3e5, 2.0), (11_008, 0.0, 1e-3)] {
        let mut t = normal(d as u64, &[&[37, d], &[d], &[d]]);
        t[0] = t[0].affine(size, offset).expect("moved");
        let wide = |i: usize| t[i].to_dtype(DType::F64).expect("f64");
        let done = run(&t, &|v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-6), None, false);
        let plain = reference::layer_norm(&wide(0), &wide(1), Some(&wide(2)), 1e-6);
        let done = done.expect("the operation");
        assert_close("layer_norm", &done.output, &plain.expect("plain"), 1e-6);
        let done = run(&t[..2], &|v| ops::rms_norm(&v[0], &v[1], 1e-6), None, false);
        let plain = reference::rms_norm(&wide(0), &wide(1), 1e-6);
        assert_close("rms_norm", &done.expect("it").output, &plain.expect("plain"), 1e-6);
    }
}
