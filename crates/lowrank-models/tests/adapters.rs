//! Adapters on a model: what PEFT computed with one, and what must hold of several. The fixture is
//! a tiny Llama with an adapter that PEFT 0.21 wrote, and logits by transformers and PEFT.

#![expect(clippy::expect_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use lowrank_models::{Input, Model, OpenOptions, PeftModel, get_peft_model};
use lowrank_peft::{LoraConfig, Pass, lora_config::TargetModules};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama")
}

fn model() -> Result<Model> {
    Ok(Model::open(&folder(), &OpenOptions::default())?)
}

fn loaded() -> Result<PeftModel> {
    Ok(PeftModel::from_pretrained(model()?, &folder())?)
}

/// Logits of the first, unpadded row of the case.
fn logits(model: &Model, pass: &Pass) -> Result<Vec<f32>> {
    let case = case()?;
    let ids = case["in.input_ids"].get(0)?.to_vec1::<i64>()?;
    let ids: Vec<u32> = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>()?;
    Ok(model.logits(&Input::packed(&[ids]), None, pass)?.data().flatten_all()?.to_vec1()?)
}

fn case() -> Result<BTreeMap<String, Tensor>> {
    let loaded = candle_core::safetensors::load(folder().join("case.safetensors"), &Device::Cpu)?;
    Ok(loaded.into_iter().collect())
}

fn expect_close(found: &[f32], reference: &str) -> Result<()> {
    let expected = case()?[reference].get(0)?.flatten_all()?.to_vec1::<f32>()?;
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 5e-5 * largest, "{reference}[{i}] is {a}, must be {b}");
    }
    Ok(())
}

#[test]
fn logits_are_pefts_with_it_without_it_and_merged() -> Result<()> {
    let mut peft = loaded()?;
    expect_close(&logits(peft.model(), &peft.inference())?, "lora.logits")?;
    let base = logits(peft.model(), &peft.disabled())?;
    expect_close(&base, "base.logits")?;
    peft.merge_adapter()?;
    expect_close(&logits(peft.model(), &peft.inference())?, "lora.merged_logits")?;
    peft.unmerge_adapter();
    assert_eq!(logits(peft.model(), &peft.disabled())?, base, "unmerging isn't exact");
    let merged = peft.merge_and_unload()?;
    expect_close(&logits(&merged, &Pass::inference([].into()))?, "lora.merged_logits")
}

#[test]
fn a_fresh_adapter_changes_nothing_until_it_is_trained() -> Result<()> {
    let plain = logits(&model()?, &Pass::inference([].into()))?;
    let config =
        LoraConfig { target_modules: TargetModules::names(["q_proj"]), ..LoraConfig::default() };
    let peft = get_peft_model(model()?, &config, 7)?;
    assert_eq!(logits(peft.model(), &peft.inference())?, plain);
    let mut line = Vec::new();
    peft.print_trainable_parameters(&mut line)?;
    // PEFT's own line for this model and config.
    let peft_says = "trainable params: 1,024 || all params: 26,592 || trainable%: 3.8508\n";
    assert_eq!(String::from_utf8(line)?, peft_says);
    Ok(())
}

#[test]
fn several_adapters_add_up_and_come_and_go() -> Result<()> {
    let mut peft = loaded()?;
    let (one, base) =
        (logits(peft.model(), &peft.inference())?, logits(peft.model(), &peft.disabled())?);
    peft.load_adapter("again", &folder())?;
    assert_eq!(logits(peft.model(), &peft.inference())?, one, "a loaded adapter is inactive");
    peft.set_adapter(&["again"])?;
    assert_eq!(logits(peft.model(), &peft.inference())?, one);
    peft.set_adapter(&["default", "again"])?;
    assert_ne!(logits(peft.model(), &peft.inference())?, one);
    peft.delete_adapter("again")?;
    assert_eq!(logits(peft.model(), &peft.inference())?, one);
    peft.set_adapter(&[])?;
    assert_eq!(logits(peft.model(), &peft.inference())?, base);
    let missing = peft.set_adapter(&["nobody"]).expect_err("no such adapter").to_string();
    assert_eq!(missing, "there is no adapter named `nobody`; loaded: default");
    let taken = peft.load_adapter("default", &folder()).expect_err("a name twice").to_string();
    assert!(taken.starts_with("there is an adapter named `default` already"), "{taken}");
    Ok(())
}

#[test]
fn what_peft_wrote_is_written_again_byte_for_byte() -> Result<()> {
    let peft = loaded()?;
    for (name, bytes) in peft.adapter_files("default")? {
        let original = fs::read(folder().join(&name))?;
        if name.ends_with(".json") {
            let mut config: serde_json::Value = serde_json::from_slice(&original)?;
            let base = peft.model().folder.display().to_string();
            config["base_model_name_or_path"] = base.into();
            let written: serde_json::Value = serde_json::from_slice(&bytes)?;
            assert_eq!(written, config);
        } else {
            assert!(bytes == original, "`{name}` differs from PEFT's");
        }
    }
    Ok(())
}

/// The fixture's adapter with its tensors changed.
fn changed(change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> Result<String> {
    let folder = tempfile::tempdir()?;
    fs::copy(
        self::folder().join("adapter_config.json"),
        folder.path().join("adapter_config.json"),
    )?;
    let from = self::folder().join("adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(from, &Device::Cpu)?.into_iter().collect();
    change(&mut tensors);
    let bytes = lowrank_peft::serialize(&tensors)?;
    fs::write(folder.path().join("adapter_model.safetensors"), bytes)?;
    let mut peft = PeftModel::new(model()?);
    let error = peft.load_adapter("default", folder.path()).expect_err("a wrong file").to_string();
    Ok(error.replace(&folder.path().display().to_string(), "DIR"))
}

#[test]
fn tensors_that_do_not_bind_are_listed() -> Result<()> {
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let renamed = changed(|tensors| {
        if let Some(a) = tensors.remove(&format!("{q}.lora_A.weight")) {
            tensors.insert(format!("{q}_old.lora_A.weight"), a);
        }
    })?;
    let expected = format!(
        "`DIR/adapter_model.safetensors` doesn't fit this model: 1 tensors missing: \
         `{q}.lora_A.weight`; 1 tensors unexpected: `{q}_old.lora_A.weight`;"
    );
    assert_eq!(renamed, expected);
    let shape = changed(|tensors| {
        if let Some(a) = tensors.get_mut(&format!("{q}.lora_A.weight")) {
            *a = Tensor::zeros((5, 32), candle_core::DType::F32, &Device::Cpu).expect("zeros");
        }
    })?;
    assert!(shape.contains("has shape [5, 32]; this model asks for [4, 32]"), "{shape}");
    Ok(())
}
