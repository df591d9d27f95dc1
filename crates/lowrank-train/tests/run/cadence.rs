//! When a run logs, evaluates and saves, how long it is, and which files stay.

use crate::harness::Case;

/// 16 rows in batches of 4: an epoch has 4 steps.
fn case(keys: &[&str]) -> Case {
    let own = ["lora_target=v_proj", "max_samples=16", "per_device_train_batch_size=4"];
    Case::novel(&[&own, keys].concat())
}

/// The steps of the log at which `name` stands.
fn logged(case: &Case, out: &str, name: &str) -> Vec<u64> {
    let state = case.json(&format!("{out}/trainer_state.json"));
    let rows = state["log_history"].as_array().unwrap().clone();
    rows.iter()
        .filter(|row| row.get(name).is_some())
        .map(|row| row["step"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_limit_keeps_the_newest_checkpoints() {
    let case = case(&["max_steps=11", "save_steps=2"]);
    case.run("all", &[]);
    assert_eq!(case.checkpoints("all"), [2, 4, 6, 8, 10, 11]);
    case.run("two", &["save_total_limit=2"]);
    assert_eq!(case.checkpoints("two"), [10, 11]);
}

#[test]
fn saving_follows_its_strategy() {
    let case = case(&["max_steps=10"]);
    case.run("epoch", &["save_strategy=epoch"]);
    assert_eq!(case.checkpoints("epoch"), [4, 8, 10]);
    case.run("no", &["save_strategy=no"]);
    assert_eq!(case.checkpoints("no"), [0; 0]);
    assert!(case.path("no/adapter_model.safetensors").exists());
    case.run("share", &["save_steps=0.4"]);
    assert_eq!(case.checkpoints("share"), [4, 8, 10]);
    case.run("model", &["save_steps=10", "save_only_model=true"]);
    let names = std::fs::read_dir(case.path("model/checkpoint-10")).unwrap();
    let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let adapter = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    names.retain(|name| !adapter.contains(&name.as_str()));
    assert_eq!(names, ["manifest.json"]);
}

#[test]
fn evaluation_follows_its_strategy() {
    let case = case(&["max_steps=10", "val_size=4"]); // 12 rows train: an epoch has 3 steps
    let steps = |out: &str, more: &[&str]| {
        let (summary, heard) = case.run(out, more);
        assert_eq!(summary.evaluation, heard.evaluated.last().map(|(_, found)| *found));
        let steps: Vec<u64> = heard.evaluated.iter().map(|(step, _)| *step).collect();
        assert_eq!(logged(&case, out, "eval_loss"), steps);
        steps
    };
    assert_eq!(steps("steps", &["eval_strategy=steps", "eval_steps=4"]), [4, 8, 10]);
    assert_eq!(steps("epoch", &["eval_strategy=epoch"]), [3, 6, 9, 10]);
    assert_eq!(steps("log", &["eval_strategy=steps", "logging_steps=5"]), [5, 10]);
    assert_eq!(steps("share", &["eval_strategy=steps", "eval_steps=0.3"]), [3, 6, 9, 10]);
    assert_eq!(steps("end", &["do_eval=true"]), [10]);
    assert_eq!(steps("no", &[]), [0; 0]);
    // The size of an evaluation's batch doesn't change what it finds.
    let (a, _) = case.run("one", &["do_eval=true", "per_device_eval_batch_size=1", "max_steps=1"]);
    let (b, _) = case.run("four", &["do_eval=true", "per_device_eval_batch_size=4", "max_steps=1"]);
    let (a, b) = (a.evaluation.unwrap(), b.evaluation.unwrap());
    assert_eq!((a.rows, a.accuracy), (b.rows, b.accuracy));
    assert!((a.loss - b.loss).abs() < 1e-6 * a.loss);
}

#[test]
fn logging_follows_its_strategy() {
    let case = case(&["max_steps=10"]);
    let steps = |out: &str, more: &[&str]| {
        let (_, heard) = case.run(out, more);
        let log = String::from_utf8(case.read(&format!("{out}/trainer_log.jsonl"))).unwrap();
        let steps = logged(&case, out, "loss");
        assert_eq!(log.lines().count(), steps.len());
        // An entry is the mean since the one before.
        let state = case.json(&format!("{out}/trainer_state.json"));
        let mut first = 0;
        for (i, &step) in steps.iter().enumerate() {
            let part = &heard.losses()[first..step as usize];
            let mean = part.iter().sum::<f64>() / part.len() as f64;
            let logged = state["log_history"][i]["loss"].as_f64().unwrap();
            assert!((logged - mean).abs() < 1e-12, "step {step}: {logged} isn't {mean}");
            first = step as usize;
        }
        steps
    };
    assert_eq!(steps("steps", &["logging_steps=4"]), [4, 8]);
    assert_eq!(steps("first", &["logging_steps=4", "logging_first_step=true"]), [1, 4, 8]);
    assert_eq!(steps("share", &["logging_steps=0.25"]), [3, 6, 9]);
    assert_eq!(steps("epoch", &["logging_strategy=epoch"]), [4, 8, 10]);
    assert_eq!(steps("no", &["logging_strategy=no"]), [0; 0]);
}

#[test]
fn a_run_is_as_long_as_it_was_told() {
    let case = case(&["save_strategy=no"]);
    let steps = |more: &[&str]| case.setup(more).total_steps;
    assert_eq!(steps(&["num_train_epochs=2"]), 8);
    assert_eq!(steps(&["num_train_epochs=1.3"]), 6);
    assert_eq!(steps(&["num_train_epochs=0.1"]), 1);
    assert_eq!(steps(&["num_train_epochs=2", "max_steps=3"]), 3);
    assert_eq!(steps(&["num_train_epochs=1", "max_samples=13"]), 4);
    assert_eq!(steps(&["num_train_epochs=1", "max_samples=13", "dataloader_drop_last=true"]), 3);
    let accumulated = ["num_train_epochs=1", "gradient_accumulation_steps=3"];
    assert_eq!(steps(&accumulated), 2);
    let (summary, heard) = case.run("out", &["num_train_epochs=1.3"]);
    assert_eq!((summary.step, heard.steps.len()), (6, 6));
    let epoch = case.json("out/train_results.json")["epoch"].as_f64().unwrap();
    assert_eq!(epoch, 1.5);
}
