//! Matrices side by side.

use candle_core::Tensor;
use lowrank_autograd::{Error, Value, ops};
use proptest::prelude::*;

use super::check::{check, normal};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_its_plain_version(n in 1..20usize, widths in [1..40usize, 1..40usize, 1..9usize], seed: u64) {
        let t = normal(seed, &widths.map(|width| [n, width]).each_ref().map(|shape| &shape[..]));
        check(&t, ops::join_columns, |t| Ok(Tensor::cat(t, 1)?));
        check(&t[..1], ops::join_columns, |t| Ok(t[0].clone()));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let [a, b, flat] = [&[2, 3][..], &[3, 3], &[6]].map(|shape| normal(1, &[shape]).remove(0));
    let [a, b, flat] = [a, b, flat].map(Value::constant);
    for parts in [vec![], vec![a.clone(), b], vec![a, flat]] {
        assert!(matches!(ops::join_columns(&parts), Err(Error::Shape { .. })));
    }
}
