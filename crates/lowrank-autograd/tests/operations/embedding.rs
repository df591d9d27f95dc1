//! Embedding lookup.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use lowrank_autograd::{
    Result, Weight,
    ops::{self, LowRankRows, Rows},
    reference,
};
use proptest::prelude::*;

use super::check::{check, indices, normal};

/// `moved` with slice `i` of `original` along a dimension.
fn with_slice_of(moved: &Tensor, original: &Tensor, dim: usize, i: usize) -> Result<Tensor> {
    let (len, original) = (moved.dim(dim)?, original.to_dtype(moved.dtype())?);
    let parts = [
        moved.narrow(dim, 0, i)?,
        original.narrow(dim, i, 1)?,
        moved.narrow(dim, i + 1, len - i - 1)?,
    ];
    let filled: Vec<&Tensor> = parts.iter().filter(|part| part.elem_count() > 0).collect();
    Ok(Tensor::cat(&filled, dim)?)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_its_plain_version(
        (n, rows, dim, r) in (1..40usize, 1..30usize, 1..20usize, 1..5usize),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        transposed: bool,
        is_padded: bool,
        seed: u64,
    ) {
        let ids: Arc<[u32]> = indices(seed, n, rows).into();
        let t = normal(seed, &[&[rows, dim], &[r, rows], &[dim, r], &[2, rows], &[dim, 2]]);
        // A row that no gradient is made for is the same at every point of a difference.
        let padding = is_padded.then(|| ids[0]);
        let kept = |moved: &Tensor, i: usize| match padding {
            Some(row) => with_slice_of(moved, &t[i], i.min(1), row as usize),
            None => Ok(moved.clone()),
        };
        check(
            &t,
            |v| {
                let term = |i: usize, scale| {
                    LowRankRows { a: v[i].clone(), b: v[i + 1].clone(), scale }
                };
                ops::embedding(Rows::Trained(&v[0]), &ids, vec![term(1, 0.5), term(3, 2.0)], padding)
            },
            |t| {
                let (w, a, a2) = (kept(&t[0], 0)?, kept(&t[1], 1)?, kept(&t[3], 3)?);
                let one = reference::LowRankRows { a: &a, b: &t[2], scale: 0.5 };
                let two = reference::LowRankRows { a: &a2, b: &t[4], scale: 2.0 };
                reference::embedding(&w, &ids, &[one, two])
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
                ops::embedding(Rows::Frozen(&weight), &ids, vec![term], None)
            },
            |t| {
                let term = reference::LowRankRows { a: &t[0], b: &t[1], scale: 0.5 };
                reference::embedding(&table.to_dtype(t[0].dtype())?, &ids, &[term])
            },
        );
    }
}
