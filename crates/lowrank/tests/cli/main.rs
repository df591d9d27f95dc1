//! What a user sees: every test here runs the program itself.

mod chat;
mod generate;
mod help;
mod inspect;
mod merge;
mod models;
mod predict;
mod preview;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// The program.
fn lowrank<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::cargo_bin("lowrank")?;
    command.args(arguments).env_remove("NO_COLOR").env("COLUMNS", "100");
    Ok(command)
}

/// Standard output of a run that succeeds.
fn stdout<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let output = lowrank(arguments)?.output()?;
    let stderr = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{stderr}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Exit code and standard error of a run that fails.
fn failure<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let output = lowrank(arguments)?.output()?;
    let code = output.status.code().ok_or("killed")?;
    let stderr = String::from_utf8(output.stderr)?;
    assert!(!output.status.success(), "{stderr}");
    Ok(format!("{code}: {stderr}").replace(&root().display().to_string(), "ROOT"))
}

/// The JSON objects of a run, one a line.
fn objects(text: &str) -> Result<Vec<Value>> {
    Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// The 260K-parameter Llama that tells stories.
fn stories() -> String {
    root().join("assets/stories260K").display().to_string()
}

/// A tiny random model.
fn model(name: &str) -> PathBuf {
    root().join("crates/lowrank-models/tests/fixtures").join(name)
}

/// Files of these tests.
fn fixture(name: &str) -> PathBuf {
    root().join("crates/lowrank/tests/fixtures").join(name)
}

/// A folder with a tiny model and the tokenizer of these tests.
fn with_tokenizer(name: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model(name).join(file), folder.path().join(file))?;
    }
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("tokenizer").join(file), folder.path().join(file))?;
    }
    Ok(folder)
}

/// A LoRA adapter of one rank on one layer of the stories model, or of BART's decoder, whose B grows
/// with `size`.
fn adapter(folder: &Path, target: &str, size: f32) -> Result<()> {
    let (path, [out, input]) = match target {
        "q_proj" => ("model.layers.0.self_attn.q_proj", [64, 64]),
        "bart" => ("model.decoder.layers.0.self_attn.q_proj", [16, 16]),
        "lm_head" => ("lm_head", [512, 64]),
        "embed_tokens" => ("model.embed_tokens", [512, 64]),
        other => return Err(format!("no shape for {other}").into()),
    };
    let a: Vec<f32> = (0..input).map(|i| (i as f32 * 0.7).sin()).collect();
    let b: Vec<f32> = (0..out).map(|i| size * (i as f32 * 0.3).cos()).collect();
    let tensors = match target {
        // `[rank, rows]` and `[dim, rank]`.
        "embed_tokens" => [("lora_embedding_A", b, [1, out]), ("lora_embedding_B", a, [input, 1])],
        _ => [("lora_A.weight", a, [1, input]), ("lora_B.weight", b, [out, 1])],
    };
    let named = tensors.into_iter().map(|(name, values, shape)| {
        let tensor = Tensor::from_vec(values, &shape, &Device::Cpu)?;
        Ok((format!("base_model.model.{path}.{name}"), tensor))
    });
    let named: HashMap<String, Tensor> = named.collect::<candle_core::Result<_>>()?;
    std::fs::create_dir_all(folder)?;
    candle_core::safetensors::save(&named, folder.join("adapter_model.safetensors"))?;
    let config = serde_json::json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1,
        "target_modules": [path], "base_model_name_or_path": stories(),
    });
    Ok(std::fs::write(folder.join("adapter_config.json"), config.to_string())?)
}
