//! What a run isn't resumed from, and what it says then.

use std::fs;

use lowrank_train::{Error, checkpoint::LockError, checkpoint::RunLock};

use crate::harness::Case;

const KEYS: [&str; 4] = ["lora_target=v_proj", "max_samples=16", "max_steps=4", "save_steps=1"];

/// A run that stopped after three of its four steps, in `out`.
fn stopped() -> Case {
    let case = Case::novel(&KEYS);
    case.try_run("out", &[], Some(3)).0.unwrap();
    case
}

#[test]
fn other_settings_are_named_with_both_values() {
    let case = stopped();
    let error = case.error("out", &["learning_rate=0.25", "lora_rank=2"]);
    for part in [
        "checkpoint-3",
        "`lora_rank` was 4, is 2",
        "`lora_alpha` was 8, is 4",
        "`learning_rate` was 0.005, is 0.25",
        "`overwrite_output_dir: true`",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // What can't change the weights may change.
    let (summary, heard) = case.run("out", &["logging_steps=1", "save_strategy=no"]);
    assert_eq!((heard.first_step, summary.step), (3, 4));
}

#[test]
fn other_data_are_refused() {
    let case = Case::novel(&KEYS).with_rows("{\"prompt\": \"a\", \"completion\": \" b\"}\n");
    case.try_run("out", &[], Some(3)).0.unwrap();
    let case = case.with_rows("{\"prompt\": \"a\", \"completion\": \" c\"}\n");
    let error = case.error("out", &[]);
    assert!(error.contains("checkpoint-3") && error.contains("other data"), "{error}");
}

#[test]
fn overwriting_starts_over_and_leaves_no_old_checkpoint() {
    let case = stopped();
    fs::remove_file(case.path("out/checkpoint-2/manifest.json")).unwrap();
    let more = ["overwrite_output_dir=true", "max_steps=1", "logging_steps=1"];
    let (_, heard) = case.run("out", &more);
    assert_eq!((heard.first_step, heard.steps.len()), (0, 1));
    assert_eq!(case.checkpoints("out"), [1]);
    let log = String::from_utf8(case.read("out/trainer_log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 1);
}

#[test]
fn overwriting_removes_broken_checkpoints_too() {
    let case = stopped();
    for step in 1..=3 {
        fs::remove_file(case.path(&format!("out/checkpoint-{step}/manifest.json"))).unwrap();
    }
    case.run("out", &["overwrite_output_dir=true", "max_steps=1"]);
    assert_eq!(case.checkpoints("out"), [1]);
}

#[test]
fn a_checkpoint_that_may_be_neither_resumed_nor_overwritten_is_an_error() {
    let case = stopped();
    let error = case.error("out", &["resume_from_checkpoint=false"]);
    assert!(error.contains("checkpoint-3") && error.contains("earlier run"), "{error}");
    assert_eq!(case.checkpoints("out"), [1, 2, 3]);
}

#[test]
fn resuming_without_a_checkpoint_begins_at_the_start_and_says_so() {
    let case = Case::novel(&KEYS);
    let (summary, heard) = case.run("out", &["resume_from_checkpoint=true"]);
    assert!(heard.remarked("begins at the start"), "{:?}", heard.remarks);
    assert_eq!((heard.first_step, summary.step), (0, 4));
}

#[test]
fn a_broken_checkpoint_is_passed_over_with_the_reason() {
    let case = stopped();
    let file = case.path("out/checkpoint-3/optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (_, heard) = case.run("out", &[]);
    assert!(heard.remarked("checkpoint-3"), "{:?}", heard.remarks);
    assert!(heard.remarked("`optimizer.safetensors` have changed"), "{:?}", heard.remarks);
    assert_eq!(heard.first_step, 2);
    case.run("whole", &[]);
    let adapter = |out: &str| case.read(&format!("{out}/adapter_model.safetensors"));
    assert!(adapter("out") == adapter("whole"));
    let log = |out: &str| case.json(&format!("{out}/trainer_state.json"))["log_history"].clone();
    assert_eq!(log("out"), log("whole"));
}

#[test]
fn a_chosen_checkpoint_must_be_whole() {
    let case = stopped();
    let chosen = |step: u64| {
        let folder = case.path(&format!("out/checkpoint-{step}"));
        format!("resume_from_checkpoint={}", folder.display())
    };
    fs::write(case.path("out/checkpoint-2/run_state.json"), "{}").unwrap();
    let error = case.error("out", &[&chosen(2)]);
    assert!(error.contains("checkpoint-2") && error.contains("run_state.json"), "{error}");
    let (_, heard) = case.run("out", &[&chosen(1)]);
    assert_eq!(heard.first_step, 1);
}

#[test]
fn a_second_run_in_a_folder_is_refused_with_the_process() {
    let case = stopped();
    let lock = RunLock::acquire(&case.path("out")).unwrap();
    match case.try_run("out", &[], None).0.map_err(|error| *error) {
        Err(Error::Lock(LockError::Held { output_dir, holder })) => {
            assert_eq!(output_dir, case.path("out"));
            assert_eq!(holder.pid, std::process::id());
        }
        other => panic!("{other:?}"),
    }
    drop(lock);
    case.run("out", &[]);
}

#[test]
fn a_finished_adapter_without_a_checkpoint_is_not_overwritten() {
    let case = Case::novel(&KEYS);
    case.run("out", &["save_strategy=no"]);
    let adapter = case.read("out/adapter_model.safetensors");
    let error = case.error("out", &["save_strategy=no", "seed=1"]);
    assert!(error.contains("adapter of an earlier run"), "{error}");
    assert_eq!(case.read("out/adapter_model.safetensors"), adapter);
    case.run("out", &["save_strategy=no", "seed=1", "overwrite_output_dir=true"]);
    assert_ne!(case.read("out/adapter_model.safetensors"), adapter);
}
