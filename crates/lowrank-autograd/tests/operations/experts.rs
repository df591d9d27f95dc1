//! Experts: routes to them, products of each one's rows, and what brings these together again.

use std::{ops::Range, sync::Arc};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{
    Value, Weight,
    ops::{self, LowRankStack, Routing, Score, Stack},
    reference,
};
use proptest::prelude::*;

use super::{
    bf16::Narrow,
    check::{Allowed, bits, check, check_weight, indices, normal, numbers, rounded},
    linear::mapped,
};

/// So many groups of `n` rows, some of them empty.
fn groups(seed: u64, n: usize, experts: usize) -> Arc<[Range<usize>]> {
    let mut ends: Vec<usize> =
        indices(seed, experts - 1, n + 1).into_iter().map(|i| i as usize).collect();
    ends.push(n);
    ends.sort_unstable();
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

fn terms(v: &[Value]) -> Vec<LowRankStack> {
    let term = |a: usize, scale| LowRankStack { a: v[a].clone(), b: v[a + 1].clone(), scale };
    vec![term(0, 0.5), term(2, 2.0)]
}

fn plain_terms(t: &[Tensor]) -> Vec<reference::LowRankStack<'_>> {
    let term = |a: usize, scale| reference::LowRankStack { a: &t[a], b: &t[a + 1], scale };
    vec![term(0, 0.5), term(2, 2.0)]
}

fn routing(score: Score, chosen: usize, normalized: bool) -> Routing {
    Routing { score, chosen, normalized, scale: 1.5, bias: None, groups: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn grouped_layers_equal_their_plain_version(
        (n, input, out, r) in (1..40usize, 1..40usize, 1..40usize, 1..4usize),
        experts in 1..6usize,
        seed: u64,
    ) {
        let groups = groups(seed, n, experts);
        let t = normal(seed, &[
            &[n, input], &[experts, out, input],
            &[experts * r, input], &[out, r * experts], &[experts, input], &[out, experts],
        ]);
        check(
            &t,
            |v| ops::grouped_linear(&v[0], &groups, Stack::Trained(&v[1]), terms(&v[2..])),
            |t| reference::grouped_linear(&t[0], &groups, &t[1], &plain_terms(&t[2..])),
        );
    }

    #[test]
    fn a_frozen_stack_is_read_wherever_its_matrices_lie(
        (n, input, half, r) in (1..40usize, 1..40usize, 1..20usize, 1..4usize),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16]),
        in_file: bool,
        seed: u64,
    ) {
        let (experts, out) = (3, 2 * half);
        let groups = groups(seed, n, experts);
        let w = normal(!seed, &[&[experts, out, input]]).remove(0).to_dtype(dtype).expect("dtype");
        let whole = if in_file { mapped(&w, 64) } else { Weight::from_tensor(&w) };
        let whole = whole.expect("a weight");
        let parts = (0..2 * experts).map(|i| whole.rows(i * half..(i + 1) * half));
        let parts = parts.collect::<Result<_, _>>().expect("rows");
        let stack = Weight::stacked(parts, &[experts, out, input]).expect("a stack");
        let mut t = normal(seed, &[
            &[n, input], &[experts * r, input], &[out, r * experts], &[experts, input],
            &[out, experts],
        ]);
        t[0] = rounded(&t[0], dtype);
        let run = |w: &Weight, v: &[Value]| {
            ops::grouped_linear(&v[0], &groups, Stack::Frozen(w), terms(&v[1..]))
        };
        check_weight(
            dtype,
            &t,
            |v| run(&stack, v),
            |t| {
                let w = w.to_dtype(t[0].dtype())?;
                reference::grouped_linear(&t[0], &groups, &w, &plain_terms(&t[1..]))
            },
        );
        // Parts that lie one after the other in a file are read as the one matrix that they are.
        // Parts in memory are products of their own, whose sums may go another way.
        if in_file {
            let values: Vec<Value> = t.into_iter().map(Value::constant).collect();
            let [one, other] = [&whole, &stack].map(|w| run(w, &values).expect("a product"));
            assert_eq!(bits(one.data()), bits(other.data()));
        }
        assert_eq!(numbers(&stack.to_tensor().expect("a copy")), numbers(&w));
    }

    #[test]
    fn grouped_layers_of_bf16_equal_their_plain_version(
        (n, input, out, r) in (1..60usize, 1..40usize, 1..40usize, 1..4usize),
        experts in 1..6usize,
        dtype in prop::sample::select(vec![DType::BF16, DType::BF16, DType::F32]),
        seed: u64,
    ) {
        let groups = groups(seed, n, experts);
        let t = normal(seed, &[
            &[n, input], &[experts * r, input], &[out, r * experts], &[experts, input],
            &[out, experts],
        ]);
        let w = normal(!seed, &[&[experts, out, input]]).remove(0).to_dtype(dtype).expect("dtype");
        let stack = Weight::from_tensor(&w).expect("a stack");
        let (parts, output): (&[usize], _) = match dtype {
            DType::BF16 => (&[0], DType::BF16),
            _ => (&[], DType::F32),
        };
        let allowed = Allowed { parts, rounded: &[0], ..Allowed::default() };
        Narrow { narrow: 1, output, allowed, ..Narrow::all(&t) }.check(
            |v| ops::grouped_linear(&v[0], &groups, Stack::Frozen(&stack), terms(&v[1..])),
            |t| {
                let w = w.to_dtype(t[0].dtype())?;
                reference::grouped_linear(&t[0], &groups, &w, &plain_terms(&t[1..]))
            },
        );
    }

    #[test]
    fn routes_equal_their_plain_version(
        (n, experts, chosen) in (1..12usize, 1..20usize, 1..5usize),
        seed: u64,
    ) {
        let chosen = chosen.min(experts);
        let z = normal(seed, &[&[n, experts]]);
        for score in [Score::Softmax, Score::Sigmoid] {
            for normalized in [false, true] {
                let routing = routing(score, chosen, normalized);
                let z_value = Value::constant(z[0].clone());
                let (_, experts) = ops::route(&z_value, &routing).expect("routes");
                let experts: Vec<u32> = experts.iter().map(|e| *e as u32).collect();
                let experts = Tensor::from_vec(experts, (n, chosen), &Device::Cpu).expect("places");
                check(
                    &z,
                    |v| Ok(ops::route(&v[0], &routing)?.0),
                    |t| reference::route(&t[0], &routing, &experts),
                );
            }
        }
    }

    #[test]
    fn balance_equals_its_plain_version(
        (n, experts, chosen) in (1..200usize, 1..20usize, 1..5usize),
        seed: u64,
    ) {
        let chosen = chosen.min(experts);
        let z = normal(seed, &[&[n, experts]]);
        let best = ops::route(&Value::constant(z[0].clone()), &routing(Score::Softmax, chosen, true));
        let mut visits = vec![0.0_f64; n * experts];
        for (i, expert) in best.expect("routes").1.iter().enumerate() {
            visits[i / chosen * experts + expert] = 1.0;
        }
        let visits = Tensor::from_vec(visits, (n, experts), &Device::Cpu).expect("visits");
        check(&z, |v| ops::balance(&v[0], chosen), |t| reference::balance(&t[0], &visits));
    }

    #[test]
    fn mixtures_equal_their_plain_version(
        (n, k, d) in (1..20usize, 1..4usize, 1..150usize),
        seed: u64,
    ) {
        let mut places: Vec<usize> = (0..n * k).collect();
        places.sort_by_key(|i| (i * 7_919 + seed as usize % 1_000) % 1_013);
        let t = normal(seed, &[&[n * k, d], &[n, k]]);
        let rows: Vec<u32> = places.iter().map(|i| *i as u32).collect();
        let rows = Tensor::new(rows, &Device::Cpu).expect("places");
        let mix = |v: &[Value]| ops::mix_rows(&v[0], &v[1], &places.clone().into());
        let plain = |t: &[Tensor]| reference::mix_rows(&t[0], &t[1], &rows);
        check(&t, mix, plain);
        let (output, allowed) = (DType::F32, Allowed { rounded: &[0], ..Allowed::default() });
        Narrow { narrow: 1, output, allowed, ..Narrow::all(&t) }.check(mix, plain);
    }
}

#[test]
fn parts_of_a_file_make_up_a_matrix_in_any_order() {
    let w = normal(3, &[&[4, 5]]).remove(0);
    let whole = mapped(&w, 64).expect("a weight");
    for order in [[0_u32, 1, 2, 3], [1, 0, 2, 3], [0, 2, 1, 3], [1, 2, 3, 0], [0, 0, 1, 2]] {
        let parts = order.iter().map(|row| whole.rows(*row as usize..*row as usize + 1));
        let parts = parts.collect::<Result<_, _>>().expect("rows");
        let stack = Weight::stacked(parts, &[2, 2, 5]).expect("a stack");
        for (expert, rows) in order.chunks(2).enumerate() {
            let rows = Tensor::new(rows, &Device::Cpu).expect("rows");
            let expected = w.index_select(&rows, 0).expect("rows");
            let found = stack.rows(2 * expert..2 * expert + 2).and_then(|m| m.to_tensor());
            assert_eq!(numbers(&found.expect("a matrix")), numbers(&expected));
        }
    }
}

/// The experts that a token with these scores goes to.
fn chosen(z: &[f32], routing: &Routing) -> Vec<usize> {
    let z = Tensor::from_vec(z.to_vec(), (1, z.len()), &Device::Cpu).expect("a row");
    ops::route(&Value::constant(z), routing).expect("routes").1.to_vec()
}

#[test]
fn the_best_experts_are_chosen_and_of_equal_ones_the_first() {
    let two = routing(Score::Softmax, 2, false);
    assert_eq!(chosen(&[0.0, 3.0, -1.0, 2.0], &two), [1, 3]);
    assert_eq!(chosen(&[1.0, 1.0, 1.0], &two), [0, 1]);
    // No order of NaNs makes it fail.
    assert_eq!(chosen(&[f32::NAN; 3], &two).len(), 2);
}

#[test]
fn biases_and_groups_steer_the_choice_but_not_the_weights() {
    let plain = routing(Score::Sigmoid, 2, false);
    let z = [2.0, -2.0, 1.0, 1.0, 0.5, 0.0];
    assert_eq!(chosen(&z, &plain), [0, 2]);
    // Groups of two by the sum of both: the second is the best one.
    let grouped = Routing { groups: Some((3, 1)), ..plain.clone() };
    assert_eq!(chosen(&z, &grouped), [2, 3]);
    let biased = Routing { bias: Some([0.0, 0.0, 0.0, 0.0, 9.0, 0.0].into()), ..grouped };
    assert_eq!(chosen(&z, &biased), [4, 5]);
    let row = Tensor::from_vec(z.to_vec(), (1, 6), &Device::Cpu).expect("a row");
    let (w, _) = ops::route(&Value::constant(row), &biased).expect("routes");
    let sigmoid = |z: f64| 1.5 / (1.0 + (-z).exp());
    let found = numbers(w.data());
    for (found, z) in found.iter().zip([0.5, 0.0]) {
        assert!((found - sigmoid(z)).abs() < 1e-6, "{found}");
    }
}
