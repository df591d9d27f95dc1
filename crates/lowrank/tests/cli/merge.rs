//! `merge`: what comes out is an ordinary model folder that computes the same.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::{Result, adapter, failure, lowrank, objects, stdout, stories};

/// Names in a folder.
fn files(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder)?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| -> Result<String> {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

fn json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Merges; returns the largest difference of a logit that it says.
fn merge(adapters: &[&Path], out: &Path, more: &[&str]) -> Result<f64> {
    let stories = stories();
    let mut command = vec!["merge", "--model", &stories];
    let adapters: Vec<String> = adapters.iter().map(|a| a.display().to_string()).collect();
    command.extend(adapters.iter().flat_map(|adapter| ["--adapter", adapter]));
    let out = out.display().to_string();
    command.extend(["--out", &out]);
    let output = lowrank(command.iter().chain(more))?.output()?;
    let stderr = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{stderr}");
    assert_eq!(String::from_utf8(output.stdout)?, format!("{out}\n"));
    let (_, rest) = stderr.split_once("unmerged adapter: ").ok_or("no difference")?;
    let (number, _) = rest.split_once(" (").ok_or("no difference")?;
    Ok(number.parse()?)
}

/// Greedy tokens of a model folder.
fn tokens(model: &Path, adapters: &[&Path]) -> Result<Value> {
    let model = model.display().to_string();
    let adapters: Vec<String> = adapters.iter().map(|a| a.display().to_string()).collect();
    let mut command = vec!["generate", "--model", &model, "--prompt", "Once", "--json"];
    command.extend(["--max-new-tokens", "30"]);
    command.extend(adapters.iter().flat_map(|adapter| ["--adapter", adapter]));
    Ok(objects(&stdout(command)?)?[0]["token_ids"].clone())
}

#[test]
fn the_merged_model_generates_what_the_adapters_did() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [first, second, out] = ["first", "second", "out"].map(|name| folder.path().join(name));
    adapter(&first, "q_proj", 1.0)?;
    adapter(&second, "q_proj", 0.7)?;
    std::fs::create_dir(&out)?; // an empty folder is as good as none
    assert!(merge(&[&first, &second], &out, &[])? < 1e-4);
    let unmerged = tokens(stories().as_ref(), &[&first, &second])?;
    assert_ne!(unmerged, tokens(stories().as_ref(), &[])?);
    assert_eq!(tokens(&out, &[])?, unmerged);
    let expected = ["config.json", "generation_config.json", "model.safetensors"];
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"];
    let expected = expected.iter().chain(&tokenizer).map(|s| (*s).to_owned()).collect();
    assert_eq!(files(&out)?, expected);
    assert_eq!(files(folder.path())?.len(), 3, "nothing is left behind");
    let config = json(&out.join("config.json"))?;
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["tie_word_embeddings"], true);
    Ok(())
}

#[test]
fn shards_have_an_index_and_a_dtype_is_converted_to() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [lora, whole, out] = ["lora", "whole", "out"].map(|name| folder.path().join(name));
    adapter(&lora, "q_proj", 0.05)?;
    let flags = ["--dtype", "bfloat16", "--max-shard-size", "200KB"];
    let difference = merge(&[&lora], &out, &flags)?;
    assert!((1e-4..0.5).contains(&difference), "{difference}");
    let index = json(&out.join("model.safetensors.index.json"))?;
    let map = index["weight_map"].as_object().ok_or("no map")?;
    let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    assert_eq!(shards.first().copied(), Some("model-00001-of-00003.safetensors"));
    assert_eq!(shards.len(), 3);
    assert_eq!(json(&out.join("config.json"))?["torch_dtype"], "bfloat16");
    let mut bytes = 0;
    for shard in shards {
        let file = std::fs::read(out.join(shard))?;
        let tensors = safetensors::SafeTensors::deserialize(&file)?;
        for (name, tensor) in tensors.tensors() {
            assert_eq!(map[&name], shard);
            assert_eq!(tensor.dtype(), safetensors::Dtype::BF16);
            bytes += tensor.data().len() as u64;
        }
    }
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(bytes));
    assert!(merge(&[&lora], &whole, &["--dtype", "bfloat16"])? == difference);
    Ok(())
}

#[test] // PEFT issues 2777 and 2864
fn a_merge_into_one_of_two_tied_tensors_parts_them() -> Result<()> {
    for target in ["lm_head", "embed_tokens"] {
        let folder = tempfile::tempdir()?;
        let [lora, out] = ["lora", "out"].map(|name| folder.path().join(name));
        adapter(&lora, target, 0.05)?;
        assert!(merge(&[&lora], &out, &[])? < 1e-4, "{target}");
        assert_eq!(json(&out.join("config.json"))?["tie_word_embeddings"], false);
        assert_eq!(tokens(&out, &[])?, tokens(stories().as_ref(), &[&lora])?, "{target}");
    }
    Ok(())
}

#[test]
fn a_recipe_for_export_is_merged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [lora, out] = ["lora", "out"].map(|name| folder.path().join(name));
    adapter(&lora, "q_proj", 1.0)?;
    let recipe = folder.path().join("export.yaml");
    let text = format!(
        "model_name_or_path: {}\nadapter_name_or_path: {}\nfinetuning_type: lora\n\
         export_dir: {}\nexport_size: 2\n",
        stories(),
        lora.display(),
        out.display()
    );
    std::fs::write(&recipe, text)?;
    stdout(["export", &recipe.display().to_string()])?;
    assert_eq!(tokens(&out, &[])?, tokens(stories().as_ref(), &[&lora])?);
    Ok(())
}

#[test]
fn errors_say_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let stories = stories();
    let lora = folder.path().join("lora");
    adapter(&lora, "q_proj", 0.05)?;
    let path = folder.path().display().to_string();
    let lora = lora.display().to_string();
    let error = |more: &[&str]| -> Result<String> {
        let fixed = ["merge", "--model", &stories];
        Ok(failure(fixed.iter().chain(more))?.replace(&path, "DIR"))
    };
    insta::assert_snapshot!(error(&["--adapter", &lora, "--out", &path])?, @"1: error: `DIR` exists already; choose another folder or remove it");
    insta::assert_snapshot!(error(&["--adapter", &lora])?, @r"
    2: error: the following required arguments were not provided:
      --out <DIR>

    Usage: lowrank merge --model <DIR> --out <DIR> --adapter <DIR> [RECIPE] [OVERRIDES]...

    For more information, try '--help'.
    ");
    let out = folder.path().join("out").display().to_string();
    insta::assert_snapshot!(error(&["--out", &out])?, @"1: error: there is no adapter to merge; give --adapter DIR");
    insta::assert_snapshot!(
        error(&["--adapter", &lora, "--out", &out, "--max-shard-size", "many"])?, @r"
    2: error: invalid value 'many' for '--max-shard-size <SIZE>': it must be a whole number with a unit (KB, MB, GB, TB, KiB, MiB, GiB)

    For more information, try '--help'.
    ");
    assert_eq!(files(folder.path())?.len(), 1, "nothing is left behind");
    Ok(())
}
