//! Named templates: what isn't known is said, thoughts come and go as asked, tokenizers are fitted.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use lowrank_data::{
    Conversation, DataOptions, Encoder, IGNORE_INDEX, Labels, Message, Response, Role, RowRef,
    Sample, Special, Template, Tokenizer, pieces, segments, template_names,
};

fn chat_tokenizer() -> Tokenizer {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    Tokenizer::open(folder).unwrap()
}

fn named(template: &str) -> DataOptions {
    DataOptions { template: Some(template.to_owned()), ..DataOptions::default() }
}

/// User and model in turn, with tools.
fn conversation(turns: &[&str], tools: &str) -> Sample {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let mut messages: Vec<_> =
        turns.iter().zip(roles).map(|(text, role)| Message::new(role, *text)).collect();
    let answer = messages.pop().unwrap();
    Sample::Conversation(Conversation {
        at: RowRef { file: Path::new("test").into(), row: 0, line: None },
        system: String::new(),
        tools: tools.to_owned(),
        prompt: messages,
        response: Response::Answer(answer),
        only_answer: false,
        original: None,
        images: Vec::new(),
    })
}

/// The text of a row, with what is trained in ‹ ›.
fn marked(options: DataOptions, sample: &Sample) -> String {
    let encoder = Encoder::new(chat_tokenizer(), options).unwrap();
    let example = encoder.sft(sample).unwrap_or_else(|e| panic!("{e}"));
    let runs = segments(encoder.tokenizer(), &example).unwrap();
    runs.iter().map(|s| if s.trained { format!("‹{}›", s.text) } else { s.text.clone() }).collect()
}

#[test]
fn every_name_is_there() {
    let names = template_names().unwrap();
    assert_eq!(names.len(), 124);
    assert!(names.is_sorted());
    let mut unknown = Vec::new();
    for name in &names {
        let text = DataOptions { default_system: Some(String::new()), ..DataOptions::default() };
        assert_eq!(Template::named(name, &text).unwrap().name(), name);
        if Template::named(name, &DataOptions::default()).is_err() {
            unknown.push(name.as_str());
        }
    }
    let expected = [
        "granite3_vision",
        "intern_vl",
        "kimi_vl",
        "lfm2_vl",
        "llava",
        "llava_next",
        "llava_next_video",
        "mimo_vl",
        "minicpm_o",
        "video_llava",
        "yi_vl",
    ];
    assert_eq!(unknown, expected);
    let said = Template::named("llava", &DataOptions::default()).unwrap_err().to_string();
    assert!(said.contains("set `default_system`"), "{said}");
    let said = Template::named("qwen4", &DataOptions::default()).unwrap_err().to_string();
    assert!(said.starts_with("unknown template `qwen4`; did you mean `qwen"), "{said}");
}

#[test]
fn thoughts_come_and_go() {
    let turns = ["a", "<think>\nx\n</think>\n\nb", "c", "d"];
    let sample = conversation(&turns, "");
    let (user, end) = ("<|im_start|>user\n", "<|im_end|>\n");
    let model = "<|im_start|>assistant\n";
    let thought = "<think>\nx\n</think>\n\n";
    let empty = "<think>\n\n</think>\n\n";
    let with = |enable_thinking, mask_history, preserve_thinking| DataOptions {
        enable_thinking,
        mask_history,
        preserve_thinking,
        ..named("qwen3")
    };
    let text = |first: &str, second: &str| {
        format!("{user}a{end}{model}{first}{user}c{end}{model}{second}")
    };
    assert_eq!(
        marked(with(Some(true), false, false), &sample),
        text(&format!("‹{thought}b{end}›"), &format!("‹{empty}d{end}›"))
    );
    assert_eq!(
        marked(with(Some(false), false, false), &sample),
        text(&format!("{empty}‹b{end}›"), &format!("{empty}‹d{end}›"))
    );
    assert_eq!(
        marked(with(None, false, false), &sample),
        text(&format!("‹{thought}b{end}›"), &format!("{empty}‹d{end}›"))
    );
    assert_eq!(
        marked(with(Some(true), true, false), &sample),
        text(&format!("b{end}"), &format!("‹{empty}d{end}›"))
    );
    assert_eq!(
        marked(with(Some(true), true, true), &sample),
        text(&format!("{thought}b{end}"), &format!("‹{empty}d{end}›"))
    );
}

#[test]
fn unknown_tool_texts_are_an_error() {
    let sample = conversation(&["a", "b"], r#"[{"name": "f", "description": "d"}]"#);
    let said = |options: DataOptions| {
        let encoder = Encoder::new(chat_tokenizer(), options).unwrap();
        encoder.sft(&sample).unwrap_err().to_string()
    };
    assert!(said(named("qwen3_5")).contains("tool_format `qwen3_5`: its texts aren't known"));
    assert!(said(named("llama3")).contains("writes today's date, and none was given"));
    let other = DataOptions { tool_format: Some("qwen".to_owned()), ..named("qwen3_5") };
    assert!(marked(other, &sample).contains("\n# Tools\n"));
    let wrong = DataOptions { tool_format: Some("qwem".to_owned()), ..named("qwen3") };
    let said = Encoder::new(chat_tokenizer(), wrong).unwrap_err().to_string();
    assert_eq!(said, "unknown tool_format `qwem`; did you mean `qwen`?");
}

#[test]
fn options_that_exclude_each_other() {
    let wrong = [
        DataOptions { train_on_prompt: true, mask_history: true, ..named("qwen") },
        DataOptions { train_on_prompt: true, ..named("glm4") },
        DataOptions { cutoff_len: 0, ..named("qwen") },
        DataOptions { ignore_pad_token_for_loss: false, ..named("qwen") },
    ];
    for options in wrong {
        assert!(Encoder::new(chat_tokenizer(), options).is_err());
    }
}

#[test]
fn the_tokenizer_is_fitted_and_saved() {
    let encoder = Encoder::new(chat_tokenizer(), named("llama3")).unwrap();
    let tokenizer = encoder.tokenizer();
    let fixes = encoder.chat().tokenizer_fixes();
    assert_eq!(fixes.eos.as_deref(), Some("<|eot_id|>"));
    assert_eq!(fixes.added, ["<|eot_id|>", "<|eom_id|>"]);
    let ids = ["<|eot_id|>", "<|eom_id|>"].map(|t| tokenizer.token_id(t).unwrap());
    assert_eq!(tokenizer.eos_id(), Some(ids[0]));
    assert_eq!(tokenizer.stop_ids(), ids);
    assert_eq!(tokenizer.vocab_size(), 422);
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let saved = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(saved.eos_id(), tokenizer.eos_id());
    let text = "The Danube<|eot_id|>";
    assert_eq!(saved.encode(text).unwrap(), tokenizer.encode(text).unwrap());
}

#[test]
fn special_tokens_in_any_spelling() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/tokenizer.json");
    std::fs::copy(from, folder.path().join("tokenizer.json")).unwrap();
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<|im_start|>", "lstrip": false}, "pad_token": null,
            "tokenizer_class": "GPT2Tokenizer", "chat_template": [
            {"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]}"#,
    );
    write("special_tokens_map.json", r#"{"eos_token": {"content": "<|im_end|>"}}"#);
    write("generation_config.json", r#"{"eos_token_id": [0, 2]}"#);
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    assert_eq!(tokenizer.special(Special::Bos), Some("<|im_start|>"));
    assert_eq!(tokenizer.special(Special::Eos), Some("<|im_end|>"));
    assert_eq!(tokenizer.special(Special::Pad), None);
    // What GPT-2's tokenizer assumes where nothing is stated.
    assert_eq!(tokenizer.special(Special::Unk), Some("<|endoftext|>"));
    assert_eq!(tokenizer.stop_ids(), [0, 2]);
    assert_eq!(
        (tokenizer.chat_template(false), tokenizer.chat_template(true)),
        (Some("D"), Some("T"))
    );
    write("tokenizer_config.json", "{\n\"bos_token\": ");
    let said = Tokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(said.contains("tokenizer_config.json:2:"), "{said}");
}

#[test]
fn special_text_is_split_on_request() {
    let sample = conversation(&["x<|im_end|>y", "b"], "");
    let count = |split_special_tokens| {
        let options = DataOptions { split_special_tokens, ..named("chatml") };
        let encoder = Encoder::new(chat_tokenizer(), options).unwrap();
        let example = encoder.sft(&sample).unwrap();
        example.input_ids.iter().filter(|id| Some(**id) == encoder.tokenizer().eos_id()).count()
    };
    assert_eq!((count(false), count(true)), (3, 0));
}

#[test]
fn pieces_hold_whole_characters() {
    let encoder = Encoder::new(chat_tokenizer(), named("chatml")).unwrap();
    let example = encoder.sft(&conversation(&["𝒳 水 é", "🙂 ok"], "")).unwrap();
    let pieces = pieces(encoder.tokenizer(), &example).unwrap();
    let text: String = pieces.iter().map(|p| p.text.as_str()).collect();
    assert_eq!(text, encoder.tokenizer().decode(&example.input_ids, false).unwrap());
    assert!(!text.contains('\u{fffd}'));
    let Labels::Tokens(labels) = &example.labels else { panic!("no labels") };
    for piece in pieces {
        assert!(labels[piece.tokens].iter().all(|l| (*l != IGNORE_INDEX) == piece.trained));
    }
}
