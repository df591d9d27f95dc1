//! Answers in a context. Reference: transformers `examples/pytorch/question-answering/utils_qa.py`,
//! `postprocess_qa_predictions` with `version_2_with_negative=False`.

use std::cmp::Reverse;

use anyhow::ensure;
use lowrank_data::{ContextWindow, Example, Question, QuestionEncoder, QuestionOptions, Sample};
use serde_json::{Value, json};

use super::{Prediction, Predictor, input, softmax};

/// Most tokens of a window, unless asked otherwise: run_qa.py's `max_seq_length`.
pub(super) const WINDOW: usize = 384;
/// run_qa.py's `doc_stride`.
const STRIDE: usize = 128;
/// Starts, ends and spans that are looked at: `n_best_size`.
const N_BEST: usize = 20;

/// How answers are looked for.
#[derive(Clone, Copy)]
pub(super) struct Options {
    windows: QuestionOptions,
    max_answer_length: usize,
}

impl Options {
    /// Windows shorter than usual share a third, as the usual ones do.
    pub(super) fn new(
        max_length: usize,
        doc_stride: Option<usize>,
        max_answer_length: usize,
    ) -> anyhow::Result<Self> {
        let doc_stride = doc_stride.unwrap_or(STRIDE.min(max_length / 3));
        ensure!(
            doc_stride < max_length,
            "--doc-stride is {doc_stride}; windows of {max_length} tokens must share fewer"
        );
        ensure!(max_answer_length > 0, "--max-answer-length is 0; it must be at least 1");
        Ok(Self { windows: QuestionOptions { max_length, doc_stride }, max_answer_length })
    }
}

/// A span of the context that may be the answer.
#[derive(Clone, Copy)]
struct Span {
    /// Bytes in the context.
    start: usize,
    end: usize,
    score: f32,
}

impl Predictor {
    /// The best span of all windows of each question's context.
    pub(super) fn answers(
        &self,
        samples: &[Sample],
        options: Options,
        print: &mut dyn FnMut(Prediction) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let encoder = QuestionEncoder::new(self.tokenizer.clone(), options.windows);
        for batch in samples.chunks(self.batch_size) {
            let mut windows: Vec<(usize, ContextWindow)> = Vec::with_capacity(batch.len());
            for (row, sample) in batch.iter().enumerate() {
                let found = encoder.windows(sample).map_err(|p| p.at(sample.at()))?;
                windows.extend(found.into_iter().map(|window| (row, window)));
            }
            let mut spans: Vec<Vec<Span>> = vec![Vec::new(); batch.len()];
            for some in windows.chunks(self.batch_size) {
                let examples: Vec<&Example> = some.iter().map(|(_, w)| &w.example).collect();
                let input = input(&examples);
                let pass = self.model.inference();
                let logits = self.model.model().logits(&input, None, &pass)?;
                let logits = logits.data().to_vec2::<f32>()?;
                for ((row, window), place) in some.iter().zip(input.sequences.spans.iter()) {
                    let logits = logits.get(place.queries.clone()).unwrap_or_default();
                    if let Some(spans) = spans.get_mut(*row) {
                        spans.extend(candidates(logits, &window.offsets, options));
                    }
                }
            }
            for (sample, spans) in batch.iter().zip(spans) {
                if let Sample::QuestionAnswering(row) = sample {
                    print(answer(row, spans))?;
                }
            }
        }
        Ok(())
    }
}

/// The spans between the likeliest starts and ends of a window.
fn candidates(
    logits: &[Vec<f32>],
    offsets: &[Option<(usize, usize)>],
    options: Options,
) -> Vec<Span> {
    let column = |c: usize| -> Vec<f32> {
        logits.iter().map(|row| row.get(c).copied().unwrap_or(f32::NEG_INFINITY)).collect()
    };
    let (starts, ends) = (column(0), column(1));
    let mut spans = Vec::new();
    for start in best(&starts) {
        for end in best(&ends) {
            let place = |i: usize| offsets.get(i).copied().flatten();
            let (Some((from, _)), Some((_, to))) = (place(start), place(end)) else { continue };
            if end < start || end - start + 1 > options.max_answer_length {
                continue;
            }
            if let (Some(a), Some(b)) = (starts.get(start), ends.get(end)) {
                spans.push(Span { start: from, end: to, score: a + b });
            }
        }
    }
    spans
}

/// Indices of the largest values, largest first; of equal ones the later first, as numpy's
/// reversed `argsort` has them.
fn best(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let value = |i: usize| values.get(i).copied().unwrap_or(f32::NEG_INFINITY);
    order.sort_by(|a, b| value(*b).total_cmp(&value(*a)).then(Reverse(*a).cmp(&Reverse(*b))));
    order.truncate(N_BEST);
    order
}

fn answer(row: &Question, mut spans: Vec<Span>) -> Prediction {
    spans.sort_by(|a, b| b.score.total_cmp(&a.score));
    spans.truncate(N_BEST);
    let scores: Vec<f32> = spans.iter().map(|span| span.score).collect();
    let probability = softmax(&scores).first().copied();
    let first = spans.first();
    let text = first.and_then(|span| row.context.get(span.start..span.end)).unwrap_or_default();
    // SQuAD counts characters.
    let start = first.and_then(|span| row.context.get(..span.start)).map(|c| c.chars().count());
    let mut json = json!({
        "answer": text,
        "score": first.map(|span| f64::from(span.score)),
        "probability": probability,
        "start": start,
    });
    if let (Some(id), Value::Object(fields)) = (&row.id, &mut json) {
        fields.insert("id".to_owned(), id.as_str().into());
    }
    Prediction { json, text: text.to_owned() }
}
