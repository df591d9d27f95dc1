//! Models with experts: as files hold them expert by expert and in one tensor, under adapters, with
//! activation checkpointing, merged, saved and with a cache. What transformers and PEFT make of
//! such models is checked by hand with `fixtures/check_experts.py`, and by the oracle's cases.

use std::{collections::BTreeMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Gradients, Key, ops, random};
use lowrank_models::{
    Error, GenerateOptions, Input, Model, OpenOptions, PeftModel, SaveOptions, Task, generate,
    get_peft_model,
};
use lowrank_peft::{
    LoraConfig, Pass,
    lora_config::{InitLoraWeights, TargetModules},
};
use serde_json::{Value, json};
use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;
type Tensors = BTreeMap<String, Tensor>;

const EXPERTS: usize = 4;

fn put(tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<()> {
    let numbers = Key::new(5).with(random::site(name)).normals(shape.iter().product());
    let scale = if shape.len() == 1 { 1.0 } else { 0.4 };
    let numbers: Vec<f32> = numbers.iter().map(|v| v * scale).collect();
    tensors.insert(name.to_owned(), Tensor::from_vec(numbers, shape, &Device::Cpu)?);
    Ok(())
}

/// Random tensors of these names and shapes below `prefix`.
fn put_all(tensors: &mut Tensors, prefix: &str, all: &[(&str, &[usize])]) -> Result<()> {
    all.iter().try_for_each(|(name, shape)| put(tensors, &format!("{prefix}{name}.weight"), shape))
}

fn outer(tensors: &mut Tensors) -> Result<()> {
    put_all(
        tensors,
        "",
        &[("model.embed_tokens", &[17, 8]), ("model.norm", &[8]), ("lm_head", &[17, 8])],
    )
}

/// A Mixtral of one layer, whose experts are single matrices.
fn mixtral() -> Result<(Value, Tensors)> {
    let config = json!({
        "model_type": "mixtral", "vocab_size": 17, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "tie_word_embeddings": false,
        "max_position_embeddings": 32,
    });
    let mut tensors = Tensors::new();
    outer(&mut tensors)?;
    let attention: [(&str, &[usize]); 6] = [
        ("self_attn.q_proj", &[8, 8]),
        ("self_attn.k_proj", &[4, 8]),
        ("self_attn.v_proj", &[4, 8]),
        ("self_attn.o_proj", &[8, 8]),
        ("input_layernorm", &[8]),
        ("post_attention_layernorm", &[8]),
    ];
    put_all(&mut tensors, "model.layers.0.", &attention)?;
    put_all(&mut tensors, "model.layers.0.block_sparse_moe.", &[("gate", &[EXPERTS, 8])])?;
    for expert in 0..EXPERTS {
        let prefix = format!("model.layers.0.block_sparse_moe.experts.{expert}.");
        put_all(&mut tensors, &prefix, &[("w1", &[6, 8]), ("w2", &[8, 6]), ("w3", &[6, 8])])?;
    }
    Ok((config, tensors))
}

/// The same model, whose experts are to be visited evenly, with noise in training.
fn balanced() -> Result<(Value, Tensors)> {
    let (mut config, tensors) = mixtral()?;
    config["output_router_logits"] = true.into();
    config["router_aux_loss_coef"] = 0.5.into();
    config["router_jitter_noise"] = 0.2.into();
    Ok((config, tensors))
}

/// The same model with its experts in two tensors.
fn fused() -> Result<(Value, Tensors)> {
    let (config, mut tensors) = mixtral()?;
    let mut taken = |name: &str| -> Result<Vec<Tensor>> {
        let names = (0..EXPERTS)
            .map(|e| format!("model.layers.0.block_sparse_moe.experts.{e}.{name}.weight"));
        Ok(names.filter_map(|name| tensors.remove(&name)).collect())
    };
    let (gate, down, up) = (taken("w1")?, taken("w2")?, taken("w3")?);
    let pairs = gate.iter().zip(&up).map(|(gate, up)| Tensor::cat(&[gate, up], 0));
    let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
    let router = tensors.remove("model.layers.0.block_sparse_moe.gate.weight");
    tensors.extend(router.map(|t| ("model.layers.0.mlp.gate.weight".to_owned(), t)));
    let name = |name: &str| format!("model.layers.0.mlp.experts.{name}");
    tensors.insert(name("gate_up_proj"), Tensor::stack(&pairs, 0)?);
    tensors.insert(name("down_proj"), Tensor::stack(&down, 0)?);
    Ok((config, tensors))
}

/// A DeepSeek-V3 of one sparse layer.
fn deepseek() -> Result<(Value, Tensors)> {
    let config = json!({
        "model_type": "deepseek_v3", "vocab_size": 17, "hidden_size": 8, "intermediate_size": 6,
        "moe_intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 2,
        "q_lora_rank": null, "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2,
        "v_head_dim": 3, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 0, "tie_word_embeddings": false,
        "max_position_embeddings": 32,
    });
    let mut tensors = Tensors::new();
    outer(&mut tensors)?;
    let layer: [(&str, &[usize]); 11] = [
        ("self_attn.q_proj", &[12, 8]),
        ("self_attn.kv_a_proj_with_mqa", &[8, 8]),
        ("self_attn.kv_a_layernorm", &[6]),
        ("self_attn.kv_b_proj", &[14, 6]),
        ("self_attn.o_proj", &[8, 6]),
        ("input_layernorm", &[8]),
        ("post_attention_layernorm", &[8]),
        ("mlp.gate", &[EXPERTS, 8]),
        ("mlp.shared_experts.gate_proj", &[5, 8]),
        ("mlp.shared_experts.up_proj", &[5, 8]),
        ("mlp.shared_experts.down_proj", &[8, 5]),
    ];
    put_all(&mut tensors, "model.layers.0.", &layer)?;
    put(&mut tensors, "model.layers.0.mlp.gate.e_score_correction_bias", &[EXPERTS])?;
    for expert in 0..EXPERTS {
        let prefix = format!("model.layers.0.mlp.experts.{expert}.");
        let matrices: [(&str, &[usize]); 3] =
            [("gate_proj", &[5, 8]), ("up_proj", &[5, 8]), ("down_proj", &[8, 5])];
        put_all(&mut tensors, &prefix, &matrices)?;
    }
    Ok((config, tensors))
}

fn write(folder: &Path, (config, tensors): &(Value, Tensors)) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("config.json"), config.to_string())?;
    fs::write(folder.join("model.safetensors"), lowrank_peft::serialize(tensors)?)?;
    Ok(())
}

fn opened(files: &(Value, Tensors)) -> Result<(TempDir, Model)> {
    let folder = tempfile::tempdir()?;
    write(folder.path(), files)?;
    let model = Model::open(folder.path(), &OpenOptions::default())?;
    Ok((folder, model))
}

/// The tensors of the files that a model is saved as.
fn saved(model: &Model) -> Result<Tensors> {
    let mut bytes = Vec::new();
    for shard in model.saved(&SaveOptions::default())?.shards() {
        shard.write::<Error>(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
    }
    Ok(candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?.into_iter().collect())
}

fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_vec1()?)
}

fn input() -> Input {
    Input::packed(&[vec![3, 4, 5, 6, 7], vec![8, 9, 10]])
}

fn logits(model: &Model, pass: &Pass) -> Result<Vec<f32>> {
    numbers(model.logits(&input(), None, pass)?.data())
}

fn plain(model: &Model) -> Result<Vec<f32>> {
    logits(model, &Pass::inference([].into()))
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{found}, expected {expected}");
    }
}

/// An adapter with random values on router, experts and attention.
fn config(router: bool) -> LoraConfig {
    let mut parameters = vec!["gate_up_proj".to_owned(), "down_proj".to_owned()];
    parameters.extend(router.then(|| "gate.weight".to_owned()));
    LoraConfig {
        r: 2,
        target_modules: TargetModules::names(["o_proj"]),
        target_parameters: Some(parameters),
        init_lora_weights: InitLoraWeights::Random,
        ..LoraConfig::default()
    }
}

#[test]
fn experts_in_one_tensor_and_by_themselves_are_one_model() -> Result<()> {
    let ((_one, one), (_other, other)) = (opened(&mixtral()?)?, opened(&fused()?)?);
    assert_eq!(plain(&one)?, plain(&other)?);
    let (one, other) =
        (get_peft_model(one, &config(true), 7)?, get_peft_model(other, &config(true), 7)?);
    let adapted = logits(one.model(), &one.inference())?;
    assert_ne!(adapted, plain(one.model())?);
    assert_eq!(adapted, logits(other.model(), &other.inference())?);
    Ok(())
}

#[test]
fn weights_that_are_converted_on_the_way_in_are_so_wherever_they_lay() -> Result<()> {
    let bf16 = OpenOptions { dtype: Some(DType::BF16), ..OpenOptions::default() };
    let ((one, exact), (other, _)) = (opened(&mixtral()?)?, opened(&fused()?)?);
    let (one, other) = (Model::open(one.path(), &bf16)?, Model::open(other.path(), &bf16)?);
    let found = plain(&one)?;
    assert_eq!(found, plain(&other)?);
    assert_ne!(found, plain(&exact)?);
    for model in [one, other] {
        assert!(saved(&model)?.values().all(|tensor| tensor.dtype() == DType::BF16));
    }
    Ok(())
}

#[test]
fn what_is_saved_has_the_names_and_numbers_of_the_files() -> Result<()> {
    for files in [mixtral()?, deepseek()?] {
        let (_folder, model) = opened(&files)?;
        assert!(model.unused.is_empty(), "{:?}", model.unused);
        let found = saved(&model)?;
        assert_eq!(found.keys().collect::<Vec<_>>(), files.1.keys().collect::<Vec<_>>());
        for (name, tensor) in &files.1 {
            assert_eq!(found[name].dims(), tensor.dims(), "{name}");
            assert_eq!(numbers(&found[name])?, numbers(tensor)?, "{name}");
        }
    }
    Ok(())
}

#[test]
fn the_bare_model_is_found_under_its_head() -> Result<()> {
    let bare = OpenOptions { task: Some(Task::FeatureExtraction), ..OpenOptions::default() };
    for files in [mixtral()?, fused()?, deepseek()?] {
        let (folder, whole) = opened(&files)?;
        let model = Model::open(folder.path(), &bare)?;
        assert_eq!(model.unused, ["lm_head.weight"]);
        let pass = Pass::inference([].into());
        let hidden = |model: &Model| numbers(model.hidden(&input(), &pass)?.data());
        assert_eq!(hidden(&model)?, hidden(&whole)?);
        let again = tempfile::tempdir()?;
        write(again.path(), &(files.0, saved(&model)?))?;
        assert_eq!(hidden(&Model::open(again.path(), &bare)?)?, hidden(&whole)?);
    }
    Ok(())
}

#[test]
fn a_merge_is_what_it_merges_and_can_be_taken_back() -> Result<()> {
    for files in [mixtral()?, fused()?, deepseek()?] {
        let (_folder, model) = opened(&files)?;
        let base = plain(&model)?;
        let mut peft = get_peft_model(model, &config(true), 7)?;
        let adapted = logits(peft.model(), &peft.inference())?;
        peft.merge_adapter()?;
        assert_close(&logits(peft.model(), &peft.inference())?, &adapted);
        peft.unmerge_adapter();
        assert_eq!(logits(peft.model(), &peft.disabled())?, base);
        let merged = peft.merge_and_unload()?;
        let (_folder, again) = opened(&(files.0, saved(&merged)?))?;
        assert_eq!(plain(&again)?, plain(&merged)?);
        assert_close(&plain(&again)?, &adapted);
    }
    Ok(())
}

#[test]
fn an_adapter_is_read_as_it_was_written() -> Result<()> {
    let (folder, model) = opened(&deepseek()?)?;
    let config = LoraConfig { modules_to_save: Some(vec!["gate".to_owned()]), ..config(false) };
    let peft = get_peft_model(model, &config, 7)?;
    let files = peft.adapter_files("default")?;
    for (name, bytes) in &files {
        fs::write(folder.path().join(name), bytes)?;
    }
    let names: Vec<String> = peft.get_peft_model_state_dict("default")?.into_keys().collect();
    let place = "base_model.model.model.layers.0.";
    let names: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(place)).collect();
    let expected = [
        "mlp.experts.base_layer.lora_A.weight",
        "mlp.experts.base_layer.lora_B.weight",
        "mlp.experts.lora_A.weight",
        "mlp.experts.lora_B.weight",
        "mlp.gate.e_score_correction_bias",
        "mlp.gate.weight",
        "self_attn.o_proj.lora_A.weight",
        "self_attn.o_proj.lora_B.weight",
    ];
    assert_eq!(names, expected);
    let model = Model::open(folder.path(), &OpenOptions::default())?;
    let again = PeftModel::from_pretrained(model, folder.path())?;
    let found = logits(again.model(), &again.inference())?;
    assert_eq!(found, logits(peft.model(), &peft.inference())?);
    assert_eq!(again.adapter_files("default")?, files);

    let other = folder.path().join("other");
    let (config, mut tensors) = deepseek()?;
    let bias = "model.layers.0.mlp.gate.e_score_correction_bias";
    tensors.insert(bias.to_owned(), Tensor::new(&[9f32; EXPERTS], &Device::Cpu)?);
    write(&other, &(config, tensors))?;
    let model = Model::open(&other, &OpenOptions::default())?;
    let wrong = PeftModel::from_pretrained(model, folder.path()).err().map(|e| e.to_string());
    assert!(wrong.is_some_and(|message| message.contains("e_score_correction_bias")));
    Ok(())
}

#[test]
fn blocks_that_are_run_again_give_the_same_gradients() -> Result<()> {
    for files in [mixtral()?, deepseek()?, balanced()?] {
        let (_folder, model) = opened(&files)?;
        let peft = get_peft_model(model, &config(true), 7)?;
        let gradients = |checkpointing: bool| -> Result<Vec<Vec<f32>>> {
            let pass = peft.recording().with_dropout(Key::new(3), (0..8).collect());
            let pass = pass.with_checkpointing(checkpointing);
            let (model, input) = (peft.model(), input());
            let (hidden, penalty) = model.hidden_with_penalty(&input, &pass)?;
            let logits = model.head().logits(&hidden, &input, None, &pass)?;
            let mut loss = ops::cross_entropy(&logits, &[4, 5, 6, 7, 1, 9, 10, 1].into())?;
            if let Some(penalty) = penalty {
                loss = ops::add(&loss, &penalty)?;
            }
            let mut gradients = Gradients::new();
            loss.backward(1.0, &mut gradients)?;
            let all = peft.trainable();
            let all = all.iter().map(|p| gradients.get(p.id()).ok_or(p.name().to_owned()));
            all.map(|gradient| numbers(gradient?)).collect()
        };
        let found = gradients(false)?;
        assert_eq!(found.len(), 8);
        assert!(found.iter().flatten().any(|v| *v != 0.0));
        assert_eq!(gradients(true)?, found);
    }
    Ok(())
}

#[test]
fn balance_is_added_to_the_loss_of_tokens_and_noise_acts_in_training() -> Result<()> {
    let (folder, model) = opened(&balanced()?)?;
    let pass = Pass::inference([].into());
    let (hidden, penalty) = model.hidden_with_penalty(&input(), &pass)?;
    assert_eq!(numbers(hidden.data())?, numbers(model.hidden(&input(), &pass)?.data())?);
    // It is the factor times the experts of a token where all are visited evenly, and the factor
    // times their number where all tokens visit the same ones and no other is likely.
    let penalty = penalty.ok_or("no penalty")?.data().to_scalar::<f32>()?;
    assert!((0.5 * 2.0..=0.5 * EXPERTS as f32).contains(&penalty), "{penalty}");
    let noisy = pass.with_dropout(Key::new(3), (0..8).collect());
    assert_ne!(logits(&model, &noisy)?, plain(&model)?);

    let classifier = OpenOptions { task: Some(Task::SeqCls), ..OpenOptions::default() };
    let model = Model::open(folder.path(), &classifier)?;
    assert!(model.hidden_with_penalty(&input(), &Pass::inference([].into()))?.1.is_none());
    Ok(())
}

#[test]
fn generation_with_a_cache_follows_the_whole_sequence() -> Result<()> {
    for files in [mixtral()?, deepseek()?] {
        let (_folder, model) = opened(&files)?;
        let pass = Pass::inference([].into());
        let options = GenerateOptions { max_new_tokens: 9, ..GenerateOptions::default() };
        let prompts = vec![vec![3, 4, 5], vec![6]];
        let found = generate(&model, &pass, &prompts, &options, |_, _| true)?;
        for (prompt, new) in prompts.iter().zip(found) {
            let mut row = prompt.clone();
            for token in new {
                let input = Input::packed(&[row.clone()]);
                let rows = [row.len() - 1].into();
                let logits = numbers(model.logits(&input, Some(&rows), &pass)?.data())?;
                let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
                assert_eq!(best, Some(token));
                row.push(token);
            }
        }
    }
    Ok(())
}

#[test]
fn settings_that_are_not_implemented_are_errors_that_name_them() -> Result<()> {
    let message = |files: (Value, Tensors), key: &str, value: Value| -> Result<String> {
        let (mut config, tensors) = files;
        config[key] = value;
        let found = opened(&(config, tensors)).err().ok_or("it opened")?.to_string();
        assert!(found.contains(&format!("`{key}`")), "{found}");
        Ok(found)
    };
    message(mixtral()?, "router_jitter_noise", json!(1.0))?;
    message(mixtral()?, "num_experts_per_tok", json!(EXPERTS + 1))?;
    message(deepseek()?, "scoring_func", json!("softmax"))?;
    message(deepseek()?, "topk_method", json!("greedy"))?;
    message(deepseek()?, "moe_layer_freq", json!(2))?;
    message(deepseek()?, "n_group", json!(3))?;
    message(deepseek()?, "n_group", json!(4))?;
    message(deepseek()?, "topk_group", json!(3))?;
    message(deepseek()?, "num_experts_per_tok", json!(3))?;
    message(deepseek()?, "num_key_value_heads", json!(1))?;
    let (config, mut tensors) = mixtral()?;
    tensors.remove("model.layers.0.block_sparse_moe.experts.2.w3.weight");
    let missing = opened(&(config, tensors)).err().ok_or("it opened")?.to_string();
    let expected = "`model.layers.0.block_sparse_moe.experts.2.w3.weight`";
    assert!(missing.contains(expected), "{missing}");
    Ok(())
}
