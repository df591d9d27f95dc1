//! Classification, tagging, question answering and text-to-text rows are encoded as transformers'
//! example scripts do. The references and the script that made them are in `fixtures/`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lowrank_data::{
    Answer, Completion, Label, LabelSet, LabelledText, Labels, Question, QuestionEncoder,
    QuestionOptions, RowRef, Sample, TaggedWords, TextEncoder, Tokenizer,
};
use serde_json::Value;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn rows(file: &str, task: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(file)).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| task.is_empty() || row["task"] == task).collect()
}

fn at() -> RowRef {
    RowRef { file: Path::new("test").into(), row: 0, line: None }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(text).collect()
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|n| u32::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

fn encoder(name: &str, cutoff_len: &Value) -> TextEncoder {
    TextEncoder::new(Tokenizer::open(fixture(name)).unwrap(), number(cutoff_len))
}

fn labelled(text: &str, label: Label) -> Sample {
    let text = text.to_owned();
    Sample::Classification(LabelledText {
        at: at(),
        text,
        text_pair: None,
        label: Some(label),
        boxes: None,
    })
}

#[test]
fn pairs_are_cut_from_the_longer_one() {
    let rows = rows("bert.jsonl", "classification");
    assert_eq!(rows.len(), 16);
    for row in rows {
        let sample = Sample::Classification(LabelledText {
            at: at(),
            text: text(&row["text"]),
            text_pair: row["text_pair"].as_str().map(str::to_owned),
            label: None,
            boxes: None,
        });
        let labels = LabelSet::infer(&[], None).unwrap();
        let example = encoder("bert", &row["cutoff_len"]).classification(&sample, &labels).unwrap();
        assert_eq!(example.input_ids, ids(&row["input_ids"]), "{row}");
        assert_eq!(example.token_type_ids, Some(ids(&row["token_type_ids"])), "{row}");
        assert_eq!(example.cut, number(&row["cut"]), "{row}");
    }
}

#[test]
fn the_first_token_of_a_word_carries_its_tag() {
    for row in rows("bert.jsonl", "tagging") {
        let sample = Sample::Tagging(TaggedWords {
            at: at(),
            tokens: texts(&row["tokens"]),
            tags: Some(texts(&row["tags"])),
            boxes: None,
        });
        let tags = LabelSet::of_tags(std::slice::from_ref(&sample), None);
        assert_eq!(tags.names, ["B-LOC", "O"]);
        let example = encoder("bert", &row["cutoff_len"]).tagging(&sample, &tags).unwrap();
        assert_eq!(example.input_ids, ids(&row["input_ids"]));
        let expected: Vec<i32> = row["labels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| i32::try_from(n.as_i64().unwrap()).unwrap())
            .collect();
        assert_eq!(example.labels, Labels::Tokens(expected));
    }
}

/// transformers' offsets count characters, ours bytes.
fn bytes(context: &str, (start, end): (usize, usize)) -> (usize, usize) {
    let at = |n| context.char_indices().map(|(i, _)| i).chain([context.len()]).nth(n).unwrap();
    (at(start), at(end))
}

#[test]
fn answers_are_found_in_their_windows() {
    let rows = rows("bert.jsonl", "question_answering");
    assert_eq!(rows.len(), 12);
    for row in rows {
        let context = text(&row["context"]);
        let answer = row["answer"].as_str();
        let sample = Sample::QuestionAnswering(Question {
            at: at(),
            id: None,
            question: text(&row["question"]),
            context: context.clone(),
            answers: answer
                .map(|text| Answer { text: text.to_owned(), start: number(&row["start"]) })
                .into_iter()
                .collect(),
            boxes: None,
        });
        let options = QuestionOptions {
            max_length: number(&row["max_length"]),
            doc_stride: number(&row["doc_stride"]),
        };
        let tokenizer = Tokenizer::open(fixture("bert")).unwrap();
        let windows = QuestionEncoder::new(tokenizer, options).windows(&sample).unwrap();
        let expected = row["windows"].as_array().unwrap();
        assert_eq!(windows.len(), expected.len(), "{row}");
        for (window, expected) in windows.iter().zip(expected) {
            assert_eq!(window.example.input_ids, ids(&expected["input_ids"]));
            assert_eq!(window.example.token_type_ids, Some(ids(&expected["token_type_ids"])));
            let [start, end] = [0, 1].map(|i| number(&expected["span"][i]));
            assert_eq!(window.example.labels, Labels::Span { start, end }, "{row}");
            let spans = expected["offsets"].as_array().unwrap().iter().map(|span| {
                let span = span.as_array()?;
                Some(bytes(&context, (number(&span[0]), number(&span[1]))))
            });
            assert_eq!(window.offsets, spans.collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_question_must_leave_room() {
    let options = QuestionOptions { max_length: 12, doc_stride: 6 };
    let tokenizer = Tokenizer::open(fixture("bert")).unwrap();
    let encoder = QuestionEncoder::new(tokenizer, options);
    let (question, context) = ("what is the capital of france ?".to_owned(), "paris ".repeat(20));
    let sample =
        Question { at: at(), id: None, question, context, answers: Vec::new(), boxes: None };
    assert!(encoder.windows(&Sample::QuestionAnswering(sample)).is_err());
}

#[test]
fn both_texts_end_as_the_tokenizer_ends_them() {
    for row in rows("t5.jsonl", "") {
        let (prompt, completion) = (text(&row["source"]), text(&row["target"]));
        let sample =
            Sample::Completion(Completion { at: at(), prompt, completion, images: Vec::new() });
        let example = encoder("t5", &row["cutoff_len"]).seq2seq(&sample).unwrap();
        assert_eq!(example.input_ids, ids(&row["input_ids"]));
        assert_eq!(example.labels, Labels::Target(ids(&row["labels"])));
    }
}

#[test]
fn label_sets_are_inferred() {
    let name = |n: &str| labelled("a", Label::Name(n.to_owned()));
    let infer = |samples: &[Sample]| LabelSet::infer(samples, None).unwrap().names;
    assert_eq!(infer(&[name("pos"), name("neg"), name("pos")]), ["neg", "pos"]);
    assert_eq!(infer(&[name("10"), name("9")]), ["9", "10"]);
    assert_eq!(infer(&[name("1.5"), name("2")]), ["LABEL_0"]);
    let many =
        |n: &[&str]| labelled("a", Label::Names(n.iter().map(|n| (*n).to_owned()).collect()));
    let (first, second) = (many(&["b", "a"]), many(&[]));
    let set = LabelSet::infer(&[first.clone(), second], None).unwrap();
    let encoder = TextEncoder::new(Tokenizer::open(fixture("bert")).unwrap(), 16);
    let labels = encoder.classification(&first, &set).unwrap().labels;
    assert_eq!(labels, Labels::Classes(vec![1.0, 1.0]));
    assert!(LabelSet::infer(&[name("a"), many(&["b"])], None).is_err());
    let error = encoder.classification(&many(&["c"]), &set).unwrap_err();
    assert!(error.to_string().contains("`c` isn't among the 2 labels"), "{error}");
    let given = ["no".to_owned(), "yes".to_owned()];
    let stated = LabelSet::infer(&[labelled("a", Label::Integer(1))], Some(&given)).unwrap();
    let second = encoder.classification(&labelled("a", Label::Integer(1)), &stated).unwrap();
    assert_eq!(second.labels, Labels::Class(1));
    assert!(encoder.classification(&labelled("a", Label::Integer(2)), &stated).is_err());
    let numbers = LabelSet::infer(&[labelled("a", Label::Number(0.5))], None).unwrap();
    let three = encoder.classification(&labelled("a", Label::Integer(3)), &numbers).unwrap();
    assert_eq!(three.labels, Labels::Value(3.0));
}
