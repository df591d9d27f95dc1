//! Rows with pictures: as transformers trains BLIP-2 on them, and what is said about bad ones.
//! `fixtures/run/make_pictures.py` made the numbers.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lowrank_data::Example;
use serde_json::{Value, json};

use crate::{
    golden,
    harness::{Case, fixture},
};

fn case(name: &str, tokenizer: &str, rows: &str) -> Case {
    let media = format!("media_dir={}", fixture("pictures").display());
    let keys = [
        media.as_str(),
        "lora_target=q,v,q_proj,v_proj",
        "disable_shuffling=true",
        "per_device_train_batch_size=3",
        "max_steps=3",
        "learning_rate=1.0e-2",
        "max_grad_norm=1.0",
        "lr_scheduler_type=constant",
    ];
    Case::tiny(&fixture(&format!("{name}_base")), tokenizer, rows, &keys)
}

fn kept(name: &str) -> String {
    fs::read_to_string(fixture(&format!("{name}.jsonl"))).unwrap()
}

fn opt(rows: &str) -> Case {
    case("blip_2_opt", "opt_tokenizer", rows)
}

#[test]
fn blip_2_over_a_decoder_equals_transformers() {
    golden::check(&opt(&kept("blip_2_opt")), "blip_2_opt");
}

#[test]
fn blip_2_over_an_encoder_decoder_equals_transformers() {
    golden::check(&case("blip_2_t5", "t5_tokenizer", &kept("blip_2_t5")), "blip_2_t5");
}

#[test]
fn pictures_within_parquet_are_those_of_the_files() {
    golden::check(&opt("").with_file(fixture("blip_2_opt.parquet")), "blip_2_opt");
    let expected = opt(&kept("blip_2_opt")).setup(&[]).rows.train;
    let parts = opt("").with_file(fixture("blip_2_opt_parts.parquet")).setup(&[]).rows.train;
    assert_eq!(parts.len(), expected.len());
    for (found, expected) in parts.into_iter().zip(&expected) {
        assert_eq!(from(found, expected), *expected);
    }
}

/// An example as if it came from where another comes from.
fn from(mut found: Example, other: &Example) -> Example {
    found.source = other.source.clone();
    if let (Some(found), Some(other)) = (&mut found.picture, &other.picture) {
        found.source = other.source.clone();
    }
    found
}

/// In all shapes that rows with pictures may have.
#[test]
fn the_same_row_is_read_from_every_format() {
    let expected = opt(&kept("blip_2_opt")).setup(&["max_samples=1"]).rows.train.remove(0);
    let row: Value = serde_json::from_str(kept("blip_2_opt").lines().next().unwrap()).unwrap();
    let (asked, answer) = (row["prompt"].as_str().unwrap(), &row["completion"]);
    let asked = [format!("<image>\n{asked}"), format!("{asked} <image>"), asked.to_owned()];
    let picture = &row["images"];
    let bytes = fs::read(fixture("pictures").join(picture[0].as_str().unwrap())).unwrap();
    let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
    let with_parts = |image: Value| {
        json!([
            {"role": "user", "content": [image, {"type": "text", "text": asked[2]}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ])
    };
    for row in [
        json!({"instruction": asked[0], "output": answer, "images": picture}),
        json!({"instruction": asked[1], "output": answer, "images": picture[0]}),
        json!({"images": picture, "conversations": [
            {"from": "human", "value": asked[0]}, {"from": "gpt", "value": answer}]}),
        json!({"images": picture, "messages": [
            {"role": "user", "content": asked[1]}, {"role": "assistant", "content": answer}]}),
        json!({"prompt": asked[0], "completion": answer, "images": picture}),
        json!({"images": picture, "messages": with_parts(json!({"type": "image", "text": null}))}),
        json!({"messages": with_parts(json!({"type": "image", "path": picture[0]}))}),
        json!({"messages": with_parts(json!({"type": "image_url", "image_url": {"url": url}}))}),
        json!({"messages": with_parts(json!({"type": "image_url", "image_url": url}))}),
        json!({"image": {"bytes": url}, "prompt": [{"role": "user", "content": asked[2]}],
            "completion": [{"role": "assistant", "content": answer}]}),
    ] {
        let found = opt(&(row.to_string() + "\n")).setup(&[]).rows.train.remove(0);
        assert_eq!(from(found, &expected), expected, "{row}");
    }
}

#[test]
fn bad_pictures_are_named_with_their_rows() {
    let good = kept("blip_2_opt");
    let case = |row: Value| opt(&format!("{good}{row}\n"));
    let row = |picture: Value| json!({"prompt": "w1", "completion": " w2", "images": picture});
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.png");
    fs::write(&damaged, b"\x89PNG\r\n\x1a\n no more").unwrap();
    let damaged = damaged.display().to_string();
    let twice = json!({
        "instruction": "<image> w1 <image>", "output": "w2", "images": ["rgb.png"], "prompt": null
    });
    for (row, part) in [
        (row(json!(["absent.png"])), "picture `absent.png`: there is no such file"),
        (row(json!([damaged])), damaged.as_str()),
        (row(json!(["rgb.png", "grey.png"])), "one picture a row; the row has 2"),
        (row(json!([])), "one picture a row; the row has 0"),
        (row(json!([7])), "field `images[0]` is the number `7`; it must be a text"),
        (row(json!([{"bytes": null, "path": null}])), "field `images[0]` is an object"),
        (row(json!(["https://a.b/c.png"])), "lowrank opens no network connection"),
        (row(json!(["data:image/png;base64,?"])), "doesn't hold a picture in base64"),
        (row(json!(["data:image/png;base64,AAAA"])), "picture `3 bytes in the row`: "),
    ] {
        let case = case(row);
        let error = case.error("out", &[]);
        let place = format!("{}:7 (row 6): ", case.rows());
        assert!(error.starts_with(&place) && error.contains(part), "{error}");
        let setup = case.setup(&["skip_bad_rows=true"]);
        assert_eq!((setup.rows.train.len(), setup.rows.skipped.len()), (6, 1));
    }
    let error = opt(&format!("{twice}\n")).error("out", &[]);
    assert!(error.contains("`<image>` 2 times for one picture"), "{error}");
}

#[test]
fn a_model_that_sees_nothing_refuses_pictures() {
    let case = Case::novel(&[]).with_rows(&kept("blip_2_opt"));
    let media = format!("media_dir={}", fixture("pictures").display());
    let error = case.error("out", &[&media, "skip_bad_rows=true"]);
    assert!(error.contains("the model (llama) sees none"), "{error}");
    let error = opt(&kept("blip_2_opt")).error("out", &["cutoff_len=2"]);
    assert!(error.contains("`cutoff_len`: has no room"), "{error}");
}

#[test]
fn a_picture_that_changes_stops_the_run_and_the_resuming() {
    let case = opt("");
    let picture = case.path("own.png");
    fs::copy(fixture("pictures/rgb.png"), &picture).unwrap();
    let row =
        |i: usize| json!({"prompt": format!("w{i}"), "completion": " w2", "images": "own.png"});
    let rows: String = (0..6).map(|i| format!("{}\n", row(i))).collect();
    let case = case.with_rows(&rows);
    case.try_run("out", &[], Some(2)).0.unwrap();
    fs::copy(fixture("pictures/grey.png"), &picture).unwrap();
    let error = case.error("out", &[]);
    assert!(error.contains("other data"), "{error}");
    let setup = case.setup(&[]);
    fs::copy(fixture("pictures/rgb.png"), &picture).unwrap();
    let first = &setup.rows.train[0];
    let error = setup.collator.batch(&[(0, first)]).unwrap_err().to_string();
    assert!(error.contains("(row 0)") && error.contains("has changed"), "{error}");
}

#[test]
fn all_leaves_out_the_parts_that_see_unless_asked() {
    let targets = |more: &[&str]| {
        let keys = [&["lora_target=all", "max_steps=1"], more].concat();
        let case = opt(&kept("blip_2_opt"));
        case.run("out", &keys);
        case.adapter("out").into_keys().collect::<Vec<String>>()
    };
    let has = |names: &[String], part: &str| names.iter().any(|name| name.contains(part));
    let usual = targets(&[]);
    assert!(has(&usual, "language_model") && has(&usual, ".fc1."), "{usual:?}");
    assert!(!has(&usual, "vision_model") && !has(&usual, "qformer"), "{usual:?}");
    let seen = targets(&[
        "freeze_vision_tower=false",
        "freeze_multi_modal_projector=false",
        "freeze_language_model=true",
    ]);
    assert!(has(&seen, "vision_model") && has(&seen, "language_projection"), "{seen:?}");
    assert!(!has(&seen, "language_model"), "{seen:?}");
}
