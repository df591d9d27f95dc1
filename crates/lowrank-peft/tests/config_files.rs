//! adapter_config.json: files that PEFT 0.21.2 wrote are read and written back byte for byte, and
//! what PEFT refuses is refused. `fixtures/config/make.py` made the files.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lowrank_peft::config_error::{ConfigProblem, ConfigWarning};
use lowrank_peft::lora_config::{
    AdapterUse, InitLoraWeights, LoraConfig, Number, PeftConfig, TargetModules, get_peft_config,
};
use lowrank_peft::task_type::{PeftType, TaskType};
use proptest::prelude::*;
use serde_json::{Value, json};

fn fixture(key: &str) -> Vec<Value> {
    let text = include_str!("fixtures/config/files.json");
    let all: Value = serde_json::from_str(text).unwrap();
    all[key].as_array().unwrap().clone()
}

fn written_by_peft() -> Vec<String> {
    fixture("written").iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn files_are_written_back_byte_for_byte() {
    let files = written_by_peft();
    assert_eq!(files.len(), 27);
    for text in files {
        let (config, _) = LoraConfig::from_json(&text).unwrap();
        assert!(config.extra.is_empty(), "unknown: {:?}", config.extra);
        assert_eq!(config.to_json().unwrap(), text);
    }
}

#[test]
fn defaults_are_those_of_peft() {
    let (config, warnings) = LoraConfig::from_json(&written_by_peft()[0]).unwrap();
    assert_eq!(config, LoraConfig::default());
    assert!(warnings.is_empty());
    let (config, _) = LoraConfig::from_json(r#"{"peft_type": "LORA"}"#).unwrap();
    assert_eq!(config, LoraConfig::default());
}

#[test]
fn spelling_is_kept() {
    let text = |alpha| {
        format!(r#"{{"peft_type":"LORA","lora_alpha":{alpha},"target_modules":["z","a","z"]}}"#)
    };
    for (alpha, number) in [("16", Number::Int(16)), ("16.0", Number::Float(16.0))] {
        let (config, _) = LoraConfig::from_json(&text(alpha)).unwrap();
        assert_eq!(config.lora_alpha, number);
        assert_eq!(config.target_modules, TargetModules::names(["z", "a", "z"]));
        let written = config.to_json().unwrap();
        assert!(written.contains(&format!("\"lora_alpha\": {alpha},")), "{written}");
    }
}

#[test]
fn unknown_keys_are_kept_and_reported() {
    let text = r#"{"peft_type": "LORA", "zeta": {"b": [1.0, 1], "a": null}, "enable_lora": null,
                   "runtime_config": {"ephemeral_gpu_offload": true}}"#;
    let (config, warnings) = LoraConfig::from_json(text).unwrap();
    let keys = vec!["zeta".to_owned(), "enable_lora".to_owned()];
    assert_eq!(warnings, [ConfigWarning::RuntimeConfig, ConfigWarning::UnknownKeys { keys }]);
    let written = config.to_json().unwrap();
    assert!(!written.contains("runtime_config"));
    let (again, _) = LoraConfig::from_json(&written).unwrap();
    assert_eq!(again, config);
    assert_eq!(again.extra["zeta"], json!({"a": null, "b": [1.0, 1]}));
}

#[test]
fn what_peft_refuses_is_refused() {
    let rejected = fixture("rejected");
    assert_eq!(rejected.len(), 26);
    for mut fields in rejected {
        fields["peft_type"] = "LORA".into();
        let error = LoraConfig::from_value(&fields).expect_err(&fields.to_string());
        let named = fields.as_object().unwrap().keys().any(|key| error.to_string().contains(key));
        assert!(named, "{fields}: {error}");
    }
}

#[test]
fn values_out_of_bounds_name_file_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapter_config.json");
    for (field, value) in [
        ("r", json!(0)),
        ("r", json!(-1)),
        ("r", json!(8.0)),
        ("r", json!((1 << 20) + 1)),
        ("r", json!(u64::MAX)),
        ("r", json!("8")),
        ("lora_dropout", json!(1.0)),
        ("lora_dropout", json!(-0.1)),
        ("lora_alpha", json!("16")),
        ("lora_alpha", json!(u64::MAX)),
        ("bias", json!("some")),
        ("use_rslora", json!(1)),
        ("target_modules", json!(["q", 3])),
        ("rank_pattern", json!({"q": 0})),
        ("rank_pattern", json!(null)),
        ("alpha_pattern", json!({"q": [1]})),
        ("modules_to_save", json!([""])),
        ("modules_to_save", json!("lm_head")),
        ("init_lora_weights", json!(2)),
        ("task_type", json!("causal_lm")),
        ("loftq_config", json!([])),
    ] {
        let fields = json!({"peft_type": "LORA", field: value});
        std::fs::write(&file, fields.to_string()).unwrap();
        let message = LoraConfig::from_pretrained(folder.path()).unwrap_err().to_string();
        assert!(message.contains(&file.display().to_string()), "{message}");
        assert!(message.contains(&format!("`{field}")), "{message}");
    }
    std::fs::write(&file, "{\"r\": NaN}").unwrap();
    assert!(LoraConfig::from_pretrained(folder.path()).is_err());
    std::fs::remove_file(&file).unwrap();
    let error = LoraConfig::from_pretrained(folder.path()).unwrap_err();
    assert!(matches!(error.problem, ConfigProblem::Io(_)));
}

#[test]
fn a_config_made_in_code_is_checked_before_it_is_written() {
    let config = LoraConfig { lora_alpha: f64::INFINITY.into(), ..LoraConfig::default() };
    let message = config.to_json().unwrap_err().to_string();
    assert_eq!(message, "`lora_alpha` is `inf`; it must be a finite number");
}

#[test]
fn get_peft_config_is_strict_and_knows_the_methods() {
    let config = get_peft_config(&json!({"peft_type": "LORA", "r": 4})).unwrap();
    let PeftConfig::Lora(config) = config else { panic!("another method") };
    assert_eq!(config.r, 4);
    let message = |fields| get_peft_config(&fields).unwrap_err().to_string();
    assert!(message(json!({"r": 4})).contains("`peft_type` is missing"));
    assert!(message(json!({"peft_type": "VERA"})).contains("`VERA`; only LORA"));
    assert!(message(json!({"peft_type": "LORE"})).contains("\"LORE\""));
    assert!(message(json!({"peft_type": "LORA", "rank": 4})).contains("`rank`"));
    assert!(message(json!({"peft_type": "LORA", "runtime_config": {}})).contains("runtime_config"));
    assert!(message(json!([])).contains("JSON object"));
}

#[test]
fn fields_that_are_not_implemented_are_named() {
    let supported = |fields: Value, purpose| {
        let mut fields = fields;
        fields["peft_type"] = "LORA".into();
        let (config, _) = LoraConfig::from_value(&fields).unwrap();
        config.check_supported(purpose)
    };
    for fields in [
        json!({"use_dora": true}),
        json!({"alora_invocation_tokens": [1]}),
        json!({"arrow_config": {}}),
        json!({"use_bdlora": {"nblocks": 2}}),
        json!({"kasa_config": {}}),
        json!({"use_qalora": true}),
        json!({"velora_config": {}}),
        json!({"monteclora_config": {}}),
        json!({"layer_replication": [[0, 4], [2, 6]]}),
        json!({"trainable_token_indices": [1]}),
        json!({"megatron_config": {"a": 1}}),
        json!({"ensure_weight_tying": true}),
        json!({"init_lora_weights": "pissa"}),
        json!({"init_lora_weights": "pissa_niter_4"}),
        json!({"init_lora_weights": "olora"}),
        json!({"init_lora_weights": "corda"}),
        json!({"init_lora_weights": "lora_ga"}),
        json!({"init_lora_weights": "no_such"}),
    ] {
        let field = fields.as_object().unwrap().keys().next().unwrap().clone();
        for purpose in [AdapterUse::Fresh, AdapterUse::Load] {
            let message = supported(fields.clone(), purpose).unwrap_err().to_string();
            assert!(message.contains(&format!("`{field}` is `")), "{message}");
        }
    }
    for name in ["orthogonal", "eva", "mica"] {
        let fields = json!({"init_lora_weights": name});
        assert!(supported(fields.clone(), AdapterUse::Fresh).is_err());
        assert!(supported(fields, AdapterUse::Load).is_ok());
    }
    for init in [json!(true), json!(false), json!("gaussian")] {
        let fields = json!({"init_lora_weights": init, "use_rslora": true, "layer_replication": [],
            "target_parameters": [], "megatron_config": {}, "eva_config": {}});
        assert!(supported(fields, AdapterUse::Fresh).is_ok());
    }
}

#[test]
fn initializations_keep_their_names() {
    for (json, init) in [
        (json!(true), InitLoraWeights::Default),
        (json!(false), InitLoraWeights::Random),
        (json!("gaussian"), InitLoraWeights::Gaussian),
        (json!("olora"), InitLoraWeights::Named("olora".to_owned())),
    ] {
        let fields = json!({"peft_type": "LORA", "init_lora_weights": json});
        let (config, _) = LoraConfig::from_value(&fields).unwrap();
        assert_eq!(config.init_lora_weights, init);
    }
}

#[test]
fn tasks_and_methods_are_those_of_peft() {
    let tasks: Vec<Value> =
        TaskType::ALL.iter().map(|t| serde_json::to_value(t).unwrap()).collect();
    assert_eq!(tasks, fixture("task_types"));
    for task in TaskType::ALL {
        assert_eq!(TaskType::from_name(task.name()), Some(task));
        assert_eq!(serde_json::from_value::<TaskType>(task.name().into()).unwrap(), task);
    }
    let methods: Vec<Value> = PeftType::all().map(|method| method.name().into()).collect();
    assert_eq!(methods, fixture("peft_types"));
}

/// A file that PEFT wrote with one of its values replaced by an arbitrary one.
fn damaged_file() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    let value = prop_oneof![
        scalar.clone(),
        prop::collection::vec(scalar.clone(), 0..3).prop_map(Value::from),
        ("[a-z]{1,4}", scalar).prop_map(|(key, value)| json!({key: value})),
    ];
    let files = written_by_peft();
    (0..files.len(), 0..50usize, value).prop_map(move |(file, field, value)| {
        let mut fields: Value = serde_json::from_str(&files[file]).unwrap();
        let map = fields.as_object_mut().unwrap();
        let key = map.keys().nth(field % map.len()).unwrap().clone();
        map.insert(key, value);
        fields
    })
}

proptest! {
    #[test]
    fn what_is_accepted_is_written_back_the_same(fields in damaged_file()) {
        if let Ok((config, _)) = LoraConfig::from_value(&fields) {
            let written = config.to_json().unwrap();
            let again: Value = serde_json::from_str(&written).unwrap();
            let version = fields["peft_version"].is_null();
            for (key, value) in fields.as_object().unwrap() {
                prop_assert!(again[key] == *value || (key == "peft_version" && version));
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC*") {
        let _ = LoraConfig::from_json(&text);
    }
}
