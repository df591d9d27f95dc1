//! A run that was stopped and goes on ends in the same bytes as one that never stopped.

use lowrank_train::{durable::RealFs, report::trainer_state::TrainerState};
use serde_json::Value;

use crate::harness::{Case, fixture};

/// Everything that could go out of step: dropout, packing, accumulation, a schedule, several
/// epochs, evaluation, and a log that is never written where a checkpoint is.
const KEYS: [&str; 15] = [
    "lora_target=q_proj,v_proj",
    "lora_dropout=0.1",
    "packing=true",
    "cutoff_len=128",
    "max_samples=60",
    "per_device_train_batch_size=1",
    "gradient_accumulation_steps=3",
    "lr_scheduler_type=cosine",
    "warmup_steps=3",
    "val_size=4",
    "eval_strategy=steps",
    "eval_steps=5",
    "logging_steps=7",
    "save_steps=4",
    "max_steps=24",
];

/// The last checkpoint's files and the run's own, without the clock.
pub(crate) fn outcome(
    case: &Case,
    out: &str,
    last: u64,
) -> (Vec<Vec<u8>>, [TrainerState; 2], Vec<Value>) {
    let checkpoint = format!("{out}/checkpoint-{last}");
    let files = [
        format!("{out}/adapter_model.safetensors"),
        format!("{out}/adapter_config.json"),
        format!("{checkpoint}/adapter_model.safetensors"),
        format!("{checkpoint}/optimizer.safetensors"),
        format!("{checkpoint}/run_state.json"),
    ];
    let states = [out, &checkpoint].map(|folder| {
        TrainerState::load(&RealFs, &case.path(folder)).unwrap().without_wall_clock()
    });
    let log = String::from_utf8(case.read(&format!("{out}/trainer_log.jsonl"))).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        for timed in ["elapsed_time", "remaining_time", "throughput"] {
            fields.remove(timed);
        }
        line
    };
    (files.iter().map(|f| case.read(f)).collect(), states, log.lines().map(line).collect())
}

#[test]
fn a_stopped_run_ends_as_one_that_never_stopped() {
    let case = Case::novel(&KEYS);
    let (summary, whole) = case.run("whole", &[]);
    assert_eq!((summary.step, summary.interrupted), (24, false));
    let expected = outcome(&case, "whole", 24);
    assert_eq!(expected.1[0].log_history.series("loss").len(), 3);
    assert_eq!(expected.1[1].global_step, 24);
    let mut losses = Vec::new();
    let mut resumed_at = 0;
    for stop_at in [1, 5, 8, 10, 21, 23] {
        let (summary, heard) = case.try_run("parts", &[], Some(stop_at));
        let summary = summary.unwrap();
        assert_eq!((summary.step, summary.interrupted), (stop_at, true));
        assert_eq!(heard.first_step, resumed_at);
        losses.extend(heard.losses());
        resumed_at = stop_at;
    }
    let (summary, heard) = case.run("parts", &[]);
    assert!(heard.remarked("checkpoint-23"), "{:?}", heard.remarks);
    assert!(!summary.interrupted);
    losses.extend(heard.losses());
    assert_eq!(losses, whole.losses());
    let found = outcome(&case, "parts", 24);
    assert!(found.0 == expected.0, "adapter, optimizer or run state differ");
    assert_eq!(found.1, expected.1);
    assert_eq!(found.2, expected.2);
}

#[test]
fn a_run_that_only_lacked_its_end_is_ended() {
    let case = Case::novel(&KEYS);
    let more = ["max_steps=3", "do_eval=true"];
    case.run("whole", &more);
    let (summary, _) = case.try_run("parts", &more, Some(3));
    assert!(summary.unwrap().interrupted);
    assert!(!case.path("parts/adapter_model.safetensors").exists());
    let (_, heard) = case.run("parts", &more);
    assert_eq!((heard.first_step, heard.steps.len()), (3, 0));
    let (found, expected) = (outcome(&case, "parts", 3), outcome(&case, "whole", 3));
    assert!(found.0 == expected.0);
    assert_eq!((found.1, found.2), (expected.1, expected.2));
}

#[test]
fn a_checkpoint_tells_the_step_that_it_is_of() {
    let case = Case::novel(&KEYS);
    case.run("out", &["max_steps=6"]);
    for step in [4, 6] {
        let state = case.json(&format!("out/checkpoint-{step}/trainer_state.json"));
        assert_eq!(state["global_step"], step);
        let run = case.json(&format!("out/checkpoint-{step}/run_state.json"));
        assert_eq!(state["num_input_tokens_seen"], run["tokens"]);
    }
    assert_eq!(case.json("out/trainer_state.json")["global_step"], 6);
}

/// The head, the biases and a norm train and are restored as well.
#[test]
fn whatever_trains_is_resumed() {
    let rows = std::fs::read_to_string(fixture("seq_cls.jsonl")).unwrap();
    let keys = [
        "task_type=SEQ_CLS",
        "lora_target=query,value",
        "additional_target=LayerNorm",
        "bias=lora_only",
        "weight_decay=0.1",
        "per_device_train_batch_size=4",
        "save_strategy=epoch",
        "max_steps=6",
    ];
    let case = Case::tiny(&fixture("bert_base"), "bert_tokenizer", &rows, &keys);
    case.run("whole", &[]);
    case.try_run("parts", &[], Some(3)).0.unwrap();
    case.run("parts", &[]);
    let (found, expected) = (outcome(&case, "parts", 6), outcome(&case, "whole", 6));
    assert!(found.0 == expected.0, "adapter, optimizer or run state differ");
    let start = case.path("parts/checkpoint-3/adapter_model.safetensors");
    let (start, end) = (crate::harness::tensors(&start), case.adapter("parts"));
    for part in ["LayerNorm.weight", "query.base_layer.bias", "lora_A", "classifier.weight"] {
        let moved = |(name, tensor): (&String, &candle_core::Tensor)| {
            name.contains(part)
                && crate::harness::values(tensor) != crate::harness::values(&start[name])
        };
        assert!(end.iter().any(moved), "{part}");
    }
}

#[test]
fn a_run_that_saves_only_the_model_can_be_stopped_and_goes_on() {
    let case = Case::novel(&["max_samples=16", "max_steps=4", "save_only_model=true"]);
    case.run("whole", &["save_steps=2"]);
    assert!(!case.path("whole/checkpoint-2/optimizer.safetensors").exists());
    assert!(case.path("whole/checkpoint-2/adapter_model.safetensors").exists());
    case.try_run("parts", &["save_strategy=no"], Some(3)).0.unwrap();
    let (_, heard) = case.run("parts", &["save_strategy=no"]);
    assert_eq!(heard.first_step, 3);
    let adapter = |out: &str| case.read(&format!("{out}/adapter_model.safetensors"));
    assert!(adapter("parts") == adapter("whole"));
}
