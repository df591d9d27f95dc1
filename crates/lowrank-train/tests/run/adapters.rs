//! Runs that begin with adapters: the last one given trains on, those before it are merged.

use lowrank_models::{Model, OpenOptions, PeftModel};

use crate::harness::{Case, assert_close, fixture, repository, tensors, values};

const KEYS: [&str; 5] = [
    "lora_target=q_proj,v_proj",
    "max_samples=8",
    "init_lora_weights=false",
    "max_steps=2",
    "save_strategy=no",
];

fn start() -> String {
    fixture("sft_start").display().to_string()
}

#[test]
fn an_adapter_trains_on_with_its_own_rank_and_targets() {
    let case = Case::novel(&KEYS);
    let given = format!("adapter_name_or_path={}", start());
    let setup = case.setup(&[&given, "lora_rank=2"]);
    assert!(setup.remarks.iter().any(|r| r.contains("sft_start") && r.contains("trains on")));
    let file = tensors(&fixture("sft_start").join("adapter_model.safetensors"));
    assert_close(&setup.model.get_peft_model_state_dict("default").unwrap(), &file, 0.0);
    case.run("out", &[&given, "lora_rank=2"]);
    let config = case.json("out/adapter_config.json");
    assert_eq!(config["r"], 4);
    assert_eq!(config["target_modules"], serde_json::json!(["down_proj", "q_proj", "v_proj"]));
    let after = case.adapter("out");
    assert!(file.keys().eq(after.keys()));
    assert!(file.iter().all(|(name, tensor)| values(tensor) != values(&after[name])));
}

/// The base weight of a module.
fn weight(model: &PeftModel, name: &str) -> Vec<f32> {
    let found = model.model().modules.tensors().find(|t| t.name() == name).unwrap();
    values(&found.weight().to_tensor().unwrap())
}

#[test]
fn adapters_before_the_last_are_merged_in_order() {
    const NAME: &str = "model.layers.2.self_attn.v_proj.weight";
    let case = Case::novel(&KEYS);
    case.run("one", &[]);
    case.run("two", &["seed=5"]);
    let [one, two] = ["one", "two"].map(|name| case.path(name));
    let open = || {
        let folder = repository().join("assets/stories260K");
        Model::open(&folder, &OpenOptions::default()).unwrap()
    };
    let merge = |model: Model, folder| {
        PeftModel::from_pretrained(model, folder).unwrap().merge_and_unload().unwrap()
    };
    let expected = PeftModel::new(merge(merge(open(), &one), &two));
    let given = [one.display().to_string(), two.display().to_string(), start()];
    let key = format!("adapter_name_or_path={}", given.join(","));

    let setup = case.setup(&[&key]);
    assert_eq!(setup.remarks.iter().filter(|r| r.contains("merged `")).count(), 2);
    assert!(weight(&setup.model, NAME) == weight(&expected, NAME));
    assert!(weight(&setup.model, NAME) != weight(&PeftModel::new(open()), NAME));
    let file = tensors(&fixture("sft_start").join("adapter_model.safetensors"));
    assert_close(&setup.model.get_peft_model_state_dict("default").unwrap(), &file, 0.0);

    let setup = case.setup(&[&key, "create_new_adapter=true", "lora_rank=2"]);
    let expected =
        PeftModel::new(merge(expected.merge_and_unload().unwrap(), &fixture("sft_start")));
    assert!(weight(&setup.model, NAME) == weight(&expected, NAME));
    let fresh = setup.model.get_peft_model_state_dict("default").unwrap();
    assert_eq!(fresh.len(), 20);
    assert!(fresh.iter().all(|(name, t)| !name.contains("lora_A") || t.dims() == [2, 64]));
}

#[test]
fn a_run_on_merged_adapters_is_resumed() {
    let case = Case::novel(&KEYS);
    case.run("one", &[]);
    let key = format!("adapter_name_or_path={},{}", case.path("one").display(), start());
    case.run("whole", &[&key]);
    case.try_run("parts", &[&key], Some(1)).0.unwrap();
    case.run("parts", &[&key]);
    let adapter = |out: &str| case.read(&format!("{out}/adapter_model.safetensors"));
    assert!(adapter("parts") == adapter("whole"));
}

#[test]
fn weights_may_be_bf16() {
    let case = Case::novel(&["lora_target=all", "max_samples=8", "max_steps=12"]);
    let (_, f32) = case.run("f32", &[]);
    let (_, bf16) = case.run("bf16", &["bf16=true"]);
    let (f32, bf16) = (f32.losses(), bf16.losses());
    assert_ne!(f32, bf16);
    assert!((f32[0] - bf16[0]).abs() < 0.02 * f32[0], "{f32:?} {bf16:?}");
    assert!(bf16[11] < bf16[0] - 0.5, "{bf16:?}");
    let adapter = case.adapter("bf16");
    assert!(adapter.values().all(|tensor| tensor.dtype() == candle_core::DType::F32));
}
