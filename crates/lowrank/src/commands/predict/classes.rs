//! Labels of texts.

use lowrank_data::{Example, LabelSet, ProblemType as DataProblem, Sample, TextEncoder};
use lowrank_models::ProblemType;
use serde_json::{Map, Value, json};

use super::{Prediction, Predictor, argmax, input, softmax};

impl Predictor {
    /// A prediction for each text: the likeliest class, all classes above one half, or numbers.
    pub(super) fn classes(
        &self,
        samples: &[Sample],
        print: &mut dyn FnMut(Prediction) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let encoder = TextEncoder::new(self.tokenizer.clone(), self.cutoff_len);
        let nothing = LabelSet { problem_type: DataProblem::SingleLabel, names: Vec::new() };
        for batch in samples.chunks(self.batch_size) {
            let encode = |s: &Sample| encoder.classification(s, &nothing).map_err(|p| p.at(s.at()));
            let examples = batch.iter().map(encode).collect::<Result<Vec<Example>, _>>()?;
            let examples: Vec<&Example> = examples.iter().collect();
            let pass = self.model.inference();
            let logits = self.model.model().logits(&input(&examples), None, &pass)?;
            for row in logits.data().to_vec2::<f32>()? {
                print(self.class(&row))?;
            }
        }
        Ok(())
    }

    fn class(&self, logits: &[f32]) -> Prediction {
        let default =
            if logits.len() == 1 { ProblemType::Regression } else { ProblemType::SingleLabel };
        let name = |i: usize| self.labels.names.get(i).map(String::as_str).unwrap_or_default();
        match self.labels.problem_type.unwrap_or(default) {
            ProblemType::Regression => {
                let numbers: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
                let label = match numbers.as_slice() {
                    [one] => json!(one),
                    several => json!(several),
                };
                let text = label.to_string();
                Prediction { json: json!({"label": label, "scores": self.scores(&numbers)}), text }
            }
            ProblemType::SingleLabel => {
                let shares = softmax(logits);
                let best = argmax(logits);
                let share = shares.get(best).copied().unwrap_or_default();
                Prediction {
                    json: json!({"label": name(best), "scores": self.scores(&shares)}),
                    text: format!("{}\t{share:.4}", name(best)),
                }
            }
            ProblemType::MultiLabel => {
                let shares: Vec<f64> =
                    logits.iter().map(|l| (1.0 + (-f64::from(*l)).exp()).recip()).collect();
                let chosen = shares.iter().enumerate().filter(|(_, share)| **share > 0.5);
                let names: Vec<&str> = chosen.map(|(i, _)| name(i)).collect();
                let text = names.join(",");
                Prediction { json: json!({"label": names, "scores": self.scores(&shares)}), text }
            }
        }
    }

    fn scores(&self, values: &[f64]) -> Value {
        let pairs = self.labels.names.iter().zip(values);
        Value::Object(pairs.map(|(name, v)| (name.clone(), json!(v))).collect::<Map<_, _>>())
    }
}
