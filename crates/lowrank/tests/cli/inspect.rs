//! `inspect`: modules, shapes, targets.

use super::{Result, failure, model, objects, root, stdout, stories};

fn inspect(arguments: &[&str]) -> Result<String> {
    let text = stdout(["inspect"].iter().chain(arguments))?;
    Ok(text.replace(&root().display().to_string(), "ROOT"))
}

#[test]
fn blocks_that_are_alike_are_drawn_once() -> Result<()> {
    insta::assert_snapshot!(inspect(&[&stories()])?, @r"
    ROOT/assets/stories260K: LlamaForCausalLM (llama, causal-lm)
    model
      ├─ embed_tokens                 Embedding  [512, 64]  f32      32768
      ├─ layers.(0-4)
      │  ├─ self_attn
      │  │  ├─ q_proj                 Linear     [64, 64]   f32   5 × 4096  LoRA r=8 ×1
      │  │  ├─ k_proj                 Linear     [32, 64]   f32   5 × 2048
      │  │  ├─ v_proj                 Linear     [32, 64]   f32   5 × 2048  LoRA r=8 ×1
      │  │  └─ o_proj                 Linear     [64, 64]   f32   5 × 4096
      │  ├─ mlp
      │  │  ├─ gate_proj              Linear     [172, 64]  f32  5 × 11008
      │  │  ├─ up_proj                Linear     [172, 64]  f32  5 × 11008
      │  │  └─ down_proj              Linear     [64, 172]  f32  5 × 11008
      │  ├─ input_layernorm           RMSNorm    [64]       f32     5 × 64
      │  └─ post_attention_layernorm  RMSNorm    [64]       f32     5 × 64
      └─ norm                         RMSNorm    [64]       f32         64
    lm_head                           Linear     [512, 64]  f32          0  tied to model.embed_tokens.weight
    trainable params: 8,960 || all params: 268,992 || trainable%: 3.3310
    heads: causal-lm, seq-cls, token-cls, question-ans, feature-extraction
    ");
    Ok(())
}

#[test]
fn other_targets_and_heads() -> Result<()> {
    let bert = model("bert").display().to_string();
    let flags = ["--task", "seq-cls", "--lora_target", "all-linear", "--lora_rank", "4"];
    let text = inspect(&[&[bert.as_str()], &flags[..]].concat())?;
    insta::assert_snapshot!(text, @r"
    ROOT/crates/lowrank-models/tests/fixtures/bert: BertForSequenceClassification (bert, seq-cls)
    bert
      ├─ embeddings
      │  ├─ word_embeddings        Embedding  [101, 32]        f32      3232
      │  ├─ position_embeddings    Embedding  [40, 32]         f32      1280
      │  ├─ token_type_embeddings  Embedding  [2, 32]          f32        64
      │  └─ LayerNorm              LayerNorm  [32]             f32        64
      ├─ encoder
      │  └─ layer.(0-1)
      │     ├─ attention
      │     │  ├─ self
      │     │  │  ├─ query         Linear     [32, 32] + bias  f32  2 × 1056  LoRA r=4 ×2
      │     │  │  ├─ key           Linear     [32, 32] + bias  f32  2 × 1056  LoRA r=4 ×2
      │     │  │  └─ value         Linear     [32, 32] + bias  f32  2 × 1056  LoRA r=4 ×2
      │     │  └─ output
      │     │     ├─ dense         Linear     [32, 32] + bias  f32  2 × 1056  LoRA r=4 ×2
      │     │     └─ LayerNorm     LayerNorm  [32]             f32    2 × 64
      │     ├─ intermediate
      │     │  └─ dense            Linear     [56, 32] + bias  f32  2 × 1848  LoRA r=4 ×2
      │     └─ output
      │        ├─ dense            Linear     [32, 56] + bias  f32  2 × 1824  LoRA r=4 ×2
      │        └─ LayerNorm        LayerNorm  [32]             f32    2 × 64
      └─ pooler
         └─ dense                  Linear     [32, 32] + bias  f32      1056  LoRA r=4 ×2
    classifier                     Linear     [3, 32] + bias   f32        99  trained whole
    trainable params: 3,811 || all params: 25,654 || trainable%: 14.8554
    heads: masked-lm, causal-lm, seq-cls, token-cls, question-ans, feature-extraction
    not in the files, start fresh: bert.pooler.dense.weight, bert.pooler.dense.bias, classifier.weight, classifier.bias
    in the files, unused: cls.predictions.bias, cls.predictions.transform.LayerNorm.bias, cls.predictions.transform.LayerNorm.weight, cls.predictions.transform.dense.bias, cls.predictions.transform.dense.weight
    ");
    Ok(())
}

#[test]
fn the_json_lists_every_module() -> Result<()> {
    let object = &objects(&inspect(&[&stories(), "--json"])?)?[0];
    let modules = object["modules"].as_array().ok_or("no modules")?;
    assert_eq!(modules.len(), 5 * 9 + 3);
    let own = modules.iter().filter_map(|m| m["parameters"].as_u64());
    assert_eq!(Some(own.sum::<u64>()), object["base_parameters"].as_u64());
    let lora = |m: &&serde_json::Value| !m["lora"].is_null();
    assert_eq!(modules.iter().filter(lora).count(), 10);
    Ok(())
}

#[test]
fn a_target_that_matches_nothing_is_an_error() -> Result<()> {
    insta::assert_snapshot!(failure(["inspect", &stories(), "--lora-target", "qproj"])?, @"1: error: `target_modules` (`qproj`) matches no module; the model has `embed_tokens`, `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`, `lm_head`");
    Ok(())
}

/// Falcon as its authors' own code had it.
#[test]
fn classes_of_the_authors_own_code_name_the_task() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let weights = "model.safetensors";
    std::fs::copy(model("falcon_own").join(weights), folder.path().join(weights))?;
    let config = serde_json::json!({
        "model_type": "RefinedWebModel", "architectures": ["RWForSequenceClassification"],
        "alibi": true, "bias": true, "n_head": 9, "n_layer": 2, "hidden_size": 18,
        "vocab_size": 37, "layer_norm_epsilon": 1e-5,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    let text = inspect(&[&folder.path().display().to_string()])?;
    assert!(text.contains(": FalconForSequenceClassification (falcon, seq-cls)"), "{text}");
    Ok(())
}

#[test]
fn heads_that_are_trained_whole_get_no_adapter_with_all() -> Result<()> {
    let bert = model("bert").display().to_string();
    for (task, head) in [("question-ans", "qa_outputs "), ("token-cls", "classifier ")] {
        let with = |targets| [&bert, "--task", task, "--lora_target", targets].map(String::from);
        let text = stdout(["inspect"].map(String::from).iter().chain(&with("all")))?;
        let line = text.lines().find(|line| line.starts_with(head)).ok_or("no head")?;
        assert!(line.ends_with("trained whole"), "{line}");
        // PEFT's all-linear takes the head and then refuses it.
        let said = failure(["inspect"].map(String::from).iter().chain(&with("all-linear")))?;
        let advice = format!("add `{}` to `exclude_modules`", head.trim_end());
        assert!(said.contains(&advice), "{said}");
    }
    Ok(())
}
