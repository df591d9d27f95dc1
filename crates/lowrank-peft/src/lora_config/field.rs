//! Reading the fields of a configuration from JSON, each with the type that it must have.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::values::{
    ALL_LINEAR, Bias, ExcludeModules, InitLoraWeights, Number, OneOrMany, TargetModules,
};
use crate::config_error::{ConfigProblem, shown};
use crate::task_type::TaskType;

/// A type that a field of adapter_config.json can have.
pub(super) trait Field: Sized {
    /// The value, or `None` if the JSON has another type.
    fn read(value: &Value) -> Option<Self>;

    /// Completes "it must be ...".
    fn must_be() -> String;
}

/// Moves the value of `name`, if the file has it, from `map` to `slot`.
pub(super) fn take<T: Field>(
    map: &mut Map<String, Value>,
    name: &'static str,
    slot: &mut T,
) -> Result<(), ConfigProblem> {
    let Some(value) = map.shift_remove(name) else { return Ok(()) };
    *slot = T::read(&value).ok_or_else(|| ConfigProblem::BadValue {
        field: name.to_owned(),
        found: shown(&value),
        must_be: T::must_be(),
    })?;
    Ok(())
}

impl Field for bool {
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }

    fn must_be() -> String {
        "true or false".to_owned()
    }
}

impl Field for usize {
    fn read(value: &Value) -> Option<Self> {
        usize::try_from(value.as_u64()?).ok()
    }

    fn must_be() -> String {
        "a whole number that isn't negative".to_owned()
    }
}

impl Field for i64 {
    fn read(value: &Value) -> Option<Self> {
        value.as_i64()
    }

    fn must_be() -> String {
        "a whole number".to_owned()
    }
}

impl Field for Number {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) if number.is_f64() => number.as_f64().map(Self::Float),
            _ => value.as_i64().map(Self::Int),
        }
    }

    fn must_be() -> String {
        "a number".to_owned()
    }
}

impl Field for String {
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }

    fn must_be() -> String {
        "a string".to_owned()
    }
}

impl Field for Value {
    fn read(value: &Value) -> Option<Self> {
        Some(value.clone())
    }

    fn must_be() -> String {
        "any JSON value".to_owned()
    }
}

impl Field for Map<String, Value> {
    fn read(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }

    fn must_be() -> String {
        "an object".to_owned()
    }
}

impl<T: Field> Field for Option<T> {
    fn read(value: &Value) -> Option<Self> {
        if value.is_null() { Some(None) } else { T::read(value).map(Some) }
    }

    fn must_be() -> String {
        format!("{} or null", T::must_be())
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::read).collect()
    }

    fn must_be() -> String {
        format!("a list, each entry {}", T::must_be())
    }
}

impl<T: Field> Field for IndexMap<String, T> {
    fn read(value: &Value) -> Option<Self> {
        value.as_object()?.iter().map(|(key, value)| Some((key.clone(), T::read(value)?))).collect()
    }

    fn must_be() -> String {
        format!("an object from module names to values, each {}", T::must_be())
    }
}

impl<T: Field> Field for OneOrMany<T> {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Array(_) => Vec::read(value).map(Self::Many),
            _ => T::read(value).map(Self::One),
        }
    }

    fn must_be() -> String {
        format!("{0}, or a list, each entry {0}", T::must_be())
    }
}

impl Field for TargetModules {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(Self::Default),
            Value::String(text) if text == ALL_LINEAR => Some(Self::AllLinear),
            Value::String(text) => Some(Self::Pattern(text.clone())),
            _ => Vec::read(value).map(Self::List),
        }
    }

    fn must_be() -> String {
        "a list of module names, a regular expression, \"all-linear\" or null".to_owned()
    }
}

impl Field for ExcludeModules {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Pattern(text.clone())),
            _ => Vec::read(value).map(Self::List),
        }
    }

    fn must_be() -> String {
        "a list of module names, a regular expression".to_owned()
    }
}

impl Field for Bias {
    fn read(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "none" => Some(Self::None),
            "all" => Some(Self::All),
            "lora_only" => Some(Self::LoraOnly),
            _ => None,
        }
    }

    fn must_be() -> String {
        "\"none\", \"all\" or \"lora_only\"".to_owned()
    }
}

impl Field for InitLoraWeights {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(true) => Some(Self::Default),
            Value::Bool(false) => Some(Self::Random),
            Value::String(name) if name == "gaussian" => Some(Self::Gaussian),
            Value::String(name) => Some(Self::Named(name.clone())),
            _ => None,
        }
    }

    fn must_be() -> String {
        "true, false or the name of a method".to_owned()
    }
}

impl Field for TaskType {
    fn read(value: &Value) -> Option<Self> {
        Self::from_name(value.as_str()?)
    }

    fn must_be() -> String {
        format!("one of {}", TaskType::ALL.map(TaskType::name).join(", "))
    }
}
