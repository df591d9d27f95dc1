//! Vocabularies of older folders give the ids that transformers gives: fixtures/older, written by
//! fixtures/make_older_tokenizers.py.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lowrank_data::{Special, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

type Result<T = (), E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The data beside the repository, where it is there.
fn shared() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data")
}

fn cases(file: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(tests().join("fixtures/older").join(file))?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The folder of a case; none if its vocabulary isn't here.
fn folder(case: &Value) -> Result<Option<TempDir>> {
    let folder = tempfile::tempdir()?;
    for (file, source) in case["files"].as_object().ok_or("no files")? {
        let source = source.as_str().ok_or("no path")?;
        let root = if source.starts_with("fixtures/") { tests() } else { shared() };
        if !root.join(source).is_file() {
            return Ok(None);
        }
        std::fs::copy(root.join(source), folder.path().join(file))?;
    }
    for (file, content) in case["texts"].as_object().ok_or("no texts")? {
        std::fs::write(folder.path().join(file), content.to_string())?;
    }
    Ok(Some(folder))
}

fn ids(value: &Value) -> Vec<u32> {
    let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// What differs from transformers.
fn differences(tokenizer: &Tokenizer, expected: &Value) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut compare = |what: &str, found: String, expected: String| {
        if found != expected {
            all.push(format!("{what}:\n  {found}\n  {expected} (transformers)"));
        }
    };
    compare("size", tokenizer.vocab_size().to_string(), expected["size"].to_string());
    use Special::{Bos, Cls, Eos, Mask, Pad, Sep, Unk};
    for which in [Bos, Eos, Pad, Unk, Cls, Sep, Mask] {
        let named = expected["special"][which.key()].as_str();
        compare(which.key(), format!("{:?}", tokenizer.special(which)), format!("{named:?}"));
    }
    let size = u32::try_from(tokenizer.vocab_size())? + 16;
    let special: Vec<u32> = (0..size).filter(|id| tokenizer.is_special(*id)).collect();
    compare("special", format!("{special:?}"), format!("{:?}", ids(&expected["special_ids"])));
    for row in expected["rows"].as_array().ok_or("no rows")? {
        let text = row["text"].as_str().ok_or("no text")?;
        let plain = tokenizer.encode(text)?;
        compare(&format!("{text:?}"), format!("{plain:?}"), format!("{:?}", ids(&row["ids"])));
        let whole = tokenizer.encoding(text, None, true)?.get_ids().to_vec();
        compare(&format!("{text:?}+"), format!("{whole:?}"), format!("{:?}", ids(&row["whole"])));
        let decoded = tokenizer.decode(&ids(&row["whole"]), false)?;
        compare("decoded", decoded, row["decoded"].as_str().unwrap_or_default().to_owned());
    }
    let pair = tokenizer.encoding("first text", Some("and a second"), true)?;
    compare("pair", format!("{:?}", pair.get_ids()), format!("{:?}", ids(&expected["pair"])));
    let types = format!("{:?}", pair.get_type_ids());
    compare("type ids", types, format!("{:?}", ids(&expected["type_ids"])));
    Ok(all)
}

fn agree(file: &str) -> Result<usize> {
    let (mut seen, mut wrong) = (0, String::new());
    for case in cases(file)? {
        let Some(folder) = folder(&case)? else { continue };
        let name = case["name"].as_str().ok_or("no name")?;
        let tokenizer = Tokenizer::open(folder.path()).map_err(|e| format!("{name}: {e}"))?;
        let differences = differences(&tokenizer, &case["expected"])?;
        if !differences.is_empty() {
            wrong += &format!("{name}, {} differences, {}\n", differences.len(), differences[0]);
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(seen)
}

#[test]
fn small_vocabularies_give_the_ids_of_transformers() -> Result {
    assert!(agree("small.jsonl")? > 40);
    Ok(())
}

#[test]
fn real_vocabularies_give_the_ids_of_transformers() -> Result {
    let seen = agree("real.jsonl")?;
    assert_eq!(seen > 0, shared().join("tok_bert").is_dir());
    Ok(())
}

/// ChatGLM's tokenizer is code of its own: SentencePiece, and special tokens behind its pieces.
#[test]
fn chatglm_is_sentencepiece_with_tokens_of_its_own() -> Result {
    let vocabulary = tests().join("fixtures/older/vocabularies/llama.model");
    let folder = tempfile::tempdir()?;
    std::fs::copy(vocabulary, folder.path().join("tokenizer.model"))?;
    let config =
        r#"{"model_type": "chatglm", "auto_map": {"AutoConfig": "configuration_chatglm.C"}}"#;
    std::fs::write(folder.path().join("config.json"), config)?;
    let tokens = r#"{"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", null]},
        "added_tokens_decoder": {"521": {"content": "[gMASK]", "special": true}}}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), tokens)?;
    let tokenizer = Tokenizer::open(folder.path())?;
    let own = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>"];
    for (id, token) in (520..).zip(own) {
        assert_eq!(tokenizer.token_id(token), Some(id), "{token}");
    }
    assert_eq!((tokenizer.pad_id(), tokenizer.eos_id()), (Some(0), Some(2)));
    let rows = std::fs::read_to_string(tests().join("fixtures/older/chatglm.json"))?;
    for row in serde_json::from_str::<Vec<Value>>(&rows)? {
        let (text, expected) = (row["text"].as_str().ok_or("no text")?, ids(&row["ids"]));
        assert_eq!(tokenizer.encode(text)?, expected, "{text:?}");
        let whole = tokenizer.encoding(text, None, true)?.get_ids().to_vec();
        assert_eq!(whole, [&[521, 523], &expected[..]].concat());
    }
    Ok(())
}

/// GLM-4's is code of its own too: tiktoken between special tokens that a list has ids for.
#[test]
fn glm_4_is_tiktoken_with_tokens_of_its_own() -> Result {
    let vocabulary = tests().join("fixtures/older/vocabularies/tiktoken.model");
    let folder = tempfile::tempdir()?;
    std::fs::copy(vocabulary, folder.path().join("tokenizer.model"))?;
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "chatglm"}"#)?;
    let own = [
        "<|endoftext|>",
        "[MASK]",
        "[gMASK]",
        "[sMASK]",
        "<sop>",
        "<eop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
    ];
    let added = (1500..).zip(own).map(|(id, token): (u32, _)| {
        (id.to_string(), serde_json::json!({"content": token, "special": true}))
    });
    let added: serde_json::Map<_, _> = added.collect();
    for class in ["ChatGLM4Tokenizer", "ChatGLMTokenizer"] {
        let config = serde_json::json!({
            "tokenizer_class": class, "auto_map": {"AutoTokenizer": ["x.Y", null]},
            "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
            "additional_special_tokens": own, "added_tokens_decoder": added,
        });
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string())?;
        let tokenizer = Tokenizer::open(folder.path())?;
        assert_eq!(tokenizer.vocab_size(), 1509);
        assert_eq!((tokenizer.pad_id(), tokenizer.eos_id()), (Some(1500), Some(1500)));
        let rows = std::fs::read_to_string(tests().join("fixtures/older/glm4.json"))?;
        for row in serde_json::from_str::<Vec<Value>>(&rows)? {
            let (text, expected) = (row["text"].as_str().ok_or("no text")?, ids(&row["ids"]));
            assert_eq!(tokenizer.encode(text)?, expected, "{text:?}");
            let whole = tokenizer.encoding(text, None, true)?.get_ids().to_vec();
            assert_eq!(whole, [&[1502, 1504], &expected[..]].concat());
            assert_eq!(tokenizer.decode(&expected, false)?, text);
        }
    }
    Ok(())
}

/// What is written is read again, here and by transformers, without the older files.
#[test]
fn a_saved_tokenizer_is_the_same() -> Result {
    for case in cases("small.jsonl")? {
        let folder = folder(&case)?.ok_or("a small vocabulary is missing")?;
        let saved = tempfile::tempdir()?;
        Tokenizer::open(folder.path())?.save(saved.path())?;
        let again = Tokenizer::open(saved.path())?;
        let rows = case["expected"]["rows"].as_array().ok_or("no rows")?;
        for row in rows {
            let text = row["text"].as_str().ok_or("no text")?;
            assert_eq!(again.encode(text)?, ids(&row["ids"]), "{} {text:?}", case["name"]);
        }
    }
    Ok(())
}

fn said(files: &[(&str, &str)]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text)?;
    }
    let error = Tokenizer::open(folder.path()).err().ok_or("no error")?.to_string();
    Ok(error.replace(&folder.path().display().to_string(), "DIR"))
}

#[test]
fn errors_say_what_is_wrong_and_where() -> Result {
    let gpt2 = ("config.json", r#"{"model_type": "gpt2"}"#);
    let vocab = ("vocab.json", r#"{"a": 0, "b": 1, "ab": 2, "c": 3}"#);
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[], "`DIR` has no tokenizer.json, nor has it an older vocabulary"),
        (&[vocab], "neither a `tokenizer.json` nor a `tokenizer_class`"),
        (
            &[gpt2, ("vocab.txt", "a\nb")],
            "made from `vocab.json`, which isn't there; there is `vocab.txt`",
        ),
        (&[gpt2, vocab], "can't read `DIR/merges.txt`"),
        (
            &[gpt2, vocab, ("merges.txt", "#version: 0.2\na b\nab c\n")],
            "DIR/merges.txt:3: a token, or",
        ),
        (&[gpt2, vocab, ("merges.txt", "a b c")], "DIR/merges.txt:1: isn't two tokens"),
        (&[gpt2, ("vocab.json", r#"{"a": -1}"#), ("merges.txt", "")], "`a` is the number `-1`"),
        (
            &[("config.json", r#"{"model_type": "t5"}"#), ("spiece.model", "not a model")],
            "DIR/spiece.model: isn't a SentencePiece model",
        ),
        (
            &[
                ("config.json", r#"{"model_type": "unheard_of"}"#),
                ("tokenizer.model", "\n\u{3}\n\u{1}a"),
                (
                    "tokenizer_config.json",
                    r#"{"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", null]}}"#,
                ),
            ],
            "its tokenizer, `OwnTokenizer`, is code of the model's own, which isn't run",
        ),
        (
            &[
                ("config.json", r#"{"model_type": "bert"}"#),
                ("vocab.txt", "[UNK]"),
                ("tokenizer_config.json", r#"{"do_lower_case": "yes"}"#),
            ],
            "`do_lower_case` is the text `yes`; it must be true or false",
        ),
    ];
    let llama = ("config.json", r#"{"model_type": "llama"}"#);
    let ranks = [
        ("IQ== 0\nIg== x\n", "DIR/tokenizer.model:2: isn't a token in base64 and its rank"),
        ("IQ== 0\nIg=! 1\n", "DIR/tokenizer.model:2: isn't a token in base64 and its rank"),
        ("IQ== 0\nIg== 2\n", "rank 1 is there twice, or no token has it"),
        ("IQ== 0\nIg== 0\n", "rank 1 is there twice, or no token has it"),
        ("IQ== 0\nIQ== 1\n", "a token is there twice"),
        ("IQ== 0\n 1\n", "DIR/tokenizer.model:2: the token has 0 bytes"),
        ("IQ== 0\n", "byte 0x00 isn't a token"),
        ("\nIQ== 0\n", "isn't a SentencePiece model"),
    ];
    for (text, expected) in ranks {
        let said = said(&[llama, ("tokenizer.model", text)])?;
        assert!(said.contains(expected), "{said}\nexpected: {expected}");
    }
    for (files, expected) in cases {
        let said = said(files)?;
        assert!(said.contains(expected), "{said}\nexpected: {expected}");
    }
    Ok(())
}

/// A file with a hole or cut short is an error or a tokenizer, never a panic.
fn damaged(file: &str, model_type: &str, at: usize, byte: u8, cut: bool) -> Result {
    let mut bytes = std::fs::read(tests().join("fixtures/older/vocabularies").join(file))?;
    let at = at % bytes.len();
    if cut {
        bytes.truncate(at);
    } else {
        bytes[at] = byte;
    }
    let folder = tempfile::tempdir()?;
    let config = serde_json::json!({"model_type": model_type});
    std::fs::write(folder.path().join("config.json"), config.to_string())?;
    let name = if file.ends_with(".model") { "tokenizer.model" } else { file };
    std::fs::write(folder.path().join(name), bytes)?;
    if let Ok(tokenizer) = Tokenizer::open(folder.path()) {
        for text in ["Ｈello ﬁne\u{3000}😀 world", "<s>a</s>", "\u{301}\u{0}"] {
            if let Ok(ids) = tokenizer.encode(text) {
                let _ = tokenizer.decode(&ids, false);
            }
        }
    }
    Ok(())
}

/// The `tokenizer.json` of a vocabulary whose table of characters is what `damage` leaves of it.
fn with_table(damage: impl FnOnce(&mut Vec<u8>)) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let vocabulary = tests().join("fixtures/older/vocabularies/t5.model");
    std::fs::copy(vocabulary, folder.path().join("spiece.model"))?;
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "t5"}"#)?;
    Tokenizer::open(folder.path())?.save(folder.path())?;
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    let table = &mut json["normalizer"]["normalizers"][0]["precompiled_charsmap"];
    let mut bytes = STANDARD.decode(table.as_str().ok_or("no table")?)?;
    damage(&mut bytes);
    *table = STANDARD.encode(&bytes).into();
    std::fs::write(&path, json.to_string())?;
    Ok(folder)
}

#[test]
fn a_damaged_table_in_tokenizer_json_is_an_error() -> Result {
    type Damage = fn(&mut Vec<u8>);
    let whole = with_table(|_| ())?;
    assert_eq!(
        Tokenizer::open(whole.path())?.encode("ﬁ")?,
        Tokenizer::open(whole.path())?.encode("fi")?
    );
    let said = |damage: Damage| -> Result<String> {
        let folder = with_table(damage)?;
        Ok(Tokenizer::open(folder.path()).err().ok_or("it was opened")?.to_string())
    };
    let cases: [(Damage, &str); 5] = [
        (Vec::clear, "its table of characters is cut off"),
        (|bytes| bytes.truncate(40), "its table of characters is cut off"),
        (|bytes| bytes[..4].fill(0xff), "its table of characters is cut off"),
        (|bytes| bytes[4..8].fill(0xff), "its table of characters leads out of itself"),
        (|bytes| bytes.extend([0xff; 4]), "its table of characters isn't UTF-8"),
    ];
    for (damage, expected) in cases {
        let said = said(damage)?;
        let expected = format!("tokenizer.json: a normalizer: {expected}");
        assert!(said.ends_with(&expected), "{said}\nexpected: {expected}");
    }
    let path = whole.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(
        &path,
        text.replace("\"precompiled_charsmap\":\"", "\"precompiled_charsmap\":\"!"),
    )?;
    let said = Tokenizer::open(whole.path()).err().ok_or("it was opened")?.to_string();
    assert!(said.contains("a normalizer: its table isn't base64"), "{said}");
    Ok(())
}

/// Bytes of the table in `tokenizer.json` are replaced: an error or a tokenizer, never a panic.
fn damaged_table(at: usize, by: &[u8], cut: bool) -> Result {
    let folder = with_table(|bytes| {
        let at = at % bytes.len();
        if cut {
            bytes.truncate(at);
        }
        bytes.iter_mut().skip(at).zip(by).for_each(|(slot, byte)| *slot = *byte);
    })?;
    if let Ok(tokenizer) = Tokenizer::open(folder.path()) {
        for text in ["Ｈello ﬁne\u{3000}😀 ﬂow １２３", "\u{301}\u{0}", "a ﬁ\u{a0}b"] {
            let _ = tokenizer.encode(text);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_do_not_panic(
        which in 0usize..6, at in any::<usize>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let (file, model_type) = [
            ("t5.model", "t5"), ("users.model", "mistral"), ("xlmr.model", "glm"),
            ("gemma.model", "gemma"), ("vocab.txt", "bert"), ("tiktoken.model", "llama"),
        ][which];
        damaged(file, model_type, at, byte, cut).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }

    #[test]
    fn damaged_tables_do_not_panic(
        at in any::<usize>(), by in prop::collection::vec(any::<u8>(), 1..6), cut in any::<bool>(),
    ) {
        damaged_table(at, &by, cut).map_err(|e| TestCaseError::fail(e.to_string()))?;
    }
}
