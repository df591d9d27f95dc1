//! Texts with a label. Reference: transformers `examples/pytorch/text-classification`: texts are
//! encoded with the model's special tokens and cut from the longer of a pair.

use super::{Example, Labels, TextEncoder, unfit};
use crate::error::{DataError, Result, RowProblem, RowRef, nearest};
use crate::formats::{Label, LabelledText, Sample};

/// transformers' `problem_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// A number is predicted.
    Regression,
    /// One class of several.
    SingleLabel,
    /// Any number of classes.
    MultiLabel,
}

/// The classes by id (`id2label`), and what is predicted of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    /// What is predicted.
    pub problem_type: ProblemType,
    /// Class names in the order of their ids; a single `LABEL_0` for a number.
    pub names: Vec<String>,
}

impl LabelSet {
    /// The label set of a data set: the names that were `given`, else those that occur, sorted as
    /// text, or as numbers if all of them are whole numbers. Labels with a decimal point make it a
    /// regression, lists a choice of several.
    /// # Errors
    /// Labels of different kinds; the error names two rows.
    pub fn infer(samples: &[Sample], given: Option<&[String]>) -> Result<Self> {
        let mut first: Option<(ProblemType, &RowRef)> = None;
        let mut integers = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let labelled = samples.iter().filter_map(|s| match s {
            Sample::Classification(row) => Some((row, row.label.as_ref()?)),
            _ => None,
        });
        let as_numbers = looks_like_numbers(samples);
        for (row, label) in labelled {
            let kind = kind_of(label, as_numbers);
            match first {
                None => first = Some((kind, &row.at)),
                Some((expected, at)) if expected != kind => return Err(mixed(&row.at, at)),
                Some(_) => {}
            }
            match label {
                Label::Name(name) => names.push(name),
                Label::Names(list) => names.extend(list.iter().map(String::as_str)),
                Label::Integer(n) => integers.push(n.to_string()),
                Label::Number(_) => {}
            }
        }
        names.extend(integers.iter().map(String::as_str));
        let problem_type = first.map_or(ProblemType::SingleLabel, |(kind, _)| kind);
        if problem_type == ProblemType::Regression {
            return Ok(Self { problem_type, names: vec!["LABEL_0".to_owned()] });
        }
        Ok(Self { problem_type, names: given.map_or_else(|| sorted(names), <[String]>::to_vec) })
    }

    /// A label set of tag names: given, or those that occur, sorted.
    #[must_use]
    pub fn of_tags(samples: &[Sample], given: Option<&[String]>) -> Self {
        let tags = samples.iter().filter_map(|s| match s {
            Sample::Tagging(row) => row.tags.as_deref(),
            _ => None,
        });
        let occurring = || sorted(tags.flatten().map(String::as_str).collect());
        Self {
            problem_type: ProblemType::SingleLabel,
            names: given.map_or_else(occurring, <[String]>::to_vec),
        }
    }

    /// The id of a class (`label2id`). A whole number that isn't a name is an id itself, as in data
    /// sets whose names are stated apart from the rows (`ClassLabel`).
    /// # Errors
    /// An unknown name, with the one most like it.
    pub fn id(&self, name: &str) -> Result<usize, RowProblem> {
        let by_name = self.names.iter().position(|known| known == name);
        let by_number = || name.parse().ok().filter(|id| *id < self.names.len());
        by_name.or_else(by_number).ok_or_else(|| RowProblem::UnknownLabel {
            label: name.to_owned(),
            count: self.names.len(),
            nearest: nearest(name, self.names.iter().map(String::as_str)),
        })
    }

    fn encode(&self, label: &Label) -> Result<Labels, RowProblem> {
        match (self.problem_type, label) {
            (ProblemType::Regression, Label::Number(x)) => Ok(Labels::Value(*x as f32)),
            (ProblemType::Regression, Label::Integer(n)) => Ok(Labels::Value(*n as f32)),
            (ProblemType::Regression, Label::Name(text)) => match text.parse() {
                Ok(x) => Ok(Labels::Value(x)),
                Err(_) => Err(not_this_kind("a number")),
            },
            (ProblemType::SingleLabel, Label::Name(name)) => Ok(Labels::Class(self.id(name)?)),
            (ProblemType::SingleLabel, Label::Integer(n)) => {
                Ok(Labels::Class(self.id(&n.to_string())?))
            }
            (ProblemType::MultiLabel, Label::Names(names)) => {
                let mut classes = vec![0.0; self.names.len()];
                for name in names {
                    if let Some(class) = classes.get_mut(self.id(name)?) {
                        *class = 1.0;
                    }
                }
                Ok(Labels::Classes(classes))
            }
            (ProblemType::Regression, _) => Err(not_this_kind("a number")),
            (ProblemType::SingleLabel, _) => Err(not_this_kind("one class")),
            (ProblemType::MultiLabel, _) => Err(not_this_kind("a list of classes")),
        }
    }
}

impl TextEncoder {
    /// A text or a pair of texts with its label.
    /// # Errors
    /// A sample of another kind, or a label that isn't in the set.
    pub fn classification(
        &self,
        sample: &Sample,
        labels: &LabelSet,
    ) -> Result<Example, RowProblem> {
        let Sample::Classification(row) = sample else {
            return Err(unfit("labelled texts (`formatting: classification`)"));
        };
        let encoding = self.tokenizer.encoding(&row.text, row.text_pair.as_deref(), true)?;
        let labels = row.label.as_ref().map_or(Ok(Labels::None), |label| labels.encode(label))?;
        let kept = self.cut(&encoding)?;
        let boxes = self.boxes(&row.text, &kept, row.boxes.as_deref());
        Ok(Example { boxes, ..self.example(kept, encoding.len(), labels, &row.at) })
    }
}

/// A CSV file can't tell numbers from names: if all labels are numbers and one has a decimal
/// point, they are values to predict.
fn looks_like_numbers(samples: &[Sample]) -> bool {
    let mut any_point = false;
    for sample in samples {
        let Sample::Classification(LabelledText { label: Some(label), .. }) = sample else {
            continue;
        };
        match label {
            Label::Number(_) => any_point = true,
            Label::Integer(_) => {}
            Label::Name(text) if text.parse::<f64>().is_ok_and(f64::is_finite) => {
                any_point |= text.contains('.');
            }
            Label::Name(_) | Label::Names(_) => return false,
        }
    }
    any_point
}

fn kind_of(label: &Label, as_numbers: bool) -> ProblemType {
    match label {
        Label::Number(_) => ProblemType::Regression,
        Label::Name(_) | Label::Integer(_) if as_numbers => ProblemType::Regression,
        Label::Name(_) | Label::Integer(_) => ProblemType::SingleLabel,
        Label::Names(_) => ProblemType::MultiLabel,
    }
}

fn sorted(mut names: Vec<&str>) -> Vec<String> {
    names.sort_unstable();
    names.dedup();
    let as_integers: Result<Vec<i64>, _> = names.iter().map(|n| n.parse()).collect();
    if let Ok(mut integers) = as_integers {
        integers.sort_unstable();
        integers.dedup();
        return integers.iter().map(i64::to_string).collect();
    }
    names.into_iter().map(str::to_owned).collect()
}

fn mixed(at: &RowRef, first: &RowRef) -> DataError {
    let message = format!("the label is of another kind than that of {first}");
    RowProblem::Other { message }.at(at)
}

fn not_this_kind(must_be: &'static str) -> RowProblem {
    RowProblem::WrongType {
        field: "label".to_owned(),
        found: "of another kind".to_owned(),
        must_be,
    }
}
