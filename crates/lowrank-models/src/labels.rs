//! `label_names.json`: the label names of an adapter with a classification head. PEFT keeps them
//! nowhere; transformers has them in a model's `config.json` (`id2label`, `problem_type`).

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Config, Error, ProblemType, Result};

/// The file's name in an adapter folder.
pub const LABELS_NAME: &str = "label_names.json";

/// The labels of a classification or tagging head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelNames {
    /// Names in the order of their ids.
    pub names: Vec<String>,
    /// What a sequence classification head predicts.
    pub problem_type: Option<ProblemType>,
}

impl LabelNames {
    /// Reads the file of a folder; `None` if there is none.
    ///
    /// # Errors
    /// When it can't be read, or isn't `{"id2label": {"0": "…", …}, "problem_type": "…"}`.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(LABELS_NAME);
        if !path.exists() {
            return Ok(None);
        }
        let config = Config::read(&path)?;
        let names = Self::names_of(&config)?;
        let names = names.ok_or_else(|| config.wrong("id2label", "an object of names by id"))?;
        Ok(Some(Self { names, problem_type: ProblemType::of(&config)? }))
    }

    /// The labels that a model's `config.json` states; `None` without an `id2label`.
    ///
    /// # Errors
    /// When a field is malformed.
    pub fn of_config(config: &Config) -> Result<Option<Self>> {
        let problem_type = ProblemType::of(config)?;
        Ok(Self::names_of(config)?.map(|names| Self { names, problem_type }))
    }

    /// The file's contents.
    ///
    /// # Errors
    /// Those of serialization.
    pub fn to_json(&self) -> Result<String> {
        let by_id = self.names.iter().enumerate();
        let by_id = by_id.map(|(id, name)| (id.to_string(), name.as_str().into())).collect();
        let mut fields = Map::new();
        fields.insert("id2label".to_owned(), Value::Object(by_id));
        if let Some(problem_type) = self.problem_type {
            fields.insert("problem_type".to_owned(), problem_type.name().into());
        }
        let json = serde_json::to_string_pretty(&fields);
        let file = LABELS_NAME.to_owned();
        Ok(json.map_err(|source| Error::Json { file, source })? + "\n")
    }

    /// `id2label` as a list: ids from 0 on without a gap, in whatever order the file has them.
    fn names_of(config: &Config) -> Result<Option<Vec<String>>> {
        let Some(by_id) = config.object("id2label")? else { return Ok(None) };
        let mut names = Vec::with_capacity(by_id.fields().len());
        for id in 0..by_id.fields().len() {
            let key = id.to_string();
            let name = by_id.get(&key).and_then(Value::as_str);
            names.push(name.ok_or_else(|| by_id.wrong(&key, "the name of a label"))?.to_owned());
        }
        Ok(Some(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<LabelNames>> {
        LabelNames::of_config(&Config::parse("config.json".to_owned(), text)?)
    }

    #[test]
    fn what_is_written_is_read_again() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        assert_eq!(LabelNames::read(folder.path())?, None);
        let names: Vec<String> = (0..12).map(|i| format!("name \"{i}\" ü")).collect();
        for problem_type in [None, Some(ProblemType::MultiLabel)] {
            let labels = LabelNames { names: names.clone(), problem_type };
            std::fs::write(folder.path().join(LABELS_NAME), labels.to_json()?)?;
            assert_eq!(LabelNames::read(folder.path())?, Some(labels));
        }
        Ok(())
    }

    #[test]
    fn order_is_by_number_and_gaps_are_errors() -> Result<()> {
        let labels = parse(r#"{"id2label": {"1": "b", "0": "a"}}"#)?;
        assert_eq!(labels.map(|l| l.names), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(parse("{}")?, None);
        let error = parse(r#"{"id2label": {"0": "a", "2": "b"}}"#).expect_err("a gap");
        let message =
            "`config.json`: field `id2label.1` is missing; it must be the name of a label";
        assert_eq!(error.to_string(), message);
        Ok(())
    }
}
