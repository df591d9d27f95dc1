//! From a recipe to a plan: the rules that tie keys together, and what each absent key means.
//!
//! The rules are those that LLaMA-Factory and transformers raise, as far as they concern keys
//! that work here; each error names both keys and their lines.

mod data;
mod method;
mod model;
mod output;
mod train;

use super::keys::{self, Kind, Status};
use super::plan::{ChatPlan, ExportPlan, Plan, Stage};
use super::yaml::{Node, Value};
use super::{Entry, Location, Recipe, RecipeError, values};
use model::Use;
use std::fmt;

/// Something that the recipe says without effect here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Where it was written.
    pub at: Location,
    /// The key as it was written.
    pub key: String,
    /// What becomes of it: `is ignored: …`.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: `{}` {}", self.at, self.key, self.text)
    }
}

impl Recipe {
    /// The training run (or evaluation) that this recipe asks for.
    ///
    /// # Errors
    /// [`RecipeError::NotImplemented`] for a key or value that would change the result and isn't
    /// implemented, [`RecipeError::Contradiction`], [`RecipeError::Missing`] and
    /// [`RecipeError::BadValue`].
    pub fn resolve(&self) -> Result<Plan, RecipeError> {
        self.check_implemented()?;
        let method = self.method()?;
        let plan = Plan {
            stage: self.stage()?,
            model: self.model(Use::Training)?,
            data: self.data(&method)?,
            method,
            train: self.train()?,
            eval: self.eval()?,
            output: self.output()?,
            generate: self.generation()?,
            notices: self.notices()?,
        };
        if !plan.train.do_train && !plan.eval.do_eval {
            return Err(self.missing("do_train", "there is nothing to do; write `do_train: true`"));
        }
        Ok(plan)
    }

    /// The model, template and generation settings of this recipe, for chatting and serving.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn resolve_chat(&self) -> Result<ChatPlan, RecipeError> {
        self.check_implemented()?;
        Ok(ChatPlan {
            model: self.model(Use::Inference)?,
            template: self.template()?,
            generate: self.generation()?,
            notices: self.notices()?,
        })
    }

    /// The merge that this recipe asks for, LLaMA-Factory's `export`.
    ///
    /// # Errors
    /// As [`Recipe::resolve`].
    pub fn resolve_export(&self) -> Result<ExportPlan, RecipeError> {
        self.check_implemented()?;
        let gigabytes: u64 = self.get("export_size")?;
        let shard_bytes = gigabytes.checked_mul(1_000_000_000);
        Ok(ExportPlan {
            model: self.model(Use::Inference)?,
            export_dir: self.get("export_dir")?,
            shard_bytes: shard_bytes
                .ok_or_else(|| self.bad("export_size", "a file's size in GB"))?,
            notices: self.notices()?,
        })
    }

    fn stage(&self) -> Result<Stage, RecipeError> {
        if self.get::<String>("stage")? != "pt" {
            return Ok(Stage::Sft);
        }
        if self.get::<String>("task_type")? != "CAUSAL_LM" {
            let rule = "hidden words are guessed by the model's own head; remove `task_type`";
            return Err(self.contradiction("stage", "task_type", rule));
        }
        for key in ["packing", "neat_packing"] {
            if self.opt(key)? == Some(true) {
                let rule = "an encoder reads each text by itself";
                return Err(self.contradiction("stage", key, rule));
            }
        }
        Ok(Stage::Pt { mlm_probability: self.get("mlm_probability")? })
    }

    fn check_implemented(&self) -> Result<(), RecipeError> {
        for (name, entry) in &self.entries {
            let Some(key) = keys::find(name) else { continue };
            let instead = match (key.status, key.kind) {
                (Status::NotYet(_), _) if is_neutral(key, entry) => None,
                (Status::NotYet(instead), _) => {
                    Some(instead.map_or_else(|| neutral(key), str::to_owned))
                }
                (Status::Implemented, Kind::OneOf { here, later }) => {
                    let is_later = later.iter().any(|word| is_word(&entry.node, word));
                    is_later.then(|| format!("write {}", keys::one_of(here)))
                }
                _ => None,
            };
            if let Some(instead) = instead {
                return Err(self.not_yet(key.name, instead));
            }
        }
        Ok(())
    }

    /// All that is accepted without effect, in the recipe's order.
    fn notices(&self) -> Result<Vec<Notice>, RecipeError> {
        let mut notices = Vec::new();
        for (name, entry) in &self.entries {
            let Some(key) = keys::find(name) else { continue };
            let text = match key.status {
                Status::Ignored(_) if is_neutral(key, entry) => None,
                Status::Ignored(reason) => Some(format!("is ignored: {reason}")),
                _ => self.particular_notice(key.name)?,
            };
            let (at, key) = (entry.at.clone(), entry.spelling.clone());
            notices.extend(text.map(|text| Notice { at, key, text }));
        }
        Ok(notices)
    }

    /// Notices that depend on the value.
    fn particular_notice(&self, name: &'static str) -> Result<Option<String>, RecipeError> {
        match name {
            "report_to" => self.absent_trackers(),
            "max_length" if self.get::<usize>("max_new_tokens")? > 0 => {
                Ok(Some("has no effect while `max_new_tokens` is above 0".to_owned()))
            }
            "pure_bf16" if self.get("pure_bf16")? => {
                Ok(Some("keeps the base weights in bf16; the adapters stay f32 here".to_owned()))
            }
            "mlm_probability" if self.get::<String>("stage")? != "pt" => {
                Ok(Some("has no effect without `stage: pt`".to_owned()))
            }
            "packing" if self.get("neat_packing")? && self.opt("packing")? == Some(false) => {
                Ok(Some("is overruled by `neat_packing: true`, as in LLaMA-Factory".to_owned()))
            }
            _ => Ok(None),
        }
    }
}

/// Whether a key that isn't implemented was left at what it would be anyway: null, its default,
/// or off.
fn is_neutral(key: &keys::Key, entry: &Entry) -> bool {
    if entry.node.is_null() {
        return true;
    }
    let Some(default) = values::default_node(key) else {
        return matches!(key.kind, Kind::Switch | Kind::Any) && is_word(&entry.node, "false");
    };
    match (key.kind, &entry.node.value, &default.value) {
        (Kind::Switch, ..) => same::<bool>(&entry.node, &default),
        (Kind::Whole(_) | Kind::Number(_) | Kind::Steps, ..) => same::<f64>(&entry.node, &default),
        (_, Value::Scalar { text, .. }, Value::Scalar { text: default, .. }) => text == default,
        _ => false,
    }
}

fn same<T: values::FromNode + PartialEq>(one: &Node, other: &Node) -> bool {
    matches!((T::from_node(one), T::from_node(other)), (Some(a), Some(b)) if a == b)
}

fn is_word(node: &Node, word: &str) -> bool {
    matches!(&node.value, Value::Scalar { text, .. } if text == word)
}

fn neutral(key: &keys::Key) -> String {
    match key.default {
        Some(default) => format!("remove the line, or write `{}: {default}`", key.name),
        None => "remove the line".to_owned(),
    }
}
