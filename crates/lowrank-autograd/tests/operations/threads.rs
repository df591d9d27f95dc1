//! The number of threads changes no bit, also where the work is large enough to be cut up.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use lowrank_autograd::{
    Result, Value, Weight,
    ops::{
        self, Activation, AttentionShape, LowRank, LowRankRows, Matrix, RotaryStyle, Rows, Span,
    },
};

use super::{
    check::{assert_same, indices, normal, pools, run},
    plumbing::mask,
    rotary::angles,
};

/// Runs `op` forward and back in pools of 1, 2 and 3 threads.
fn same(inputs: &[Tensor], op: impl Fn(&[Value]) -> Result<Value> + Sync) {
    let run = || run(inputs, &op, None, false).expect("the operation");
    let runs: Vec<_> = pools().iter().map(|pool| pool.install(run)).collect();
    for other in &runs[1..] {
        assert_same("another number of threads", other, &runs[0]);
    }
}

/// `x`, then `A`, `B` of one adapter.
fn adapted(n: usize, input: usize, out: usize) -> Vec<Tensor> {
    normal(1, &[&[n, input], &[8, input], &[out, 8]])
}

fn term(v: &[Value], n: usize) -> Vec<LowRank> {
    let dropout = Some(mask(1, n, 0.1));
    vec![LowRank { a: v[1].clone(), b: v[2].clone(), bias: None, scale: 2.0, dropout }]
}

#[test]
fn linear() {
    // One token, a few, many; widths that no tile divides.
    for (n, input, out) in [(1, 1_537, 577), (5, 577, 1_537), (301, 577, 1_537)] {
        let w = normal(2, &[&[out, input]]).remove(0);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let weight = Weight::from_tensor(&w.to_dtype(dtype).expect("a dtype")).expect("w");
            same(&adapted(n, input, out), |v| {
                ops::linear(&v[0], Matrix::Frozen(&weight), None, term(v, n))
            });
        }
        let trained = [adapted(n, input, out), vec![w]].concat();
        same(&trained, |v| {
            let matrix = Matrix::Trained { value: &v[3], transposed: false };
            ops::linear(&v[0], matrix, None, term(v, n))
        });
    }
}

#[test]
fn attention() {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        value_dim: 32,
        scale: 0.2,
        causal: true,
        window: None,
        softcap: None,
    };
    let spans: Arc<[Span]> = Span::packed(&[130, 3, 67]).into();
    let inputs = normal(3, &[&[200, 192], &[200, 64], &[200, 64], &[261, 6]]);
    same(&inputs, |v| {
        let dropout = Some(mask(3, 200, 0.2));
        ops::attention(&v[0], &v[1], &v[2], v.get(3), &shape, &spans, dropout)
    });
}

#[test]
fn the_rest() {
    let (n, d) = (301, 577);
    let t = normal(4, &[&[n, d], &[d], &[d], &[n, d]]);
    same(&t[..2], |v| ops::rms_norm(&v[0], &v[1], 1e-6));
    same(&t[..3], |v| ops::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-6));
    same(&t, |v| ops::gated(&v[0], &v[3], Activation::Silu));
    same(&t[..1], |v| ops::activation(&v[0], Activation::Gelu));
    same(&t, |v| ops::mul(&ops::add(&v[0], &v[3])?, &ops::scale(&v[0], 0.3)?));
    same(&t[..1], |v| ops::sum_all(&v[0]));
    same(&t[..1], |v| ops::columns(&v[0], 5..501));
    same(&t[..1], |v| ops::clip(&v[0], 0.5));
    same(&t[..1], |v| ops::select_rows(&v[0], &(0..n).map(|i| i * i % n).collect()));
    same(&t[..1], |v| ops::dropout(&v[0], Some(&mask(2, n, 0.3))));
    let wide = normal(6, &[&[n, 9 * 64]]);
    for style in [RotaryStyle::Halves, RotaryStyle::Pairs] {
        same(&wide, |v| ops::rotary(&v[0], 64, &angles(n, 30, 7), style));
    }
    let targets: Arc<[u32]> = indices(4, n, d).into();
    same(&t[..1], |v| ops::cross_entropy(&v[0], &targets));
    same(&t[..1], |v| ops::binary_cross_entropy(&v[0], &t[3]));
    let ids: Arc<[u32]> = indices(5, n, 97).into();
    same(&normal(5, &[&[97, d], &[8, 97], &[d, 8]]), |v| {
        let term = LowRankRows { a: v[1].clone(), b: v[2].clone(), scale: 2.0 };
        ops::embedding(Rows::Trained(&v[0]), &ids, vec![term], None)
    });
}
