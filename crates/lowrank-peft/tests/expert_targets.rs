//! Routers and experts as targets, and what is said of wrong ones. What PEFT 0.21.2 makes of such
//! configurations is in `config_targets.rs`, and with numbers in the script
//! `lowrank-models/tests/fixtures/check_experts.py`.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;

use lowrank_peft::lora_config::LoraConfig;
use lowrank_peft::targets::{ModelModules, ModuleInfo, ModuleKind, TargetPlan, plan_targets};
use serde_json::{Value, json};

/// A layer of Mixtral's kind after one without experts.
fn modules() -> Vec<ModuleInfo> {
    let module = |path: &str, kind| ModuleInfo { path: path.to_owned(), kind };
    vec![
        module("model", ModuleKind::Container),
        module("model.embed_tokens", ModuleKind::Embedding),
        module("model.layers", ModuleKind::Container),
        module("model.layers.0", ModuleKind::Container),
        module("model.layers.0.self_attn", ModuleKind::Container),
        module("model.layers.0.self_attn.q_proj", ModuleKind::Linear),
        module("model.layers.0.mlp", ModuleKind::Container),
        module("model.layers.0.mlp.gate_proj", ModuleKind::Linear),
        module("model.layers.0.mlp.up_proj", ModuleKind::Linear),
        module("model.layers.0.mlp.down_proj", ModuleKind::Linear),
        module("model.layers.1", ModuleKind::Container),
        module("model.layers.1.self_attn", ModuleKind::Container),
        module("model.layers.1.self_attn.q_proj", ModuleKind::Linear),
        module("model.layers.1.mlp", ModuleKind::Container),
        module("model.layers.1.mlp.gate", ModuleKind::Router),
        module("model.layers.1.mlp.experts", ModuleKind::Container),
        module("model.layers.1.mlp.experts.gate_up_proj", ModuleKind::Parameter),
        module("model.layers.1.mlp.experts.down_proj", ModuleKind::Parameter),
        module("model.norm", ModuleKind::Norm),
        module("lm_head", ModuleKind::Linear),
    ]
}

fn plan(model_type: &str, fields: Value) -> Result<TargetPlan, String> {
    let mut fields = fields;
    fields["peft_type"] = "LORA".into();
    let (config, _) = LoraConfig::from_value(&fields).unwrap();
    let modules = modules();
    let model = ModelModules {
        modules: &modules,
        model_type,
        input_embedding: Some("model.embed_tokens"),
        output_embedding: Some("lm_head"),
    };
    plan_targets(&config, &model).map_err(|error| error.to_string())
}

/// Where the adapters lie below the layers, with their ranks.
fn places(plan: &TargetPlan) -> BTreeMap<String, usize> {
    let place = |path: &String| {
        let place = plan.adapter_path(path);
        place.strip_prefix("model.layers.").unwrap_or(&place).to_owned()
    };
    plan.targets.iter().map(|(path, target)| (place(path), target.r)).collect()
}

fn map<const N: usize>(entries: [(&str, usize); N]) -> BTreeMap<String, usize> {
    entries.into_iter().map(|(place, r)| (place.to_owned(), r)).collect()
}

#[test]
fn parameters_of_one_module_are_wrapped_around_each_other() {
    let both = json!({"target_modules": [], "target_parameters": ["down_proj", "gate_up_proj"]});
    let found = places(&plan("qwen2_moe", both).unwrap());
    assert_eq!(found, map([("1.mlp.experts", 8), ("1.mlp.experts.base_layer", 8)]));
    for one in ["gate_up_proj", "experts.down_proj"] {
        let alone = json!({"target_modules": [], "target_parameters": [one]});
        assert_eq!(places(&plan("qwen2_moe", alone).unwrap()), map([("1.mlp.experts", 8)]));
    }
}

#[test]
fn modules_and_parameters_of_one_name_are_told_apart() {
    let found = plan("qwen2_moe", json!({"target_modules": ["down_proj"]})).unwrap();
    assert_eq!(places(&found), map([("0.mlp.down_proj", 8)]));
    let router = json!({"target_modules": ["q_proj"], "target_parameters": ["gate.weight"],
        "rank_pattern": {"gate.weight": 2}});
    let found = places(&plan("qwen2_moe", router).unwrap());
    let expected = [("0.self_attn.q_proj", 8), ("1.mlp.gate", 2), ("1.self_attn.q_proj", 8)];
    assert_eq!(found, map(expected));
    let linear = json!({"target_modules": [], "target_parameters": ["q_proj.weight"]});
    let found = places(&plan("qwen2_moe", linear).unwrap());
    assert_eq!(found, map([("0.self_attn.q_proj", 8), ("1.self_attn.q_proj", 8)]));
}

#[test]
fn names_of_linear_experts_become_parameters() {
    let old = json!({"target_modules": ["q_proj", "w1", "w2", "w3"], "lora_alpha": 16});
    let found = plan("mixtral", old).unwrap();
    let expected = [
        ("0.self_attn.q_proj", 8),
        ("1.self_attn.q_proj", 8),
        ("1.mlp.experts.base_layer", 16),
        ("1.mlp.experts", 8),
    ];
    assert_eq!(places(&found), map(expected));
    assert!(found.targets.values().all(|target| target.scaling == 2.0));
    let saved = serde_json::to_value(&found.config).unwrap();
    assert_eq!(saved["target_modules"], json!(["q_proj"]));
    assert_eq!(saved["target_parameters"], json!(["gate_up_proj", "down_proj"]));
    assert_eq!(saved["rank_pattern"], json!({r".*\.gate_up_proj": 16}));
    assert_eq!(saved["alpha_pattern"], json!({r".*\.gate_up_proj": 32}));
    // What is read again is left as it is.
    let again = plan("mixtral", saved).unwrap();
    assert_eq!(again.targets, found.targets);
}

#[test]
fn all_linear_and_patterns_mean_the_experts_too() {
    let all = plan("deepseek_v3", json!({"target_modules": "all-linear"})).unwrap();
    let expected = [
        ("0.self_attn.q_proj", 8),
        ("1.self_attn.q_proj", 8),
        ("1.mlp.gate", 8),
        ("1.mlp.experts.base_layer", 16),
        ("1.mlp.experts", 8),
    ];
    assert_eq!(places(&all), map(expected));
    let pattern = json!({"target_modules": r".*mlp.*\.(gate_proj|up_proj)"});
    let found = places(&plan("qwen3_moe", pattern).unwrap());
    assert_eq!(found, map([("1.mlp.experts", 16)]));
    // PEFT knows nothing of the type that gave the conversion its name.
    let plain = plan("qwen2_moe", json!({"target_modules": "all-linear"})).unwrap();
    assert_eq!(plain.targets.len(), 5);
}

#[test]
fn what_can_not_be_adapted_says_why() {
    let message = |fields| plan("mixtral", fields).unwrap_err();
    let half = message(json!({"target_modules": ["w1"]}));
    assert!(half.contains("`w1` without `w3`"), "{half}");
    let dropout = json!({"target_modules": [], "target_parameters": ["down_proj"],
        "lora_dropout": 0.1});
    assert!(message(dropout).contains("`lora_dropout` has to be 0"));
    let vector = json!({"target_modules": [], "target_parameters": ["norm.weight"]});
    assert!(message(vector).contains("a vector"));
    let twice = json!({"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]});
    assert!(message(twice).contains("adapts its module already"));
    let nothing = json!({"target_modules": [], "target_parameters": ["up_proj"]});
    assert!(message(nothing).contains("matches no module"));
    let router = plan("qwen2_moe", json!({"target_modules": ["gate"]})).unwrap_err();
    assert!(router.contains("is a Router"), "{router}");
    let typo = json!({"target_modules": ["q_proj"], "target_parameters": ["down_porj"]});
    let warnings = plan("mixtral", typo).unwrap().warnings;
    let expected = "`target_parameters` entry `down_porj` matches no parameter; similar names are \
                    `down_proj`";
    assert!(warnings.iter().any(|w| w.to_string().starts_with(expected)), "{warnings:?}");
}
