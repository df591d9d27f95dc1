//! A model that is saved unchanged has the tensors of the folder that it came from.

use std::{collections::BTreeMap, path::Path};

use lowrank_models::{Error, Model, OpenOptions, SaveOptions, Task};
use safetensors::SafeTensors;
use serde_json::{Value, json};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Shape and bytes of each tensor, by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn tensors(file: &[u8]) -> Result<Tensors> {
    let file = SafeTensors::deserialize(file)?;
    let read = file.tensors().into_iter();
    Ok(read.map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec()))).collect())
}

fn saved(model: &Model, options: &SaveOptions) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for shard in model.saved(options)?.shards() {
        let mut bytes = Vec::new();
        shard.write::<Error>(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        files.push((shard.file_name.clone(), bytes));
    }
    Ok(files)
}

#[test]
fn the_tensors_are_those_that_were_read() -> Result<()> {
    for name in [
        "bart_decoder_own",
        "bart_own",
        "bert",
        "bert_own",
        "blip_2_own",
        "deberta_v2_own",
        "bert_qa",
        "electra_own",
        "falcon_own",
        "gemma2_own",
        "gpt2",
        "gpt2_own",
        "gpt_neox_own",
        "llama",
        "opt_own",
        "phi3_own",
        "qwen3",
        "stablelm_own",
        "t5",
        "t5_own",
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let original = tensors(&std::fs::read(folder.join("model.safetensors"))?)?;
        let task = (name == "bert_qa").then_some(Task::QuestionAns);
        let model = Model::open(&folder, &OpenOptions { task, ..OpenOptions::default() })?;
        for max_shard_size in [u64::MAX, 10_000, 1] {
            let options = SaveOptions { max_shard_size, ..SaveOptions::default() };
            let files = saved(&model, &options)?;
            let mut found = BTreeMap::new();
            for (_, bytes) in &files {
                found.extend(tensors(bytes)?);
            }
            assert!(found == original, "{name}: {:?}", found.keys().collect::<Vec<_>>());
            if max_shard_size == 1 {
                assert_eq!(files.len(), original.len(), "{name}: a file for each tensor");
            }
        }
    }
    Ok(())
}

/// Falcon as its authors' own code had it, whose config transformers wouldn't read.
#[test]
fn a_config_of_remote_code_is_saved_as_one_of_transformers() -> Result<()> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/falcon_own");
    let folder = tempfile::tempdir()?;
    std::fs::copy(own.join("model.safetensors"), folder.path().join("model.safetensors"))?;
    let write = |heads: usize| {
        let config = json!({
            "model_type": "RefinedWebModel", "architectures": ["RWForCausalLM"], "alibi": true,
            "auto_map": {"AutoConfig": "configuration_RW.RWConfig"}, "bias": true, "n_head": heads,
            "n_layer": 2, "hidden_size": 18, "vocab_size": 37, "layer_norm_epsilon": 1e-5,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string())
    };
    write(9)?;
    let model = Model::open(folder.path(), &OpenOptions::default())?;
    let texts = model.saved(&SaveOptions::default())?.texts()?;
    let (_, config) = texts.first().ok_or("no config")?;
    let config: Value = serde_json::from_str(config)?;
    let expected = json!({
        "model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": true, "bias": true,
        "multi_query": false, "parallel_attn": false, "num_attention_heads": 9,
        "num_hidden_layers": 2, "hidden_size": 18, "vocab_size": 37, "layer_norm_epsilon": 1e-5,
        "dtype": "float32",
    });
    assert_eq!(config, expected);
    write(7)?;
    let error = Model::open(folder.path(), &OpenOptions::default());
    let said = error.err().ok_or("7 heads fit into 18")?.to_string();
    assert!(said.ends_with("`hidden_size` is `18`; it must be a multiple of `n_head`, which is 7"));
    Ok(())
}
