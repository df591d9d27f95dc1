//! Disentangled attention.

use std::sync::Arc;

use lowrank_autograd::{
    Error, Value,
    ops::{self, Distances, Span},
    reference,
};
use proptest::prelude::*;

use super::{
    check::{check, normal},
    plumbing::mask,
};

/// Sequences with padding before and after what is real.
fn spans(lengths: &[(usize, usize, usize)]) -> Vec<Span> {
    let mut row = 0;
    let span = |&(before, real, after): &(usize, usize, usize)| {
        let start = row;
        row += before + real + after;
        Span { queries: start..row, keys: start + before..start + before + real, offset: 0 }
    };
    lengths.iter().map(span).collect()
}

/// A row for each distance up to `furthest`, the same for all beyond `reach`.
fn rows(furthest: usize, reach: usize) -> Arc<[u32]> {
    (0..2 * furthest + 1)
        .map(|i| (i + reach).saturating_sub(furthest).min(2 * reach) as u32)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn equals_its_plain_version(
        lengths in prop::collection::vec((0..3usize, 1..14usize, 0..3usize), 1..4),
        (heads, dim, reach) in (1..4usize, 1..12usize, 1..16usize),
        [keys, queries, dropout]: [bool; 3],
        seed: u64,
    ) {
        let spans = spans(&lengths);
        let n = spans.last().map_or(0, |span| span.queries.end);
        let rows = rows(14, reach);
        let (width, table) = (heads * dim, 2 * reach + 1);
        let mut shapes: Vec<Vec<usize>> = vec![vec![n, width]; 3];
        shapes.extend([keys, queries].iter().filter(|on| **on).map(|_| vec![table, width]));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let inputs = normal(seed, &shapes);
        let mask = dropout.then(|| mask(seed, n, 0.3));
        let (first, second) = (3, 3 + usize::from(keys));
        let scale = 0.4;
        check(
            &inputs,
            |v| {
                let of = |on: bool, i: usize| v.get(i).filter(|_| on).cloned();
                let rows = Arc::clone(&rows);
                let distances = Distances { keys: of(keys, first), queries: of(queries, second), rows };
                let spans: Arc<[Span]> = spans.clone().into();
                let qkv = [&v[0], &v[1], &v[2]];
                ops::disentangled_attention(qkv, &distances, heads, scale, &spans, mask.clone())
            },
            |t| {
                let tables = [t.get(first).filter(|_| keys), t.get(second).filter(|_| queries)];
                let qkv = [&t[0], &t[1], &t[2]];
                let mask = mask.as_ref();
                reference::disentangled_attention(qkv, tables, &rows, heads, scale, &spans, mask)
            },
        );
    }
}

#[test]
fn what_doesnt_fit_is_an_error() {
    let value = |shape: &[usize]| Value::constant(normal(1, &[shape]).remove(0));
    let run = |q: &[usize], table: &[usize], rows: Arc<[u32]>, span: Span, heads: usize| {
        let (q, kv) = (value(q), value(&[5, 6]));
        let distances = Distances { keys: Some(value(table)), queries: None, rows };
        ops::disentangled_attention([&q, &kv, &kv], &distances, heads, 1.0, &[span].into(), None)
    };
    let whole = || Span { queries: 0..5, keys: 0..5, offset: 0 };
    assert!(run(&[5, 6], &[7, 6], rows(4, 3), whole(), 2).is_ok());
    let shape = |found: lowrank_autograd::Result<Value>| {
        assert!(
            matches!(found, Err(Error::Shape { op: "disentangled_attention", .. })),
            "{found:?}"
        );
    };
    shape(run(&[4, 6], &[7, 6], rows(4, 3), whole(), 2));
    shape(run(&[5, 6], &[7, 5], rows(4, 3), whole(), 2));
    shape(run(&[5, 6], &[7, 6], rows(3, 3), whole(), 2));
    shape(run(&[5, 6], &[7, 6], rows(4, 3), whole(), 4));
    shape(run(&[5, 6], &[7, 6], rows(4, 3).iter().rev().copied().collect(), whole(), 2));
    shape(run(&[5, 6], &[7, 6], rows(4, 3), Span { keys: 0..6, ..whole() }, 2));
    shape(run(&[5, 6], &[7, 6], rows(4, 3), Span { keys: 2..2, ..whole() }, 2));
    let found = run(&[5, 6], &[6, 6], rows(4, 3), whole(), 2);
    assert!(matches!(found, Err(Error::Index { index: 6, .. })), "{found:?}");
}
