//! The promise: LLaMA-Factory recipes run unchanged, and what is wrong with one is explained.

#![expect(clippy::panic, clippy::expect_used, reason = "helpers of tests fail the test")]

use insta::assert_snapshot;
use lowrank_train::recipe::plan::*;
use lowrank_train::recipe::{Plan, Recipe, RecipeError, keys};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

const START: &str = "model_name_or_path: m\ndataset: d\ndo_train: true\noutput_dir: o\n";

fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
    let overrides: Vec<String> = overrides.iter().map(|word| (*word).to_owned()).collect();
    let variable = |name: &str| (name == "DATA").then(|| "from_env".to_owned());
    Recipe::parse_with(text, "recipe.yaml", &overrides, &variable)
}

/// The plan of a runnable recipe with `more` lines, which begin at line 5.
fn plan(more: &str) -> Result<Plan, RecipeError> {
    parse(&format!("{START}{more}"), &[])?.resolve()
}

fn planned(more: &str) -> Plan {
    plan(more).unwrap_or_else(|error| panic!("{more}: {error}"))
}

fn lora(plan: &Plan) -> &LoraPlan {
    let MethodPlan::Lora(lora) = &plan.method;
    lora
}

fn message(more: &str) -> String {
    plan(more).expect_err("the recipe is wrong").to_string()
}

fn override_message(overrides: &[&str]) -> String {
    let plan = parse(START, overrides).and_then(|recipe| recipe.resolve());
    plan.expect_err("the override is wrong").to_string()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recipes").join(name)
}

#[test]
fn a_typical_recipe_becomes_a_plan() -> Result<(), RecipeError> {
    let plan = Recipe::read(&fixture("lora_sft.yaml"), &[])?.resolve()?;
    assert_eq!(plan.model.model_name_or_path, Path::new("models/tiny-llama"));
    assert_eq!(plan.model.weights, WeightDtype::Bf16);
    assert_eq!(plan.model.device, Device::Cpu);
    assert_eq!((lora(&plan).lora_rank, lora(&plan).lora_alpha), (8, 16.0));
    assert_eq!(lora(&plan).target, Target::All);
    assert_eq!(plan.data.dataset, ["identity", "alpaca_en_demo"]);
    assert_eq!(plan.data.template.template.as_deref(), Some("llama3"));
    assert_eq!(plan.data.template.enable_thinking, Some(true));
    assert_eq!(plan.data.val_size, Some(ValSize::Share(0.1)));
    assert_eq!((plan.data.cutoff_len, plan.data.sample_len), (2048, 2048));
    assert_eq!(plan.train.learning_rate, 1e-4);
    assert_eq!(plan.train.lr_scheduler.to_string(), "cosine");
    assert_eq!(plan.train.warmup, Warmup::Share(0.1));
    assert_eq!(plan.train.duration, Duration::Epochs(3.0));
    assert_eq!(plan.train.resume, Resume::Never);
    assert!(plan.train.gradient_checkpointing);
    assert_eq!((plan.train.seed, plan.train.data_seed), (42, 42));
    assert_eq!(plan.eval.eval_strategy, Cadence::Every(Interval::Steps(500)));
    assert!(plan.eval.do_eval);
    assert_eq!(plan.output.logging, Cadence::Every(Interval::Steps(10)));
    assert!(plan.output.plot_loss && !plan.output.tensorboard);
    Ok(())
}

#[test]
fn what_is_ignored_is_listed_once_with_the_reason() -> Result<(), RecipeError> {
    let text = std::fs::read_to_string(fixture("lora_sft.yaml")).expect("the fixture is there");
    let plan = parse(&text, &["report_to=wandb,tensorboard"])?.resolve()?;
    assert!(plan.output.tensorboard);
    let notices: Vec<String> = plan.notices.iter().map(ToString::to_string).collect();
    assert_snapshot!(notices.join("\n"), @r#"
recipe.yaml:3: `trust_remote_code` is ignored: code that comes with a model is never run
recipe.yaml:11: `deepspeed` is ignored: lowrank distributes runs by MPI or NCCL, without these engines
recipe.yaml:18: `overwrite_cache` is ignored: there is no preprocessing cache
recipe.yaml:19: `preprocessing_num_workers` is ignored: rows are prepared on threads, and the result doesn't depend on their number
recipe.yaml:20: `dataloader_num_workers` is ignored: batches are made on threads, and don't depend on their number
command line: `report_to` wandb is ignored: curves go to files and to TensorBoard
recipe.yaml:39: `ddp_timeout` is ignored: lowrank distributes runs by MPI or NCCL, without these engines
"#);
    Ok(())
}

#[test]
fn json_with_tabs_is_a_recipe_too() -> Result<(), RecipeError> {
    let export = Recipe::read(&fixture("merge.json"), &[])?.resolve_export()?;
    assert_eq!(export.export_dir, Path::new("output/tiny-llama-merged"));
    assert_eq!(export.shard_bytes, 5_000_000_000);
    assert_eq!(export.model.adapters, [PathBuf::from("saves/tiny-llama/lora/sft")]);
    assert_eq!(export.model.weights, WeightDtype::Checkpoint);
    Ok(())
}

#[test]
fn an_absent_key_has_the_default_of_llama_factory() {
    let plan = planned("");
    assert_eq!(plan.train.learning_rate, 5e-5);
    assert_eq!(plan.train.per_device_train_batch_size, 8);
    assert_eq!(plan.train.max_grad_norm, Some(1.0));
    let AdamW { beta1, beta2, epsilon, weight_decay } = plan.train.optimizer;
    assert_eq!((beta1, beta2, epsilon, weight_decay), (0.9, 0.999, 1e-8, 0.0));
    assert_eq!(plan.train.lr_scheduler.to_string(), "linear");
    assert_eq!(plan.train.resume, Resume::NewestIfAny);
    assert_eq!(plan.model.weights, WeightDtype::Checkpoint);
    assert_eq!(plan.data.packing, Packing::Off);
    assert_eq!(plan.data.dataset_dir, DatasetDir::Folder("data".into()));
    assert_eq!(plan.output.save, Cadence::Every(Interval::Steps(500)));
    assert_eq!(lora(&plan).task_type, TaskType::CausalLm);
    assert_eq!(lora(&plan).init_lora_weights, InitLoraWeights::Kaiming);
    assert_eq!(plan.generate.limit, GenerationLimit::NewTokens(1024));
    assert_eq!((plan.generate.temperature, plan.generate.top_p), (0.95, 0.7));
    assert_eq!(plan.notices, []);
}

#[test]
fn a_misspelt_key_is_explained() {
    assert_snapshot!(message("lora_rnak: 8"), @"recipe.yaml:5: unknown key `lora_rnak`; did you mean `lora_rank`?");
    assert_snapshot!(message("wombat: 8"), @"recipe.yaml:5: unknown key `wombat`; `lowrank help recipe` lists all keys");
    assert_snapshot!(override_message(&["lora_rnak=8"]), @"command line: unknown key `lora_rnak`; did you mean `lora_rank`?");
}

#[test]
fn a_key_that_is_there_twice_names_both_lines() {
    assert_snapshot!(message("seed: 1\nbf16: true\nseed: 2"), @"recipe.yaml:7: `seed` was already set at recipe.yaml:5; keep one of the two");
    assert_snapshot!(message("lora_rank: 8\nr: 16"), @"recipe.yaml:6: `r` was already set as `lora_rank` at recipe.yaml:5; keep one of the two");
    assert_snapshot!(message("rank_pattern: {q_proj: 4, q_proj: 8}"), @"recipe.yaml:5: `q_proj` was already set at recipe.yaml:5; keep one of the two");
}

#[test]
fn a_bad_value_says_what_it_must_be() {
    assert_snapshot!(message("lora_rank: eight"), @"recipe.yaml:5: `lora_rank` is `eight`; it must be a whole number, 1 or more");
    assert_snapshot!(message("lora_r: 0"), @"recipe.yaml:5: `lora_r` is `0`; it must be a whole number, 1 or more");
    assert_snapshot!(message("learning_rate: .nan"), @"recipe.yaml:5: `learning_rate` is `.nan`; it must be a number, 0 or more");
    assert_snapshot!(message("lora_dropout: 1"), @"recipe.yaml:5: `lora_dropout` is `1`; it must be a number from 0 up to, but not including, 1");
    assert_snapshot!(message("packing: \"false\""), @r#"recipe.yaml:5: `packing` is `"false"`; it must be true or false, without quotes"#);
    assert_snapshot!(message("lr_scheduler_type: cosinus"), @"recipe.yaml:5: `lr_scheduler_type` is `cosinus`; it must be `linear`, `cosine`, `cosine_with_restarts`, `cosine_with_min_lr`, `cosine_warmup_with_min_lr`, `polynomial`, `constant`, `constant_with_warmup`, `inverse_sqrt` or `warmup_stable_decay`");
    assert_snapshot!(message("logging_steps: 2.5"), @"recipe.yaml:5: `logging_steps` is `2.5`; it must be a whole number, or a share of the run between 0 and 1");
    assert_snapshot!(message("val_size: 1.5"), @"recipe.yaml:5: `val_size` is `1.5`; it must be a share below 1 or a whole number of rows");
    assert_snapshot!(message("device: tpu"), @"recipe.yaml:5: `device` is `tpu`; it must be `cpu`, `cuda` or `cuda:N`");
    assert_snapshot!(message("report_to: telegraph"), @"recipe.yaml:5: `report_to` is `telegraph`; it must be `tensorboard`, `all` or `none`");
    assert_snapshot!(message("rank_pattern: {q_proj: 0}"), @"recipe.yaml:5: `rank_pattern` is `{q_proj: 0}`; it must be a map of names or regexes to ranks (whole numbers, 1 or more)");
    assert_snapshot!(message("eval_dataset: {a: b}"), @"recipe.yaml:5: `eval_dataset` is `{a: b}`; it must be names separated by commas, or a list of names");
    assert_snapshot!(
        message("lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {decay_type: steep}"),
        @"recipe.yaml:6: `lr_scheduler_kwargs` of `warmup_stable_decay`: unknown variant `steep`, expected one of `linear`, `cosine`, `1-sqrt`"
    );
    assert_snapshot!(message("lr_scheduler_type: cosine_with_min_lr"), @"recipe.yaml:5: `lr_scheduler_kwargs` of `cosine_with_min_lr`: give either `min_lr` or `min_lr_rate`");
}

#[test]
fn parameters_may_be_the_only_targets() {
    let text = "lora_target: []\ntarget_parameters: [experts.gate_up_proj, experts.down_proj]";
    let plan = planned(text);
    assert_eq!(lora(&plan).target, Target::Names(Vec::new()));
    assert_eq!(lora(&plan).target_parameters, ["experts.gate_up_proj", "experts.down_proj"]);
    assert_snapshot!(message("lora_target: []"), @"recipe.yaml:5: `lora_target` is `[]`; it must be one name or more");
}

#[test]
fn a_contradiction_names_both_keys_and_lines() {
    assert_snapshot!(message("train_on_prompt: true\nmask_history: true"), @"recipe.yaml:5: `train_on_prompt: true` contradicts `mask_history: true` (recipe.yaml:6): one puts loss on all turns, the other on the last one only");
    assert_snapshot!(message("eval_strategy: epoch"), @"recipe.yaml:5: `eval_strategy: epoch` contradicts `val_size: 0` (the default): evaluation needs rows: set `val_size` or `eval_dataset`");
    assert_snapshot!(message("do_eval: true"), @"recipe.yaml:5: `do_eval: true` contradicts `val_size: 0` (the default): evaluation needs rows: set `val_size` or `eval_dataset`");
    assert_snapshot!(message("val_size: 0.1\neval_dataset: e"), @"recipe.yaml:5: `val_size: 0.1` contradicts `eval_dataset: e` (recipe.yaml:6): evaluate on rows split off or on another dataset, not both");
    assert_snapshot!(message("bf16: true\ndtype: float32"), @"recipe.yaml:5: `bf16: true` contradicts `dtype: float32` (recipe.yaml:6): the base weights can't be kept in both");
    assert_snapshot!(message("overwrite_output_dir: true\nresume_from_checkpoint: true"), @"recipe.yaml:6: `resume_from_checkpoint: true` contradicts `overwrite_output_dir: true` (recipe.yaml:5): the checkpoint to go on from would be overwritten");
    assert_snapshot!(message("layers_to_transform: [0, 1]"), @"recipe.yaml:5: `layers_to_transform: [0, 1]` contradicts `lora_target: all` (the default): layers are chosen among modules that are given as a list of names");
    assert_snapshot!(message("lora_target: q_proj\nlayers_pattern: layers"), @"recipe.yaml:6: `layers_pattern: layers` contradicts `layers_to_transform: null` (the default): `layers_pattern` says where `layers_to_transform` counts, so it needs that");
    assert_snapshot!(message("task_type: SEQ_CLS\npacking: true"), @"recipe.yaml:5: `task_type: SEQ_CLS` contradicts `packing: true` (recipe.yaml:6): only CAUSAL_LM packs its samples");
    assert_snapshot!(message("lr_scheduler_kwargs: {min_lr: 1e-6}"), @"recipe.yaml:5: `lr_scheduler_kwargs` of `linear`: unknown field `min_lr`, there are no fields");
    assert_snapshot!(message("stage: pt\npacking: true"), @"recipe.yaml:5: `stage: pt` contradicts `packing: true` (recipe.yaml:6): an encoder reads each text by itself");
    assert_snapshot!(message("stage: pt\ntask_type: SEQ_CLS"), @"recipe.yaml:5: `stage: pt` contradicts `task_type: SEQ_CLS` (recipe.yaml:6): hidden words are guessed by the model's own head; remove `task_type`");
    assert_snapshot!(message("task_type: QUESTION_ANS\ncutoff_len: 128"), @"recipe.yaml:6: `doc_stride: 128` (the default) contradicts `cutoff_len: 128` (recipe.yaml:6): windows of `cutoff_len` tokens must share fewer than that");
}

#[test]
fn what_would_change_the_result_and_is_not_implemented_is_refused() {
    assert_snapshot!(message("stage: dpo"), @"recipe.yaml:5: `stage: dpo` isn't implemented in this release; write `sft` or `pt`");
    assert_snapshot!(message("use_dora: true"), @"recipe.yaml:5: `use_dora: true` isn't implemented in this release; remove the line, or write `use_dora: false`");
    assert_snapshot!(message("fp16: true"), @"recipe.yaml:5: `fp16: true` isn't implemented in this release; write `bf16: true`");
    assert_snapshot!(message("neftune_noise_alpha: 5"), @"recipe.yaml:5: `neftune_noise_alpha: 5` isn't implemented in this release; remove the line");
    assert_snapshot!(message("init_lora_weights: pissa_niter_4"), @"recipe.yaml:5: `init_lora_weights: pissa_niter_4` isn't implemented in this release; write true, false or `gaussian`");
    assert_snapshot!(message("dataset_dir: ONLINE"), @"recipe.yaml:5: `dataset_dir: ONLINE` isn't implemented in this release; data are local files; give the folder of dataset_info.json");
    assert_snapshot!(message("optim: adamw_8bit"), @"recipe.yaml:5: `optim: adamw_8bit` isn't implemented in this release; write `adamw_torch`, `adamw_torch_fused` or `adamw_hf`");
}

#[test]
fn a_key_that_is_not_implemented_may_have_its_default() {
    let text = "use_dora: false\nneftune_noise_alpha: null\nlabel_smoothing_factor: 0.0\n\
                num_beams: 1\nmodel_revision: main\nquantization_bit: ~\nstreaming: no";
    assert_eq!(planned(text).notices, []);
}

#[test]
fn what_is_missing_is_named() {
    let text = |text: &str| {
        let plan = parse(text, &[]).and_then(|recipe| recipe.resolve());
        plan.expect_err("something is missing").to_string()
    };
    assert_snapshot!(text("do_train: true\ndataset: d\noutput_dir: o"), @"recipe.yaml: `model_name_or_path` isn't set; it has no default");
    assert_snapshot!(text("do_train: true\nmodel_name_or_path: m\noutput_dir: o"), @"recipe.yaml: `dataset` isn't set; training needs the name of a dataset");
    assert_snapshot!(text("model_name_or_path: m\ndataset: d\noutput_dir: o"), @"recipe.yaml: `do_train` isn't set; there is nothing to do; write `do_train: true`");
}

#[test]
fn text_that_is_not_a_recipe_is_refused() {
    let text = |text: &str| parse(text, &[]).expect_err("not a recipe").to_string();
    assert_snapshot!(text("- a\n- b"), @"recipe.yaml:1: a recipe is a map of keys to values, but this is `[a, b]`");
    assert_snapshot!(text("seed: 1\n  bf16: true"), @"recipe.yaml:2: not valid YAML: mapping values are not allowed in this context (column 7)");
    assert_snapshot!(text("seed: 1\n---\nseed: 2"), @"recipe.yaml:3: a second document begins; a recipe is one map");
    assert_snapshot!(text("seed: !python/name 1"), @"recipe.yaml:1: the tag `!python/name` means nothing here");
    assert_snapshot!(text(&format!("deepspeed: {}{}", "[".repeat(40), "]".repeat(40))), @"recipe.yaml:1: nested deeper than 16 levels");
    let bomb = "deepspeed: {a: &a [x,x,x,x,x,x,x,x], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], \
                c: &c [*b,*b,*b,*b,*b,*b,*b,*b], d: &d [*c,*c,*c,*c,*c,*c,*c,*c], \
                e: [*d,*d,*d,*d,*d,*d,*d,*d]}";
    assert_snapshot!(text(bomb), @"recipe.yaml:1: more than 20000 values, too many for a recipe");
}

#[test]
fn scalars_mean_what_omegaconf_takes_them_for() {
    let plan =
        planned("learning_rate: 1e-4\nbf16: yes\npacking: on\neval_strategy: no\nseed: 0x10");
    assert_eq!(plan.train.learning_rate, 1e-4);
    assert_eq!(plan.model.weights, WeightDtype::Bf16);
    assert_eq!(plan.data.packing, Packing::Plain);
    assert_eq!(plan.eval.eval_strategy, Cadence::Never);
    assert_eq!(plan.train.seed, 16);
}

#[test]
fn peft_spellings_and_targets_are_understood() {
    let target = |line: &str| lora(&planned(line)).target.clone();
    let names = Target::Names(vec!["q_proj".to_owned(), "v_proj".to_owned()]);
    assert_eq!(target("target_modules: [q_proj, v_proj]"), names);
    assert_eq!(target("lora_target: q_proj, v_proj"), names);
    assert_eq!(target("target_modules: all-linear"), Target::AllLinear);
    let regex = r".*\.layers\.[0-3]\..*(q|v)_proj";
    assert_eq!(target(&format!("lora_target: '{regex}'")), Target::Pattern(regex.to_owned()));

    let plan =
        planned("r: 4\nlora_alpha: 32\nmodules_to_save: [score]\nalpha_pattern: {q_proj: 8}");
    assert_eq!((lora(&plan).lora_rank, lora(&plan).lora_alpha), (4, 32.0));
    assert_eq!(lora(&plan).modules_to_save, ["score"]);
    assert_eq!(lora(&plan).alpha_pattern.get("q_proj"), Some(&8.0));
}

#[test]
fn overrides_win_in_every_spelling() -> Result<(), RecipeError> {
    let overrides = [
        "lora_rank=4",
        "--lora_target",
        "q_proj,v_proj",
        "--learning-rate=2e-4",
        "--packing",
        "--bf16",
        "false",
        "lora_rank=16",
        "lr_scheduler_type=cosine_with_min_lr",
        "lr_scheduler_kwargs.min_lr=2e-5",
        "rank_pattern={q_proj: 2}",
        "rank_pattern.model.layers.0.q_proj=4",
        "dataset=",
        "eval_dataset=e",
        "do_eval=true",
        "do_train=false",
    ];
    let plan = parse(&format!("{START}bf16: true\nlora_rank: 8\n"), &overrides)?.resolve()?;
    assert_eq!(lora(&plan).lora_rank, 16);
    assert_eq!(lora(&plan).target, Target::Names(vec!["q_proj".into(), "v_proj".into()]));
    assert_eq!(plan.train.learning_rate, 2e-4);
    assert_eq!(plan.data.packing, Packing::Plain);
    assert_eq!(plan.data.sample_len, 2047);
    assert_eq!(plan.model.weights, WeightDtype::Checkpoint);
    assert_eq!(plan.train.lr_scheduler.to_string(), r#"cosine_with_min_lr {"min_lr":0.00002}"#);
    let ranks: Vec<(&str, usize)> =
        lora(&plan).rank_pattern.iter().map(|(name, rank)| (name.as_str(), *rank)).collect();
    assert_eq!(ranks, [("q_proj", 2), ("model.layers.0.q_proj", 4)]);
    assert_eq!(plan.data.dataset, Vec::<String>::new());
    Ok(())
}

#[test]
fn an_override_that_is_none_is_explained() {
    assert_snapshot!(override_message(&["fast"]), @"command line: `fast` isn't a setting: write `key=value` or `--key value`");
    assert_snapshot!(override_message(&["--lora_rank"]), @"command line: `--lora_rank` isn't a setting: its value is missing");
    assert_snapshot!(override_message(&["seed=x"]), @"command line: `seed` is `x`; it must be a whole number, 0 or more");
    let regex = parse(START, &[r"--lora_target=[qv]_proj|o_proj"]).and_then(|r| r.resolve());
    let regex = regex.expect("a regex needs no quotes");
    assert_eq!(lora(&regex).target, Target::Pattern("[qv]_proj|o_proj".to_owned()));
}

#[test]
fn interpolation_reaches_other_keys_and_the_environment() {
    let plan = planned(
        "lora_rank: 4\nlora_alpha: ${lora_rank}\ndataset_dir: ${oc.env:DATA}/x\n\
         template: ${oc.env:NONE,llama3}\ndefault_system: 'price \\${x}'",
    );
    assert_eq!(lora(&plan).lora_alpha, 4.0);
    assert_eq!(plan.data.dataset_dir, DatasetDir::Folder("from_env/x".into()));
    assert_eq!(plan.data.template.template.as_deref(), Some("llama3"));
    assert_eq!(plan.data.template.default_system.as_deref(), Some("price ${x}"));

    assert_snapshot!(message("seed: ${data_seed}\ndata_seed: ${seed}"), @"recipe.yaml:6: `data_seed` contains `${seed}`: `seed` refers to itself in the end");
    assert_snapshot!(message("run_name: ${oc.env:NONE}"), @"recipe.yaml:5: `run_name` contains `${oc.env:NONE}`: the environment variable `NONE` isn't set, and no default is given");
    assert_snapshot!(message("run_name: ${now:%Y}"), @"recipe.yaml:5: `run_name` contains `${now:%Y}`: only `${key}` and `${oc.env:NAME,default}` are understood");
    assert_snapshot!(message("run_name: ${project}"), @"recipe.yaml:5: `run_name` contains `${project}`: that key isn't in this recipe");
    assert_snapshot!(message("run_name: ${project"), @"recipe.yaml:5: `run_name` contains `${project`: the `}` is missing");
}

#[test]
fn interpolations_that_multiply_come_to_an_end() {
    let keys: Vec<&str> = keys::all().map(|key| key.name).collect();
    let text = |times: usize| -> String {
        let line =
            |pair: &[&str]| format!("{}: {}\n", pair[0], format!("${{{}}}", pair[1]).repeat(times));
        keys.windows(2).map(line).collect()
    };
    let error = |text: &str| parse(text, &[]).expect_err("it multiplies").to_string();
    assert_snapshot!(error(&text(1)), @"recipe.yaml:8: `disable_gradient_checkpointing` contains `${double_quantization}`: a chain of more than 8 keys");
    let wide = format!("run_name: {}\nproject: {}", "${project}".repeat(1000), "x".repeat(1000));
    let error = error(&wide);
    assert!(error.ends_with("the recipe's interpolations produce too much text"), "{error}");
}

#[test]
fn schedules_take_their_parameters() {
    let rate = |more: &str, step: u64| {
        let train = planned(&format!("learning_rate: 1\nmax_steps: 100\n{more}")).train;
        let schedule = train.lr_scheduler.schedule(train.learning_rate, train.warmup, 100);
        schedule.expect("a plan's schedule was tried out").learning_rate(step)
    };
    let is_near = |found: f64, expected: f64| (found - expected).abs() < 1e-12;
    assert!(is_near(rate("lr_scheduler_type: cosine", 50), 0.5));
    let kwargs = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs";
    assert!(is_near(rate(&format!("{kwargs}: {{min_lr: 0.2}}"), 50), 0.6));
    assert!(is_near(rate(&format!("{kwargs}: '{{\"min_lr_rate\": 0.4}}'"), 50), 0.7));
    assert!(is_near(rate(&format!("{kwargs}:\n  min_lr: 2e-1\nwarmup_ratio: 0.1"), 5), 0.5));
}

#[test]
fn warmup_and_cadence_take_steps_or_a_share() {
    let warmup = |more: &str| planned(more).train.warmup;
    assert_eq!(warmup("warmup_steps: 20\nwarmup_ratio: 0.1"), Warmup::Steps(20));
    assert_eq!(warmup("warmup_steps: 0.25"), Warmup::Share(0.25));
    assert_eq!(warmup("warmup_ratio: 0"), Warmup::Steps(0));
    assert_eq!(planned("max_steps: 30").train.duration, Duration::Steps(30));
    let saves = |more: &str| planned(more).output.save;
    assert_eq!(saves("save_steps: 0.1"), Cadence::Every(Interval::Share(0.1)));
    assert_eq!(saves("save_strategy: no"), Cadence::Never);
    let eval = planned("val_size: 3\neval_strategy: steps\nlogging_steps: 7");
    assert_eq!(eval.eval.eval_strategy, Cadence::Every(Interval::Steps(7)));
    assert_eq!(eval.data.val_size, Some(ValSize::Rows(3)));
}

#[test]
fn datasets_may_be_described_in_the_recipe() {
    let plan = planned("dataset_dir: {d: {file_name: d.json, num_samples: 5, ranking: false}}");
    let DatasetDir::Inline(map) = plan.data.dataset_dir else { panic!("{:?}", plan.data) };
    let text = serde_json::Value::Object(map).to_string();
    assert_eq!(text, r#"{"d":{"file_name":"d.json","num_samples":5,"ranking":false}}"#);
}

#[test]
fn null_keeps_its_own_meaning_where_it_has_one() {
    assert_eq!(planned("enable_thinking: null").data.template.enable_thinking, None);
    assert_eq!(planned("enable_thinking: false").data.template.enable_thinking, Some(false));
    assert_eq!(planned("seed: null").train.seed, 42);
}

#[test]
fn resuming_follows_llama_factory() {
    let resume = |more: &str| planned(more).train.resume;
    assert_eq!(resume("overwrite_output_dir: true"), Resume::Never);
    assert_eq!(resume("resume_from_checkpoint: false"), Resume::Never);
    assert_eq!(resume("resume_from_checkpoint: true"), Resume::Newest);
    assert_eq!(
        resume("resume_from_checkpoint: o/checkpoint-5"),
        Resume::From("o/checkpoint-5".into())
    );
}

#[test]
fn the_length_of_an_answer_follows_llama_factory() {
    let generate = |more: &str| planned(more).generate;
    assert_eq!(generate("max_length: 9").limit, GenerationLimit::NewTokens(1024));
    let total = generate("max_length: 9\nmax_new_tokens: 0").limit;
    assert_eq!(total, GenerationLimit::TotalTokens(9));
    assert!(!generate("temperature: 0").do_sample);
}

#[test]
fn changed_settings_are_named() {
    let before = planned("lora_rank: 8\nseed: 1");
    let same = planned("r: 8\nseed: 1\nlogging_steps: 1\nplot_loss: true");
    assert_eq!(before.settings_fingerprint(), same.settings_fingerprint());
    assert_eq!(same.settings_changed_from(&before.settings()), []);

    let now = planned("lora_rank: 16\nlr_scheduler_type: cosine\nseed: 1\nmax_steps: 10");
    assert_ne!(before.settings_fingerprint(), now.settings_fingerprint());
    let changes = now.settings_changed_from(&before.settings());
    let lines = changes.iter().map(|c| format!("{}: {} -> {}", c.key, c.before, c.now));
    assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r#"
lora_rank: 8 -> 16
lora_alpha: 16 -> 32
max_steps: unset -> 10
lr_scheduler_type: linear -> cosine
num_train_epochs: 3 -> unset
"#);
}

#[test]
fn help_and_docs_list_every_key() {
    let (help, docs) = (keys::help_text(), keys::markdown());
    for key in keys::all() {
        assert!(help.contains(key.name), "help lacks {}", key.name);
        assert!(docs.contains(&format!("`{}`", key.name)), "docs lack {}", key.name);
    }
    assert!(help.contains("lora_rank, lora_r, r\n"), "{help}");
    assert!(help.lines().all(|line| line.chars().count() <= 320), "a line is too long");
}

/// Every key that the reference lists, from its tables' first columns.
#[test]
fn every_key_of_llama_factory_is_known() {
    let names = include_str!("fixtures/recipes/llama_factory_keys.txt");
    for name in names.split_whitespace() {
        assert!(keys::find(name).is_some(), "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse(&text, &[&text]).map(|recipe| recipe.resolve());
    }

    #[test]
    fn no_value_panics(
        key in prop::sample::select(keys::all().map(|key| key.name).collect::<Vec<_>>()),
        value in r#"[-+.~0-9a-z\[\]{},:&*!|>'"$%@# \\]{0,12}"#,
    ) {
        let _ = plan(&format!("{key}: {value}\n"));
        let _ = parse(START, &[&format!("{key}={value}")]).map(|recipe| recipe.resolve());
        let _ = parse(START, &[&format!("--{key}"), &value]).map(|recipe| recipe.resolve_chat());
    }
}
