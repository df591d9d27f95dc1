//! What becomes of folders that lack a head, have another one, or ask for what isn't implemented.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{Device, Tensor};
use lowrank_autograd::{Gradients, Key, RowKeys, Value, ops};
use lowrank_models::{
    Config, Context, Family, GenerateOptions, Input, Model, OpenOptions, SaveOptions, Task,
    generate,
};
use lowrank_peft::{
    Pass,
    layers::Layer,
    methods::lora::{InitLora, LoraLayer, LoraShape, LoraTensors},
};
use serde_json::json;
use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A folder like the fixture, whose tensors have other names; those without one are left out.
fn renamed(name: &str, rename: impl Fn(&str) -> Option<String>) -> Result<TempDir> {
    let (from, to) = (fixture(name), tempfile::tempdir()?);
    std::fs::copy(from.join("config.json"), to.path().join("config.json"))?;
    let tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu)?;
    let kept = tensors.into_iter().filter_map(|(name, tensor)| Some((rename(&name)?, tensor)));
    let kept: std::collections::HashMap<String, Tensor> = kept.collect();
    candle_core::safetensors::save(&kept, to.path().join("model.safetensors"))?;
    Ok(to)
}

fn open(folder: &Path, task: Task) -> Result<Model> {
    Ok(Model::open(folder, &OpenOptions { task: Some(task), ..OpenOptions::default() })?)
}

fn states(model: &Model) -> Result<Vec<Vec<f32>>> {
    let input = Input::packed(&[vec![3, 4, 5, 6], vec![7, 8]]);
    let pass = Pass::inference(Arc::default());
    Ok(model.network().forward(&input, Context::default(), &pass)?.data().to_vec2()?)
}

#[test]
fn a_bare_bert_opens_under_every_head() -> Result<()> {
    let bare = renamed("bert", |name| name.strip_prefix("bert.").map(str::to_owned))?;
    let whole = states(&open(&fixture("bert"), Task::MaskedLm)?)?;
    let transform = "cls.predictions.transform";
    let pooler = ["bert.pooler.dense.weight".to_owned(), "bert.pooler.dense.bias".to_owned()];
    let layer = |name: &str| vec![format!("{name}.weight"), format!("{name}.bias")];
    let fresh = BTreeMap::from([
        (Task::SeqCls, [pooler.to_vec(), layer("classifier")].concat()),
        (Task::TokenCls, layer("classifier")),
        (Task::QuestionAns, layer("qa_outputs")),
        (Task::FeatureExtraction, layer("pooler.dense")),
        (
            Task::MaskedLm,
            [
                layer(&format!("{transform}.dense")),
                layer(&format!("{transform}.LayerNorm")),
                vec!["cls.predictions.bias".to_owned()],
            ]
            .concat(),
        ),
    ]);
    for (task, fresh) in fresh {
        let model = open(bare.path(), task)?;
        assert_eq!(model.fresh, fresh, "{task:?}");
        assert_eq!(model.unused, Vec::<String>::new(), "{task:?}");
        assert_eq!(states(&model)?, whole, "{task:?}");
    }
    Ok(())
}

#[test]
fn another_head_is_left_unused() -> Result<()> {
    let model = open(&fixture("bert"), Task::TokenCls)?;
    assert!(!model.unused.is_empty());
    assert!(model.unused.iter().all(|name| name.starts_with("cls.")), "{:?}", model.unused);
    assert_eq!(model.fresh, ["classifier.weight", "classifier.bias"]);
    assert_eq!(open(&fixture("gpt2"), Task::SeqCls)?.fresh, ["score.weight"]);
    Ok(())
}

#[test] // older files hold copies of what is tied, and old names of norms
fn copies_of_tied_tensors_are_neither_unused_nor_untied() -> Result<()> {
    let old = renamed("bert", |name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        Some(name.replace("LayerNorm.bias", "LayerNorm.beta"))
    })?;
    let path = old.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let copies = [
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ];
    for (from, to) in copies {
        let copy = tensors.get(from).ok_or("no such tensor")?.copy()?;
        tensors.insert(to.to_owned(), copy);
    }
    candle_core::safetensors::save(&tensors, &path)?;
    let model = open(old.path(), Task::MaskedLm)?;
    assert_eq!((model.fresh.len(), model.unused.len()), (0, 0));
    let decoder = model.modules.layer("cls.predictions.decoder").ok_or("no decoder")?;
    let tied = decoder.tensors().into_iter().find_map(|t| t.tied_to().map(str::to_owned));
    assert_eq!(tied.as_deref(), Some("bert.embeddings.word_embeddings.weight"));
    Ok(())
}

/// The error of a fixture whose config has another value.
fn error(name: &str, key: &str, value: serde_json::Value) -> String {
    error_of(name, vec![(key.to_owned(), value)])
}

fn error_of(name: &str, overrides: Vec<(String, serde_json::Value)>) -> String {
    let options = OpenOptions { overrides, ..OpenOptions::default() };
    match Model::open(&fixture(name), &options) {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (name, key, value) in [
        ("gpt2", "add_cross_attention", true.into()),
        ("bert", "add_cross_attention", true.into()),
        ("deberta_v2_own", "is_decoder", true.into()),
        ("bert", "position_embedding_type", "relative_key".into()),
        ("t5", "dense_act_fn", "glu".into()),
        ("gpt2", "activation_function", "swoosh".into()),
        ("gemma2_own", "use_bidirectional_attention", true.into()),
        ("phi3_own", "lm_head_bias", true.into()),
        ("gemma2_own", "layer_types", json!(["full_attention", "chunked_attention"])),
        ("falcon_own", "apply_residual_connection_post_layernorm", true.into()),
        ("mpt_own", "logit_scale", 0.5.into()),
        ("mpt_own", "norm_type", "rmsnorm".into()),
        ("opt_own", "layerdrop", 0.1.into()),
    ] {
        let message = error(name, key, value);
        assert!(message.contains(&format!("`{key}` is ")), "{message}");
        assert!(message.contains("isn't implemented; known: "), "{message}");
    }
    let fields = [("feed_forward_proj", "gated-glu".into()), ("dense_act_fn", json!(null))];
    let message = error_of("t5", fields.map(|(key, value)| (key.to_owned(), value)).into());
    assert!(message.contains("`feed_forward_proj` is "), "{message}");
    let message = error("gpt2", "n_head", 5.into());
    assert!(
        message.ends_with("field `n_embd` is `32`; it must be a multiple of `n_head`, which is 5")
    );
    for (key, value) in [("alibi", false.into()), ("alibi_bias_max", 4.into())] {
        let attention: serde_json::Map<_, _> = [(key.to_owned(), value)].into_iter().collect();
        let message = error("mpt_own", "attn_config", attention.into());
        assert!(message.contains(&format!("`attn_config.{key}` is ")), "{message}");
    }
    // Three layouts, and nothing between them.
    for (key, value) in [("num_kv_heads", 3.into()), ("new_decoder_architecture", true.into())] {
        let message = error("falcon_own", key, value);
        assert!(message.contains("it must be "), "{message}");
    }
    let message = error("t5", "relative_attention_num_buckets", 2.into());
    assert!(message.ends_with("it must be at least 4"), "{message}");
}

#[test]
fn an_encoder_is_a_decoder_where_its_config_says_so() -> Result<()> {
    let open = |task, is_decoder: bool| {
        let overrides = vec![("is_decoder".to_owned(), is_decoder.into())];
        Model::open(&fixture("bert"), &OpenOptions { task, overrides, ..OpenOptions::default() })
    };
    let message = open(Some(Task::CausalLm), false).map(drop).expect_err("it looks ahead");
    assert!(message.to_string().contains("field `is_decoder` is `false`"), "{message}");
    let both = open(None, false)?;
    assert_eq!((both.task, both.family), (Task::MaskedLm, Family::Encoder));
    let left = open(None, true)?;
    assert_eq!((left.task, left.family), (Task::CausalLm, Family::Decoder));
    assert_eq!(left.architecture.class_for(left.task).as_deref(), Some("BertLMHeadModel"));
    // The mask is the same under another head.
    let masked = open(Some(Task::MaskedLm), true)?;
    assert_eq!(masked.family, Family::Decoder);
    assert_eq!(states(&masked)?, states(&left)?);
    assert_ne!(states(&masked)?, states(&both)?);
    Ok(())
}

#[test]
fn both_halves_open_as_the_decoder_alone() -> Result<()> {
    let whole = fixture("bart_own");
    let model = open(&whole, Task::CausalLm)?;
    assert_eq!((model.family, model.fresh.len()), (Family::Decoder, 0));
    // The table is the one of both, under the name that transformers gives it here.
    let table = model.network().table().weight().name().to_owned();
    assert_eq!(table, "model.decoder.embed_tokens.weight");
    let is_rest = |name: &&String| name.contains("encoder.") || *name == "final_logits_bias";
    let rest: Vec<&String> = model.unused.iter().filter(|name| !is_rest(name)).collect();
    assert!(rest.is_empty(), "{rest:?}");
    let saved = model.saved(&SaveOptions::default())?;
    let config = &saved.texts()?[0].1;
    let config = Config::parse("config.json".to_owned(), config)?;
    assert_eq!(config.words("architectures")?, Some(vec!["BartForCausalLM"]));
    assert_eq!(model.architecture.default_task(&config)?, Task::CausalLm);
    Ok(())
}

/// RoBERTa as a decoder, with BERT's weights and a fresh head.
fn roberta() -> Result<(Model, TempDir)> {
    let folder =
        renamed("bert", |name| name.strip_prefix("bert.").map(|rest| format!("roberta.{rest}")))?;
    let fields = [
        ("model_type", json!("roberta")),
        ("pad_token_id", json!(1)),
        ("is_decoder", json!(true)),
        ("initializer_range", json!(0.3)),
    ];
    let overrides = fields.map(|(key, value)| (key.to_owned(), value)).to_vec();
    let model = Model::open(folder.path(), &OpenOptions { overrides, ..OpenOptions::default() })?;
    Ok((model, folder))
}

#[test]
fn positions_that_count_ids_go_on_behind_a_cache() -> Result<()> {
    let (model, _folder) = roberta()?;
    let pass = Pass::inference(Arc::default());
    let prompts = [vec![7, 8, 9, 10], vec![11, 12]];
    let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
    let new = generate(&model, &pass, &prompts, &options, |_, _| true)?;
    for (prompt, new) in prompts.iter().zip(&new) {
        let whole = [prompt.as_slice(), new].concat();
        let logits = model.logits(&Input::packed(&[whole]), None, &pass)?;
        let likeliest = logits.data().argmax(1)?.to_vec1::<u32>()?;
        assert_eq!(&likeliest[prompt.len() - 1..prompt.len() + 5], new.as_slice());
    }
    // Where positions are given they count instead.
    let first_positions = vec![0, 0];
    let options = GenerateOptions { first_positions, ..options };
    assert_ne!(generate(&model, &pass, &prompts, &options, |_, _| true)?, new);
    Ok(())
}

#[test]
fn chatglm_is_refused_where_it_is_of_another_kind() {
    for (key, value) in [
        ("position_encoding_2d", true.into()),
        ("post_layer_norm", false.into()),
        ("apply_residual_connection_post_layernorm", true.into()),
        ("pre_seq_len", 128.into()),
        ("quantization_bit", 4.into()),
        ("rope_ratio", 50.into()),
    ] {
        let sizes = [
            ("model_type", json!("chatglm")),
            ("_name_or_path", json!("chatglm2-6b-32k")),
            ("multi_query_attention", json!(true)),
            ("multi_query_group_num", json!(2)),
            ("ffn_hidden_size", json!(8)),
            ("padded_vocab_size", json!(8)),
            ("num_layers", json!(1)),
            (key, value),
        ];
        let message = error_of("llama", sizes.map(|(key, value)| (key.to_owned(), value)).to_vec());
        assert!(message.contains(&format!("`{key}` is ")), "{message}");
        assert!(message.contains("isn't implemented; known: "), "{message}");
    }
}

#[test]
fn stretched_positions_that_do_not_fit_are_explained() {
    let positions = |kind: &str, long: serde_json::Value| {
        let short = [1.0; 4];
        let given = json!({"rope_type": kind, "short_factor": short, "long_factor": long});
        error("phi3_own", "rope_parameters", given)
    };
    let message = positions("longrope", json!([1.0, 2.0]));
    assert!(message.contains("long_factor") && message.contains("4 numbers above 0"), "{message}");
    let message = positions("longrope", json!([1.0, 2.0, 3.0, -1.0]));
    assert!(message.contains("long_factor"), "{message}");
    let message = positions("linear", json!([1.0, 2.0, 3.0, 4.0]));
    assert!(message.contains("rope_type") && message.contains("longrope"), "{message}");
}

#[test]
fn a_sequence_beyond_the_table_of_positions_is_explained() -> Result<()> {
    for (name, field, rows) in [
        ("gpt2", "n_positions", 40),
        ("bert", "max_position_embeddings", 40),
        ("opt_own", "max_position_embeddings", 24),
    ] {
        let model = Model::open(&fixture(name), &OpenOptions::default())?;
        let pass = Pass::inference(Arc::default());
        let logits = |n: usize| model.logits(&Input::packed(&[vec![3; n]]), None, &pass);
        assert!(logits(rows).is_ok());
        let message = logits(rows + 1).map(drop).expect_err("one too many").to_string();
        let must_be = format!("`{field}` in `config.json` is {rows}");
        let tokens = format!("{} tokens", rows + 1);
        assert!(message.contains(&tokens) && message.contains(&must_be), "{message}");
    }
    Ok(())
}

#[test]
fn a_decoder_without_its_source_is_an_error() -> Result<()> {
    let model = Model::open(&fixture("t5"), &OpenOptions::default())?;
    let pass = Pass::inference(Arc::default());
    let two = Input::packed(&[vec![3, 4], vec![5]]);
    assert!(model.logits(&two, None, &pass).is_err());
    let one = Input::packed(&[vec![3, 4, 5]]);
    assert!(model.target_logits((&one, &pass), (&two, &pass), None).is_err());
    Ok(())
}

/// Gradients of T5 v1.1 in training: every dropout on, sources longer than targets.
fn trained(dropout: f64, step: u64, checkpointing: bool) -> Result<(f32, Vec<f32>)> {
    let mut options = OpenOptions::default();
    options.overrides.push(("dropout_rate".to_owned(), dropout.into()));
    let model = Model::open(&fixture("t5_own"), &options)?;
    let shape = LoraShape { r: 2, scaling: 1.0, dropout: dropout as f32, lora_bias: false };
    let lora = |path: &str, tensors: &LoraTensors| {
        LoraLayer::new(
            path,
            [format!("{path}.A"), format!("{path}.B"), String::new()],
            tensors,
            shape,
        )
    };
    let table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    let rows = LoraTensors::fresh_rows(InitLora::Random, 2, [8, 2], Key::new(1))?;
    let on_table = lora(table, &rows)?;
    // Reads the source's rows in the target's pass.
    let value = "decoder.block.0.layer.1.EncDecAttention.v";
    let on_value =
        lora(value, &LoraTensors::fresh(InitLora::Random, shape, [12, 16], Key::new(2))?)?;
    let b = [on_table.b.id(), on_value.b.id()];
    match (model.modules.layer(table), model.modules.layer(value)) {
        (Some(Layer::Embedding(table)), Some(Layer::Linear(value))) => {
            table.set_adapter("default", on_table);
            value.set_adapter("default", on_value);
        }
        _ => return Err("no table or no values".into()),
    }
    let pass = |n: u64, stream: u64| {
        let rows: RowKeys = (0..n).map(|row| stream << 32 | row).collect();
        Pass::recording(["default".to_owned()].into())
            .with_dropout(Key::new(7).with(step), rows)
            .with_checkpointing(checkpointing)
    };
    let source = Input::packed(&[vec![3, 4, 5, 6, 7, 8, 9], vec![10, 11, 12, 13]]);
    let target = Input::packed(&[vec![0, 4, 5], vec![0, 6]]);
    let logits = model.target_logits((&source, &pass(11, 1)), (&target, &pass(5, 2)), None)?;
    let loss: Value = ops::cross_entropy(&logits, &[4, 5, 1, 6, 1].into())?;
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients)?;
    let mut found = Vec::new();
    for id in b {
        found.extend(gradients.get(id).ok_or("no gradient")?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok((loss.data().to_scalar()?, found))
}

#[test]
fn t5_drops_the_same_when_a_block_is_run_again() -> Result<()> {
    let (loss, gradient) = trained(0.3, 1, false)?;
    assert_eq!(trained(0.3, 1, true)?, (loss, gradient));
    assert_ne!(trained(0.3, 2, false)?.0, loss);
    assert_ne!(trained(0.0, 1, false)?.0, loss);
    Ok(())
}
