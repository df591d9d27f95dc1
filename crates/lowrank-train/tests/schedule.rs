//! Schedules against transformers' numbers (`fixtures/schedule/make.py`).
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lowrank_train::schedule::{NAMES, Schedule, warmup_steps};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Fixture {
    schedules: Vec<Case>,
    warmups: Vec<Warmup>,
}

#[derive(Deserialize)]
struct Case {
    lr_scheduler_type: String,
    num_warmup_steps: u64,
    num_training_steps: u64,
    lr_scheduler_kwargs: Map<String, Value>,
    learning_rate: f64,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Warmup {
    warmup_ratio: f64,
    steps: u64,
    warmup_steps: u64,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/schedule/schedules.json")).unwrap()
}

fn schedule(name: &str, warmup: u64, steps: u64, kwargs: Value) -> Result<Schedule, String> {
    let kwargs = kwargs.as_object().unwrap();
    Schedule::new(name, 2e-4, warmup, steps, kwargs).map_err(|error| error.to_string())
}

#[test]
fn every_rate_is_that_of_transformers() {
    let cases = fixture().schedules;
    for name in NAMES {
        assert!(cases.iter().any(|case| case.lr_scheduler_type == name), "no case for {name}");
    }
    for case in cases {
        let (name, kwargs) = (&case.lr_scheduler_type, &case.lr_scheduler_kwargs);
        let (warmup, steps) = (case.num_warmup_steps, case.num_training_steps);
        let schedule = Schedule::new(name, case.learning_rate, warmup, steps, kwargs).unwrap();
        assert_eq!(case.rates.len() as u64, steps + 5);
        for (step, expected) in (0..).zip(&case.rates) {
            let rate = schedule.learning_rate(step);
            let error = (rate - expected).abs();
            // Where the cosine passes through 0, rounding is relative to the peak.
            let tolerance = 1e-12 * expected.abs().max(1e-4 * case.learning_rate);
            assert!(error <= tolerance, "{name} {kwargs:?} step {step}: {rate} for {expected}");
        }
    }
}

#[test]
fn warmup_ratios_round_up_as_in_transformers() {
    for case in fixture().warmups {
        let steps = warmup_steps(case.warmup_ratio, case.steps);
        assert_eq!(steps, case.warmup_steps, "{} of {}", case.warmup_ratio, case.steps);
    }
}

#[test]
fn without_step_counts_stable_steps_are_a_third_of_the_rest() {
    // LLaMA-Factory: 17 steps after the warm-up, 17 // 3 stable, 12 decaying.
    let default = schedule("warmup_stable_decay", 3, 20, json!({})).unwrap();
    let explicit = json!({"num_stable_steps": 5, "num_decay_steps": 12});
    assert_eq!(default, schedule("warmup_stable_decay", 3, 20, explicit).unwrap());
    let one = schedule("warmup_stable_decay", 3, 20, json!({"num_stable_steps": 5})).unwrap();
    assert_eq!(default, one);
}

#[test]
fn wrong_arguments_are_explained() {
    let message = |name: &str, kwargs: Value| schedule(name, 3, 20, kwargs).unwrap_err();
    assert_eq!(
        message("cosin", json!({})),
        "`lr_scheduler_type` is `cosin`; it must be one of linear, cosine, cosine_with_restarts, \
         cosine_with_min_lr, cosine_warmup_with_min_lr, polynomial, constant, \
         constant_with_warmup, inverse_sqrt, warmup_stable_decay"
    );
    assert_eq!(
        message("cosine", json!({"min_lr": 1e-5})),
        "`lr_scheduler_kwargs` of `cosine`: unknown field `min_lr`, expected `num_cycles`"
    );
    assert_eq!(
        message("cosine_with_min_lr", json!({})),
        "`lr_scheduler_kwargs` of `cosine_with_min_lr`: give either `min_lr` or `min_lr_rate`"
    );
    assert_eq!(
        message("polynomial", json!({"lr_end": 1.0})),
        "`lr_scheduler_kwargs` of `polynomial`: `lr_end` must be below `learning_rate`; it is 1"
    );
    let message = message("warmup_stable_decay", json!({"decay_type": "sqrt"}));
    assert!(message.contains("unknown variant `sqrt`, expected one of `linear`"), "{message}");
    let error = Schedule::new("linear", f64::NAN, 0, 1, &Map::new()).unwrap_err().to_string();
    assert_eq!(error, "`learning_rate` is NaN; it must be a number of 0 or more");
}

proptest! {
    #[test]
    fn no_rate_is_negative_above_the_peak_or_not_a_number(
        name in prop::sample::select(&NAMES[..]),
        warmup in 0..50u64,
        steps in 0..100u64,
        step in 0..200u64,
    ) {
        let kwargs = if name.contains("min_lr") { json!({"min_lr_rate": 0.1}) } else { json!({}) };
        let rate = schedule(name, warmup, steps, kwargs).unwrap().learning_rate(step);
        prop_assert!((0.0..=2e-4 * (1.0 + 1e-12)).contains(&rate), "{rate}");
    }
}
