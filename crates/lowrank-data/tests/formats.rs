//! Every file type and format, and what is said about bad rows.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use lowrank_data::{
    DataOptions, Dataset, Encoder, Labels, Message, MixStrategy, Response, Role, Sample, Tokenizer,
    encode_all, read_files,
};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

/// A folder with these files; names and contents.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn options(folder: &Path, names: &[&str]) -> DataOptions {
    DataOptions {
        dataset_dir: folder.to_owned(),
        dataset: names.iter().map(|n| (*n).to_owned()).collect(),
        ..DataOptions::default()
    }
}

/// One data set `d` with this entry, in a file of this name.
fn open(entry: &str, file: (&str, &str)) -> Result<Dataset, String> {
    let info = format!("{{\"d\": {entry}}}");
    let folder = folder(&[("dataset_info.json", &info), file]);
    let place = folder.path().display().to_string();
    Dataset::open(&options(folder.path(), &["d"])).map_err(|e| e.to_string().replace(&place, ""))
}

fn error(entry: &str, file: (&str, &str)) -> String {
    open(entry, file).unwrap_err()
}

fn messages(set: &Dataset, row: usize) -> Vec<(Role, String)> {
    let Sample::Conversation(c) = &set.samples[row] else { panic!("not a conversation") };
    let Response::Answer(answer) = &c.response else { panic!("no answer") };
    c.prompt.iter().chain([answer]).map(|m| (m.role, m.content.clone())).collect()
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_its_place() {
    let alpaca = r#"{"file_name": "a.json"}"#;
    let file = (
        "a.json",
        "[\n {\"instruction\": \"x\", \"output\": \"y\"},\n {\"instruction\": 3, \"output\": \"y\"}\n]",
    );
    let said = "/a.json:3 (row 1): field `instruction` is the number `3`; it must be a text";
    assert_eq!(error(alpaca, file), said);
    let cut = ("a.json", "[\n {\"instruction\": \"x\"},\n");
    assert!(error(alpaca, cut).starts_with("/a.json:3: the array isn't closed"));
    let broken = ("a.jsonl", "{\"instruction\": \"x\", \"output\": \"y\"}\n{\"instr");
    assert!(
        error(r#"{"file_name": "a.jsonl"}"#, broken).starts_with("/a.jsonl:2 (row 1): not JSON")
    );
    let chat = r#"{"file_name": "a.jsonl", "formatting": "sharegpt"}"#;
    let order =
        r#"{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}"#;
    let said = "/a.jsonl:1 (row 0): field `conversations`: message 0 has the role `assistant`; a \
                user or observation turn must stand there";
    assert_eq!(error(chat, ("a.jsonl", order)), said);
    let odd = r#"{"conversations": [{"from": "human", "value": "a"}]}"#;
    assert!(error(chat, ("a.jsonl", odd)).contains("turns must come in pairs"));
    let role = r#"{"conversations": [{"from": "humam", "value": "a"}]}"#;
    assert!(error(chat, ("a.jsonl", role)).contains("the data set's roles are `human`, `gpt`"));
    let key = r#"{"conversations": [{"from": "human", "vlaue": "a"}]}"#;
    assert!(error(chat, ("a.jsonl", key)).contains("no field `conversations[0].value`"));
    let picture = r#"{"file_name": "a.jsonl", "columns": {"prompt": "p", "images": "i"}}"#;
    let said = "/a.jsonl:1 (row 0): field `i[0]`: picture `1.jpg`: there is no such file in ``";
    let found = error(picture, ("a.jsonl", r#"{"p": "x", "i": ["1.jpg"]}"#));
    assert!(found.starts_with(said), "{found}");
    let film = r#"{"file_name": "a.jsonl", "columns": {"prompt": "p", "videos": "i"}}"#;
    assert!(error(film, ("a.jsonl", r#"{"p": "x", "i": ["1.mp4"]}"#)).contains("films or sounds"));
}

#[test]
fn what_is_wrong_with_an_entry_is_said() {
    let file = ("a.json", "[{\"instruction\": \"x\", \"output\": \"y\"}]");
    let said = error(r#"{"file_name": "a.json", "format": "alpaca"}"#, file);
    assert_eq!(said, "/dataset_info.json: `d`: unknown key `format`; did you mean `formatting`?");
    let said = error(r#"{"file_name": "a.json", "columns": {"promt": "x"}}"#, file);
    assert!(said.contains("unknown key `columns.promt`; did you mean `prompt`?"), "{said}");
    let said = error(r#"{"file_name": "a.json", "formatting": "alpacca"}"#, file);
    assert!(said.contains("`formatting` is the text `alpacca`; it must be `alpaca`"), "{said}");
    let said = error(r#"{"hf_hub_url": "x/y"}"#, file);
    assert!(said.contains("opens no network connection"), "{said}");
    let said = error(r#"{"file_name": "a.json", "columns": {"prompt": "question"}}"#, file);
    assert!(said.contains("no row has the column `question` (`prompt`)"), "{said}");
    assert!(error("{}", file).contains("`file_name` is null"));
    let missing = tempfile::tempdir().unwrap();
    let said = Dataset::open(&options(missing.path(), &["d"])).unwrap_err().to_string();
    assert!(said.contains("write it there with an entry for each data set"), "{said}");
    let folder = folder(&[("dataset_info.json", "{\"alpaca_en\": {}}")]);
    let said = Dataset::open(&options(folder.path(), &["alpaca_em"])).unwrap_err().to_string();
    assert!(said.ends_with("has no data set `alpaca_em`; did you mean `alpaca_en`?"), "{said}");
}

#[test]
fn entries_may_stand_in_the_recipe() {
    let folder = folder(&[("a.json", "[{\"instruction\": \"x\", \"output\": \"y\"}]")]);
    let info = serde_json::json!({"d": {"file_name": "a.json"}});
    let dataset_info = info.as_object().cloned();
    let set = Dataset::open(&DataOptions { dataset_info, ..options(folder.path(), &["d"]) });
    assert_eq!(set.unwrap().samples.len(), 1);
    let said = Dataset::open(&options(Path::new("ONLINE"), &["d"])).unwrap_err().to_string();
    assert!(said.starts_with("`dataset_dir`: `ONLINE`"), "{said}");
}

#[test]
fn columns_that_an_entry_leaves_out_are_absent() {
    let row = ("a.json", r#"[{"q": "x", "input": "more", "output": "y"}]"#);
    let set = open(r#"{"file_name": "a.json", "columns": {"prompt": "q"}}"#, row).unwrap();
    let Sample::Conversation(c) = &set.samples[0] else { panic!("not a conversation") };
    assert_eq!(c.prompt, [Message::new(Role::User, "x")]);
    assert_eq!(c.response, Response::None);
}

#[test]
fn bad_rows_are_counted_on_request() {
    let lines = "{\"instruction\": \"x\", \"output\": \"y\"}\nnot json\n{\"instruction\": [], \"output\": \"y\"}\n{\"instruction\": \"z\"}\n";
    let folder = folder(&[("a.jsonl", lines)]);
    let options = DataOptions { skip_bad_rows: true, ..options(folder.path(), &["a.jsonl"]) };
    let set = Dataset::open(&options).unwrap();
    assert_eq!(set.samples.len(), 2);
    let rows: Vec<_> = set.skipped.iter().map(|(at, _)| at.line).collect();
    assert_eq!(rows, [Some(2), Some(3)]);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let options = DataOptions { template: Some("chatml".to_owned()), ..options };
    let encoder = Encoder::new(Tokenizer::open(fixture).unwrap(), options).unwrap();
    let encoded = encode_all(&set.samples, true, |s| encoder.sft(s)).unwrap();
    assert_eq!((encoded.examples.len(), encoded.skipped.len()), (1, 1));
    assert!(encode_all(&set.samples, false, |s| encoder.sft(s)).is_err());
}

#[test]
fn openai_messages_with_calls() {
    let row = r#"{"messages": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "u"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"x": 1.0}}}]},
        {"role": "tool", "content": "r1"}, {"role": "tool", "content": "r2"},
        {"role": "assistant", "content": "a"}], "tools": []}"#
        .replace('\n', "");
    let entry = |formatting: &str| {
        format!(
            r#"{{"file_name": "a.jsonl", "formatting": "{formatting}", "columns": {{"messages": "messages"}}}}"#
        )
    };
    for (formatting, system) in [("openai", "S\ndetailed thinking off"), ("trl", "S")] {
        let set = open(&entry(formatting), ("a.jsonl", &row)).unwrap();
        let expected = [
            (Role::User, "u"),
            (Role::Function, r#"[{"name": "f", "arguments": {"x": 1.0}}]"#),
            (Role::Observation, "r1\n</tool_response>\n<tool_response>\nr2"),
            (Role::Assistant, "a"),
        ];
        assert_eq!(messages(&set, 0), expected.map(|(r, t)| (r, t.to_owned())));
        let Sample::Conversation(c) = &set.samples[0] else { panic!("not a conversation") };
        assert_eq!(c.system, system);
    }
}

#[test]
fn contents_may_be_lists_of_parts() {
    let parts = r#"[{"type": "text", "text": "a ", "image": null}, {"type": "image", "text": null},
        {"type": "text", "text": "b"}]"#;
    let (user, model) = (
        format!(r#"{{"role": "user", "content": {parts}}}"#),
        r#"{"role": "assistant", "content": [{"type": "text", "text": "c"}]}"#,
    );
    let worse = r#"{"role": "assistant", "content": [{"type": "text", "text": "d"}]}"#;
    let system = r#"{"role": "system", "content": [{"type": "text", "text": "S"}]}"#;
    let trl = r#"{"file_name": "a.jsonl", "formatting": "trl", "columns": {"images": "i"}}"#;
    let openai = trl.replace("trl", "openai").replace("{\"im", "{\"messages\": \"messages\", \"im");
    let ranking = openai.replace("\"columns", "\"ranking\": true, \"columns");
    let listed = format!(r#""messages": [{system}, {user}, {model}]"#);
    for (entry, row) in [
        (openai.as_str(), listed.clone()),
        (trl, listed),
        (trl, format!(r#""prompt": [{system}, {user}], "completion": [{model}]"#)),
        (trl, format!(r#""chosen": [{system}, {user}, {model}], "rejected": [{user}, {worse}]"#)),
        (
            ranking.as_str(),
            format!(r#""messages": [{system}, {user}], "chosen": {model}, "rejected": {worse}"#),
        ),
    ] {
        let row = format!(r#"{{{row}, "i": "a.jsonl"}}"#).replace('\n', "");
        let set = open(entry, ("a.jsonl", &row)).unwrap();
        let Sample::Conversation(c) = &set.samples[0] else { panic!("not a conversation") };
        assert_eq!(c.prompt, [Message::new(Role::User, "a <image>b")], "{row}");
        assert_eq!(c.own_answer().unwrap().content, "c", "{row}");
        assert!(c.system.starts_with('S'), "{row}");
        assert_eq!(c.images.len(), 1, "{row}");
        assert_eq!(c.original, None, "{row}");
    }
    let bad = |parts: &str| {
        let row = format!(
            r#"{{"messages": [{{"role": "user", "content": {parts}}}, {model}], "i": []}}"#
        );
        error(trl, ("a.jsonl", &row))
    };
    for (parts, said) in [
        (
            r#"[{"type": "video", "video": "a.mp4"}]"#,
            "field `messages[0].content[0]` is a part of the type `video`; texts and pictures are \
             read (`text`, `image`, `image_url`)",
        ),
        (r#"[{"type": "image"}]"#, "a message shows a picture that neither it nor `i` has"),
        (r#"[{"text": "a"}]"#, "no field `messages[0].content[0].type`"),
        (r#"[{"type": "text"}]"#, "no field `messages[0].content[0].text`"),
        (r#"["a"]"#, "field `messages[0].content[0]` is the text `a`; it must be an object"),
        (
            r#"[{"type": "image", "image": "no.png"}]"#,
            "field `messages[0].content[0]`: picture `no.png`: there is no such file",
        ),
    ] {
        let found = bad(parts);
        assert!(found.contains(said), "{found}");
    }
}

#[test]
fn calls_beside_parts_keep_the_messages_as_they_were_written() {
    let row = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}], "reasoning_content": "r"}]}"#
        .replace('\n', "");
    let set = open(r#"{"file_name": "a.jsonl", "formatting": "trl"}"#, ("a.jsonl", &row)).unwrap();
    let Sample::Conversation(c) = &set.samples[0] else { panic!("not a conversation") };
    let original = serde_json::to_string(c.original.as_ref().unwrap()).unwrap();
    let expected = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b","reasoning_content":"r"}]"#;
    assert_eq!(original, expected, "chat templates of models that only read want texts");
}

#[test]
fn bare_files_are_recognised() {
    let rows = [
        r#"{"instruction": "a", "output": "b"}"#,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
    ];
    for row in rows {
        let folder = folder(&[("x.jsonl", row)]);
        let set = Dataset::open(&options(folder.path(), &["x.jsonl"])).unwrap();
        let expected = [(Role::User, "a".to_owned()), (Role::Assistant, "b".to_owned())];
        assert_eq!(messages(&set, 0), expected, "{row}");
    }
    type Fits = fn(&Sample) -> bool;
    let kinds: [(&str, Fits); 6] = [
        (r#"{"prompt": "a", "completion": "b"}"#, |s| matches!(s, Sample::Completion(_))),
        (r#"{"text": "a"}"#, |s| matches!(s, Sample::Text(_))),
        (r#"{"text": "a", "label": "b"}"#, |s| matches!(s, Sample::Classification(_))),
        (r#"{"tokens": ["a"], "ner_tags": ["O"]}"#, |s| matches!(s, Sample::Tagging(_))),
        (
            r#"{"question": "q", "context": "né c", "answers": {"text": ["c"], "answer_start": [3]}}"#,
            |s| matches!(s, Sample::QuestionAnswering(_)),
        ),
        (
            r#"{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}"#,
            |s| matches!(s, Sample::Conversation(c) if c.prompt.len() == 1 && matches!(c.response, Response::Pair { .. })),
        ),
    ];
    for (row, fits) in kinds {
        let folder = folder(&[("x.jsonl", row)]);
        let set = Dataset::open(&options(folder.path(), &["x.jsonl"])).unwrap();
        assert!(fits(&set.samples[0]), "{row}");
    }
    let folder = folder(&[("x.jsonl", r#"{"foo": 1}"#)]);
    let said = Dataset::open(&options(folder.path(), &["x.jsonl"])).unwrap_err().to_string();
    assert!(said.contains("the columns `foo` fit no known format"), "{said}");
}

#[test]
fn tables_and_texts() {
    let folder = folder(&[
        ("a.csv", "instruction,output\n\"two\nlines\",b\nc,\n"),
        ("a.txt", "one\n\nthree\n"),
        ("b.tsv", "text\tlabel\na\t1\n"),
    ]);
    let set = Dataset::open(&options(folder.path(), &["a.csv"])).unwrap();
    assert_eq!(messages(&set, 0)[0].1, "two\nlines");
    assert_eq!(set.samples[1].at().line, Some(4));
    let set = Dataset::open(&options(folder.path(), &["a.txt"])).unwrap();
    assert_eq!(set.samples.len(), 3);
    let set = Dataset::open(&options(folder.path(), &["b.tsv", "a.txt"])).unwrap();
    assert_eq!(set.samples.len(), 4);
}

#[test]
fn parquet_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let schema = "message m { required binary text (UTF8); required int64 label; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let texts = ["né", "b"].map(ByteArray::from);
    column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 0], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let rows = read_files(&path, Default::default()).unwrap();
    let values: Vec<_> =
        rows.records.iter().map(|r| serde_json::to_string(&r.fields).unwrap()).collect();
    assert_eq!(values, [r#"{"text":"né","label":1}"#, r#"{"text":"b","label":0}"#]);
    std::fs::write(&path, b"PAR1 not really").unwrap();
    assert!(read_files(&path, Default::default()).is_err());
}

#[test]
fn sets_are_limited_mixed_and_sampled() {
    let rows = |name: &str, n: usize| {
        (0..n).map(|i| format!("{{\"text\": \"{name}{i}\"}}\n")).collect::<String>()
    };
    let folder = folder(&[
        ("a.jsonl", &rows("a", 4)),
        ("b.jsonl", &rows("b", 2)),
        (
            "dataset_info.json",
            r#"{"c": {"file_name": "a.jsonl", "formatting": "text", "num_samples": 6}}"#,
        ),
    ]);
    let texts = |options: DataOptions| -> Vec<String> {
        let text = |s: &Sample| match s {
            Sample::Text(t) => t.text.clone(),
            _ => panic!("not a text"),
        };
        Dataset::open(&options).unwrap().samples.iter().map(text).collect()
    };
    let both = || options(folder.path(), &["a.jsonl", "b.jsonl"]);
    let mixed = |mix_strategy| texts(DataOptions { mix_strategy, ..both() });
    assert_eq!(texts(DataOptions { max_samples: Some(1), ..both() }), ["a0", "b0"]);
    assert_eq!(mixed(MixStrategy::Concat), ["a0", "a1", "a2", "a3", "b0", "b1"]);
    assert_eq!(mixed(MixStrategy::InterleaveUnder), ["a0", "b0", "a1", "b1"]);
    assert_eq!(
        mixed(MixStrategy::InterleaveOver),
        ["a0", "b0", "a1", "b1", "a2", "b0", "a3", "b1"]
    );
    assert_eq!(mixed(MixStrategy::InterleaveOnce), ["a0", "b0", "a1", "b1", "a2", "a3"]);
    let mut sampled = texts(options(folder.path(), &["c"]));
    assert_eq!(sampled.len(), 6);
    sampled.sort();
    sampled.dedup();
    assert_eq!(sampled, ["a0", "a1", "a2", "a3"]);
    let swapped = options(folder.path(), &["b.jsonl", "a.jsonl"]);
    let under = DataOptions { mix_strategy: MixStrategy::InterleaveUnder, ..swapped };
    assert_eq!(texts(under), ["b0", "a0", "b1", "a1"]);
    let probabilities = Some(vec![1.0, 0.0]);
    let mix_strategy = MixStrategy::InterleaveUnder;
    for mix_strategy in [mix_strategy, MixStrategy::InterleaveOver, MixStrategy::InterleaveOnce] {
        let interleave_probs = probabilities.clone();
        let only_a = DataOptions { mix_strategy, interleave_probs, ..both() };
        assert_eq!(texts(only_a), ["a0", "a1", "a2", "a3"]);
    }
}

#[test]
fn preference_rows_share_their_prompt() {
    let row = r#"{"prompt": "q", "chosen": "good answer", "rejected": "bad"}"#;
    let folder = folder(&[("x.jsonl", row)]);
    let options =
        DataOptions { template: Some("chatml".to_owned()), ..options(folder.path(), &["x.jsonl"]) };
    let set = Dataset::open(&options).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let encoder = Encoder::new(Tokenizer::open(fixture).unwrap(), options).unwrap();
    let pair = encoder.pair(&set.samples[0]).unwrap();
    let text = |ids: &[u32]| encoder.tokenizer().decode(ids, false).unwrap();
    let prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text(&pair.chosen.input_ids), format!("{prompt}good answer<|im_end|>\n"));
    assert_eq!(text(&pair.rejected.input_ids), format!("{prompt}bad<|im_end|>\n"));
    let asked = encoder.prompt(&set.samples[0]).unwrap();
    assert_eq!(text(&asked.input_ids), prompt);
    let Labels::Target(target) = &asked.labels else { panic!("no target") };
    assert_eq!(text(target), "good answer<|im_end|>\n");
    assert!(encoder.sft(&set.samples[0]).is_err());
}

#[test]
fn completions_without_a_template_are_trained_behind_the_prompt() {
    let row = r#"{"prompt": "The capital of", "completion": " France"}"#;
    let folder = folder(&[("x.jsonl", row)]);
    let options = options(folder.path(), &["x.jsonl"]);
    let set = Dataset::open(&options).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let encoder = Encoder::new(Tokenizer::open(fixture).unwrap(), options).unwrap();
    let example = encoder.sft(&set.samples[0]).unwrap();
    let segments = lowrank_data::segments(encoder.tokenizer(), &example).unwrap();
    let runs: Vec<_> = segments.iter().map(|s| (s.text.as_str(), s.trained)).collect();
    assert_eq!(runs, [("The capital of", false), (" France<|im_end|>", true)]);
}

#[test]
fn plain_texts_are_trained_whole_and_end() {
    let folder = folder(&[("x.jsonl", r#"{"text": "The capital of France"}"#)]);
    let options = options(folder.path(), &["x.jsonl"]);
    let set = Dataset::open(&options).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let encoder = Encoder::new(Tokenizer::open(fixture).unwrap(), options).unwrap();
    let example = encoder.sft(&set.samples[0]).unwrap();
    let segments = lowrank_data::segments(encoder.tokenizer(), &example).unwrap();
    let runs: Vec<_> = segments.iter().map(|s| (s.text.as_str(), s.trained)).collect();
    assert_eq!(runs, [("The capital of France<|im_end|>", true)]);
}

#[test]
fn pretraining_blocks_drop_only_the_rest() {
    let folder = folder(&[("x.txt", "The capital of France\nParis is\nthe Danube flows\n")]);
    let options = DataOptions { cutoff_len: 4, ..options(folder.path(), &["x.txt"]) };
    let set = Dataset::open(&options).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat");
    let encoder = Encoder::new(Tokenizer::open(fixture).unwrap(), options).unwrap();
    let blocks = encoder.pretraining_blocks(&set.samples).unwrap();
    assert!(blocks.iter().all(|b| b.input_ids.len() == 4));
    let joined: Vec<u32> = blocks.iter().flat_map(|b| b.input_ids.clone()).collect();
    let whole = "The capital of France<|im_end|>Paris is<|im_end|>the Danube flows<|im_end|>";
    let ids = encoder.tokenizer().encode(whole).unwrap();
    assert_eq!(joined, ids[..ids.len() / 4 * 4]);
    let cut = encoder.pretraining(&set.samples[0]).unwrap();
    assert_eq!((cut.input_ids.as_slice(), cut.cut > 0), (&ids[..4], true));
}

#[test]
fn tokenizers_that_cannot_be_read() {
    let empty = tempfile::tempdir().unwrap();
    let said = Tokenizer::open(empty.path()).unwrap_err().to_string();
    assert!(said.contains("has no tokenizer.json, nor has it an older vocabulary"), "{said}");
    let broken = folder(&[("tokenizer.json", "{\"model\": ")]);
    assert!(Tokenizer::open(broken.path()).unwrap_err().to_string().contains("tokenizer.json"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever stands in a file, reading it never panics.
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(["a.json", "a.jsonl", "a.csv", "a.parquet", "a.txt"][kind]);
        std::fs::write(&path, bytes).unwrap();
        let _ = read_files(&path, Default::default());
    }

    #[test]
    fn no_json_panics(text in r#"[\[\]{},:"a0 \n.-]{0,60}"#) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::fs::write(&path, text).unwrap();
        let _ = read_files(&path, Default::default());
    }
}
