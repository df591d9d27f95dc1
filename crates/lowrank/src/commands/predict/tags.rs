//! A tag for each word.

use std::sync::Arc;

use lowrank_data::{IGNORE_INDEX, LabelSet, Labels, ProblemType, Sample, TaggedWords, TextEncoder};
use serde_json::json;

use super::{Prediction, Predictor, argmax, input};

impl Predictor {
    /// The tag of each word is that of its first token; words that were cut off have none.
    pub(super) fn tags(
        &self,
        samples: &[Sample],
        print: &mut dyn FnMut(Prediction) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let encoder = TextEncoder::new(self.tokenizer.clone(), self.cutoff_len);
        let mut cut = 0;
        for batch in samples.chunks(self.batch_size) {
            let mut examples = Vec::with_capacity(batch.len());
            for sample in batch {
                let (numbered, numbers) = numbered(sample);
                let encoded = encoder.tagging(&numbered, &numbers);
                examples.push((encoded.map_err(|p| p.at(sample.at()))?, numbers.names.len()));
            }
            let parts: Vec<_> = examples.iter().map(|(example, _)| example).collect();
            let input = input(&parts);
            let words = parts.iter().flat_map(|example| match &example.labels {
                Labels::Tokens(labels) => labels.clone(),
                _ => vec![IGNORE_INDEX; example.input_ids.len()],
            });
            let first: Vec<(usize, i32)> =
                words.enumerate().filter(|(_, word)| *word != IGNORE_INDEX).collect();
            let rows: Arc<[usize]> = first.iter().map(|(row, _)| *row).collect();
            let pass = self.model.inference();
            let found = match rows.is_empty() {
                true => Vec::new(),
                false => {
                    let logits = self.model.model().logits(&input, Some(&rows), &pass)?;
                    logits.data().to_vec2::<f32>()?
                }
            };
            let mut found = first.iter().zip(found).peekable();
            for ((_, words), span) in examples.iter().zip(input.sequences.spans.iter()) {
                let mut tags: Vec<Option<&str>> = vec![None; *words];
                let end = span.queries.end;
                while let Some(((_, word), logits)) = found.next_if(|((row, _), _)| *row < end) {
                    let tag = self.labels.names.get(argmax(&logits)).map(String::as_str);
                    let word = usize::try_from(*word).ok().and_then(|w| tags.get_mut(w));
                    word.into_iter().for_each(|slot| *slot = tag);
                }
                cut += usize::from(tags.iter().any(Option::is_none));
                let text: Vec<&str> = tags.iter().map(|tag| tag.unwrap_or("-")).collect();
                print(Prediction { json: json!({"tags": tags}), text: text.join(" ") })?;
            }
        }
        if cut > 0 {
            self.ui.warning(format_args!(
                "{cut} rows have words without a tag (null): cut off after {} tokens, or without \
                 any token",
                self.cutoff_len
            ));
        }
        Ok(())
    }
}

/// The words with their own numbers as tags, so that encoding tells which token begins which word.
fn numbered(sample: &Sample) -> (Sample, LabelSet) {
    let problem_type = ProblemType::SingleLabel;
    match sample {
        Sample::Tagging(row) => {
            let names: Vec<String> = (0..row.tokens.len()).map(|i| i.to_string()).collect();
            let tagged = TaggedWords { tags: Some(names.clone()), ..row.clone() };
            (Sample::Tagging(tagged), LabelSet { problem_type, names })
        }
        // Encoding refuses it.
        other => (other.clone(), LabelSet { problem_type, names: Vec::new() }),
    }
}
