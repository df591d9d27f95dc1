//! Embedding lookup.

use std::sync::Arc;

use candle_core::DType;
use lowrank_autograd::{
    Weight,
    ops::{self, LowRankRows, Rows},
    reference,
};
use proptest::prelude::*;

use super::check::{check, indices, normal};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_its_plain_version(
        (n, rows, dim, r) in (1..40usize, 1..30usize, 1..20usize, 1..5usize),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        transposed: bool,
        seed: u64,
    ) {
        let ids: Arc<[u32]> = indices(seed, n, rows).into();
        let t = normal(seed, &[&[rows, dim], &[r, rows], &[dim, r], &[2, rows], &[dim, 2]]);
        check(
            &t,
            |v| {
                let term = |i: usize, scale| {
                    LowRankRows { a: v[i].clone(), b: v[i + 1].clone(), scale }
                };
                ops::embedding(Rows::Trained(&v[0]), &ids, vec![term(1, 0.5), term(3, 2.0)])
            },
            |t| {
                let term = |i: usize, scale| {
                    reference::LowRankRows { a: &t[i], b: &t[i + 1], scale }
                };
                reference::embedding(&t[0], &ids, &[term(1, 0.5), term(3, 2.0)])
            },
        );
        let table = t[0].to_dtype(dtype).expect("a float dtype");
        let weight = match transposed {
            true => Weight::from_tensor(&table.t().expect("a matrix")).expect("w").transpose(),
            false => Weight::from_tensor(&table).expect("a weight"),
        };
        check(
            &t[1..3],
            |v| {
                let term = LowRankRows { a: v[0].clone(), b: v[1].clone(), scale: 0.5 };
                ops::embedding(Rows::Frozen(&weight), &ids, vec![term])
            },
            |t| {
                let term = reference::LowRankRows { a: &t[0], b: &t[1], scale: 0.5 };
                reference::embedding(&table.to_dtype(t[0].dtype())?, &ids, &[term])
            },
        );
    }
}
