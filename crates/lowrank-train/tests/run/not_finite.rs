//! A run that leaves the numbers stops before it spoils anything.

use crate::harness::{Case, values};

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_step_and_rows() {
    let case = Case::novel(&[
        "lora_target=all",
        "learning_rate=1.0e10",
        "max_samples=16",
        "per_device_train_batch_size=10",
        "max_steps=5",
        "save_steps=1",
    ]);
    let (result, heard) = case.try_run("out", &[], None);
    let error = result.unwrap_err().to_string();
    let last = heard.steps.last().unwrap().step;
    assert!(error.contains(&format!("step {}", last + 1)), "{error}");
    assert!(error.contains("the loss is NaN") || error.contains("norm is"), "{error}");
    assert!(error.contains("rows.jsonl:") && error.contains("learning_rate"), "{error}");
    assert_eq!(case.checkpoints("out"), (1..=last).collect::<Vec<_>>());
    for tensor in case.adapter(&format!("out/checkpoint-{last}")).values() {
        assert!(values(tensor).iter().all(|v| v.is_finite()));
    }
    assert!(!case.path("out/adapter_model.safetensors").exists());
}
