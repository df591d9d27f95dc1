//! Sums, products, changes of shape, picking of rows and columns, dropout, noise.

use std::sync::Arc;

use candle_core::DType;
use lowrank_autograd::{Dropout, Jitter, Key, ops, reference};
use proptest::prelude::*;

use super::check::{check, indices, normal, rounded};

/// A mask whose rows have keys of their own.
pub(crate) fn mask(seed: u64, n: usize, p: f32) -> Dropout {
    let rows = indices(seed, n, 1 << 30).into_iter().map(u64::from).collect();
    Dropout { p, key: Key::new(seed).at("dropout"), rows }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_their_plain_versions(n in 1..20usize, d in 1..150usize, seed: u64) {
        let t = normal(seed, &[&[n, d], &[n, d]]);
        let x = &t[..1];
        check(&t, |v| ops::add(&v[0], &v[1]), |t| Ok((&t[0] + &t[1])?));
        let with_row = normal(seed, &[&[n, d], &[d]]);
        check(&with_row, |v| ops::add_row(&v[0], &v[1]), |t| Ok(t[0].broadcast_add(&t[1])?));
        check(&t, |v| ops::mul(&v[0], &v[1]), |t| Ok((&t[0] * &t[1])?));
        check(x, |v| ops::scale(&v[0], 0.75), |t| Ok((&t[0] * 0.75)?));
        check(x, |v| ops::shift(&v[0], 0.75), |t| Ok((&t[0] + 0.75)?));
        check(x, |v| ops::reshape(&v[0], &[d, n]), |t| Ok(t[0].reshape((d, n))?));
        check(x, |v| ops::sum_all(&v[0]), |t| Ok(t[0].sum_all()?));
        let (from, to) = ((seed % d as u64) as usize, d);
        check(x, |v| ops::columns(&v[0], from..to), |t| Ok(t[0].narrow(1, from, to - from)?));
        // Between two numbers of bf16: no difference steps over the limit.
        let coarse = [rounded(&t[0], DType::BF16)];
        check(&coarse, |v| ops::clip(&v[0], 0.752), |t| Ok(t[0].clamp(-0.752f32, 0.752f32)?));
        let rows = indices(seed, 2 * n, n);
        let picked: Arc<[usize]> = rows.iter().map(|&row| row as usize).collect();
        check(
            x,
            |v| ops::select_rows(&v[0], &picked),
            |t| Ok(t[0].index_select(&candle_core::Tensor::new(&rows[..], t[0].device())?, 0)?),
        );
        let parts = normal(seed, &[&[n, d], &[2, d]]);
        check(
            &parts,
            |v| ops::concat_rows(&[&v[1], &v[0], &v[1]]),
            |t| Ok(candle_core::Tensor::cat(&[&t[1], &t[0], &t[1]], 0)?),
        );
        let mask = mask(seed, n, 0.3);
        check(x, |v| ops::dropout(&v[0], Some(&mask)), |t| reference::dropout(&t[0], &mask));
        let noise = Jitter { amount: 0.3, key: mask.key, rows: mask.rows.clone() };
        check(x, |v| ops::jitter(&v[0], Some(&noise)), |t| reference::jitter(&t[0], &noise));
        check(x, |v| ops::dropout(&v[0], None), |t| Ok(t[0].clone()));
    }
}
