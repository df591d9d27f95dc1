//! Dropout in training: every dropout that a config names does something, and a block that is run
//! again in the backward pass drops the same.

use std::path::Path;

use lowrank_autograd::{Gradients, Key, RowKeys, ops};
use lowrank_models::{Input, Model, OpenOptions, get_peft_model};
use lowrank_peft::{LoraConfig, lora_config::TargetModules};
use serde_json::{Value, json};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Loss and gradients of a fixture, a fresh adapter on `target`, at a step of training.
fn trained(
    name: &str,
    target: &str,
    fields: &[(&str, Value)],
    step: u64,
    checkpointing: bool,
) -> Result<(f32, Vec<Vec<f32>>)> {
    let overrides = fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let model = Model::open(&folder, &OpenOptions { overrides, ..OpenOptions::default() })?;
    let config =
        LoraConfig { target_modules: TargetModules::names([target]), ..LoraConfig::default() };
    let peft = get_peft_model(model, &config, 7)?;
    let rows: RowKeys = (0..7).collect();
    let pass = peft.recording().with_dropout(Key::new(3).with(step), rows);
    let pass = pass.with_checkpointing(checkpointing);
    let input = Input::packed(&[vec![3, 4, 5, 6, 7], vec![8, 9]]);
    let logits = peft.model().logits(&input, None, &pass)?;
    let loss = ops::cross_entropy(&logits, &[4, 5, 6, 7, 8, 9, 10].into())?;
    let mut gradients = Gradients::new();
    loss.backward(1.0, &mut gradients)?;
    let trained = peft.trainable();
    let found = trained.iter().map(|parameter| -> Result<Vec<f32>> {
        let gradient = gradients.get(parameter.id()).ok_or("no gradient")?;
        Ok(gradient.flatten_all()?.to_vec1()?)
    });
    Ok((loss.data().to_scalar()?, found.collect::<Result<_>>()?))
}

fn check(name: &str, target: &str, fields: &[(&str, Value)]) -> Result<()> {
    let none = trained(name, target, &[], 1, false)?;
    for field in fields {
        let one = trained(name, target, std::slice::from_ref(field), 1, false)?;
        assert_ne!(one.0, none.0, "{name}: `{}` drops nothing", field.0);
    }
    let all = trained(name, target, fields, 1, false)?;
    assert_eq!(trained(name, target, fields, 1, true)?, all, "{name}: run again");
    assert_ne!(trained(name, target, fields, 2, false)?.0, all.0, "{name}: the next step");
    Ok(())
}

#[test]
fn decoders_of_the_gpt_family_drop_the_same_when_a_block_is_run_again() -> Result<()> {
    let drop = |field| (field, json!(0.3));
    let gpt2 = [drop("embd_pdrop"), drop("attn_pdrop"), drop("resid_pdrop")];
    let none = gpt2.each_ref().map(|(field, _)| (*field, json!(0.0)));
    assert_eq!(
        trained("gpt2_own", "c_attn", &none, 1, false)?,
        trained("gpt2_own", "c_attn", &none, 2, true)?
    );
    check("gpt_neox_own", "query_key_value", &["attention_dropout", "hidden_dropout"].map(drop))?;
    check("falcon_own", "query_key_value", &["attention_dropout", "hidden_dropout"].map(drop))?;
    check("opt_own", "q_proj", &[drop("attention_dropout"), ("dropout", json!(0.4))])?;
    check(
        "mpt_own",
        "Wqkv",
        &[("attn_config", json!({"attn_pdrop": 0.3, "clip_qkv": 0.7, "softmax_scale": 0.5}))],
    )
}

#[test] // gradients of a source are summed up in another order where blocks are run again
fn what_reads_a_source_twice_drops_the_same_when_a_block_is_run_again() -> Result<()> {
    let fields = ["dropout", "attention_dropout", "activation_dropout"];
    let fields = fields.map(|field| (field, json!(0.3)));
    let run = |step, again| trained("bart_own", "q_proj", &fields, step, again);
    let ((loss, found), (same, expected)) = (run(1, true)?, run(1, false)?);
    assert_eq!(loss, same);
    assert_ne!(loss, run(2, true)?.0);
    let pairs = found.concat().into_iter().zip(expected.concat());
    pairs.for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a}, expected {b}"));
    Ok(())
}

#[test]
fn disentangled_attention_drops_the_same_when_a_block_is_run_again() -> Result<()> {
    let fields = ["hidden_dropout_prob", "attention_probs_dropout_prob"];
    check("deberta_v2_own", "query_proj", &fields.map(|field| (field, json!(0.3))))
}
