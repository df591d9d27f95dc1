//! Reading and writing the files of a tokenizer folder.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Inner;

use super::{NamedTemplate, Special, Tokenizer, charsmap, class_defaults, older};
use crate::error::{DataError, Result, describe};

const SERIALIZED: &str = "tokenizer.json";

/// What to do about a folder without a tokenizer.
const ADVICE: &str = "nor has it an older vocabulary (vocab.txt, vocab.json with merges.txt, or a \
    SentencePiece model); copy the tokenizer's files into it";

/// Lengths above this mean "no limit" (transformers writes 1e30).
const NO_LIMIT: f64 = 1e9;

pub(super) fn open(folder: &Path) -> Result<Tokenizer> {
    let mut config = object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let map = object(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let stated_bos = config.get("add_bos_token").and_then(Value::as_bool);
    let (mut inner, special, add_bos_token) = match serialized(folder)? {
        Some(inner) => {
            let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
            let special = special_tokens(&inner, &config, &map, class);
            (inner, special, stated_bos.unwrap_or(class_defaults::add_bos_token(class)))
        }
        None => {
            let older = older::open(folder, &config, &map)?.ok_or_else(|| {
                DataError::NoTokenizer { folder: folder.to_owned(), advice: ADVICE }
            })?;
            config.entry("tokenizer_class").or_insert_with(|| older.class.into());
            // They are in the tokenizer now, some with other flags, and are saved with it.
            config.shift_remove("added_tokens_decoder");
            (older.inner, older.special, older.add_bos_token)
        }
    };
    // Cutting and padding are the encoder's business, whatever the file was saved with.
    inner.with_truncation(None).map_err(|e| DataError::file(folder, e))?;
    inner.with_padding(None);
    let added = inner.get_added_tokens_decoder();
    let special_ids = added.iter().filter(|(_, t)| t.special).map(|(id, _)| *id).collect();
    let model_max_length = config
        .get("model_max_length")
        .and_then(Value::as_f64)
        .filter(|n| (1.0..NO_LIMIT).contains(n))
        .map(|n| n as usize);
    Ok(Tokenizer {
        inner,
        folder: folder.to_owned(),
        special,
        add_bos_token,
        model_max_length,
        chat_templates: chat_templates(folder, &config)?,
        special_ids,
        extra_stop_ids: generation_eos(folder)?,
        config,
    })
}

/// Whether a folder has files of a tokenizer.
pub(super) fn are_in(folder: &Path) -> bool {
    let mut files = std::iter::once(SERIALIZED).chain(older::VOCABULARIES);
    files.any(|file| folder.join(file).is_file())
}

/// The tokenizer in `tokenizer.json`, if the folder has one.
fn serialized(folder: &Path) -> Result<Option<Inner>> {
    let file = folder.join(SERIALIZED);
    if !file.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&file).map_err(|e| DataError::io(&file, e))?;
    charsmap::check_serialized(&bytes).map_err(|what| DataError::file(&file, what))?;
    Inner::from_bytes(&bytes).map(Some).map_err(|e| DataError::file(&file, e))
}

/// Named tokens: `tokenizer_config.json`, then `special_tokens_map.json`, then what the class
/// assumes, if the vocabulary has it.
fn special_tokens(
    inner: &Inner,
    config: &Map<String, Value>,
    map: &Map<String, Value>,
    class: &str,
) -> [Option<String>; 7] {
    Special::ALL.map(|which| {
        let stated = [config, map].into_iter().find_map(|m| token_text(m.get(which.key())?));
        let assumed = || {
            let token = class_defaults::special(class, which)?;
            inner.token_to_id(token).map(|_| token.to_owned())
        };
        // A stated null is a decision ("no such token"), not an omission.
        let denied = matches!(config.get(which.key()), Some(Value::Null));
        stated.or_else(|| if denied { None } else { assumed() })
    })
}

/// A token's text, spelled as a string or as an `AddedToken` object.
fn token_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

/// `chat_template.jinja` and `additional_chat_templates/`, else the `chat_template` key.
fn chat_templates(folder: &Path, config: &Map<String, Value>) -> Result<Vec<NamedTemplate>> {
    let mut found = Vec::new();
    let file = folder.join("chat_template.jinja");
    if file.is_file() {
        found.push(NamedTemplate { name: "default".to_owned(), source: text(&file)? });
        found.extend(additional_templates(&folder.join("additional_chat_templates"))?);
        return Ok(found);
    }
    let path = folder.join("tokenizer_config.json");
    let wrong = |value: &Value| {
        let found = describe(value);
        DataError::file(&path, format!("`chat_template` is {found}; it must be a text or a list"))
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => {
            found.push(NamedTemplate { name: "default".to_owned(), source: source.clone() });
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let part = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(source)) = (part("name"), part("template")) else {
                    return Err(wrong(entry));
                };
                found.push(NamedTemplate { name, source });
            }
        }
        Some(other) => return Err(wrong(other)),
    }
    Ok(found)
}

fn additional_templates(folder: &Path) -> Result<Vec<NamedTemplate>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(|e| DataError::io(folder, e))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| DataError::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "jinja") {
            files.push(path);
        }
    }
    files.sort();
    let named = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(NamedTemplate { name, source: text(path)? })
    };
    files.iter().map(named).collect()
}

/// `eos_token_id` of `generation_config.json`: a number or a list of them.
fn generation_eos(folder: &Path) -> Result<Vec<u32>> {
    let config = object(&folder.join("generation_config.json"))?.unwrap_or_default();
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    Ok(match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(number).collect(),
        Some(value) => number(value).into_iter().collect(),
        None => Vec::new(),
    })
}

pub(super) fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let value = serde_json::from_str(&text(path)?).map_err(|e| DataError::Syntax {
        path: path.to_owned(),
        line: e.line(),
        message: e.to_string(),
    })?;
    match value {
        Value::Object(map) => Ok(Some(map)),
        other => Err(DataError::file(path, format!("is {}, not an object", describe(&other)))),
    }
}

pub(super) fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))
}

pub(super) fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| DataError::io(&path, e))
    };
    let json = tokenizer.inner.to_string(true).map_err(|e| tokenizer.error(e))?;
    write("tokenizer.json", &json)?;
    let mut config = tokenizer.config.clone();
    config.shift_remove("chat_template");
    let pretty = serde_json::to_string_pretty(&config).map_err(|e| tokenizer.error(e))?;
    write("tokenizer_config.json", &pretty)?;
    for template in &tokenizer.chat_templates {
        if template.name == "default" {
            write("chat_template.jinja", &template.source)?;
            continue;
        }
        let more = folder.join("additional_chat_templates");
        std::fs::create_dir_all(&more).map_err(|e| DataError::io(&more, e))?;
        let name = format!("additional_chat_templates/{}.jinja", template.name);
        write(&name, &template.source)?;
    }
    Ok(())
}
