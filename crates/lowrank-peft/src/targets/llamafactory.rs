//! LLaMA-Factory's `lora_target: all`, which isn't PEFT's all-linear.

use super::resolve::last_part;
use super::{ModuleInfo, ModuleKind};
use crate::task_type::TaskType;

/// The names that `lora_target: all` stands for: the last part of the path of every Linear module,
/// each once, in the model's order. Paths that contain `lm_head` are skipped (`output_layer` in
/// chatglm, `output` in internlm2), and those that contain one of `frozen`: a multimodal model's
/// projector and vision tower. Conv1D modules don't count, as their class isn't called Linear.
///
/// Heads of a task that LLaMA-Factory doesn't have are skipped too: they are trained whole, and an
/// adapter beside that is an error in PEFT, for SEQ_CLS something that it leaves out itself.
pub fn llamafactory_all(
    modules: &[ModuleInfo],
    model_type: &str,
    task: Option<TaskType>,
    frozen: &[&str],
) -> Vec<String> {
    let head: &[&str] = match model_type {
        "chatglm" => &["lm_head", "output_layer"],
        "internlm2" => &["lm_head", "output"],
        _ => &["lm_head"],
    };
    let whole = task.map_or(&[][..], TaskType::head_names);
    let is_whole = |path: &str| path.split('.').any(|part| whole.contains(&part));
    let skipped =
        |path: &str| head.iter().chain(frozen).any(|part| path.contains(part)) || is_whole(path);
    let mut names: Vec<String> = Vec::new();
    for module in modules {
        let name = last_part(&module.path);
        if module.kind == ModuleKind::Linear
            && !skipped(&module.path)
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, kind: ModuleKind) -> ModuleInfo {
        ModuleInfo { path: path.to_owned(), kind }
    }

    #[test]
    fn names_of_linear_layers_but_the_head() {
        let modules = [
            module("transformer.embedding", ModuleKind::Embedding),
            module("transformer.layers.0.query_key_value", ModuleKind::Linear),
            module("transformer.layers.0.mlp", ModuleKind::Container),
            module("transformer.layers.0.mlp.dense", ModuleKind::Linear),
            module("transformer.layers.1.mlp.dense", ModuleKind::Linear),
            module("transformer.layers.1.mlp.c_fc", ModuleKind::Conv1D),
            module("vision_tower.fc1", ModuleKind::Linear),
            module("transformer.output_layer", ModuleKind::Linear),
            module("lm_head", ModuleKind::Linear),
            module("score", ModuleKind::Linear),
        ];
        let all = |model_type, task, frozen: &[&str]| {
            llamafactory_all(&modules, model_type, task, frozen)
        };
        let common = ["query_key_value", "dense"];
        let sees = all("chatglm", None, &["vision_tower"]);
        assert_eq!(sees, [&common[..], &["score"]].concat());
        let plain = [&common[..], &["fc1", "output_layer", "score"]].concat();
        assert_eq!(all("llama", None, &[]), plain);
        assert_eq!(all("llama", Some(TaskType::QuestionAns), &[]), plain, "its head is another");
        let classes = all("llama", Some(TaskType::TokenCls), &[]);
        assert_eq!(classes, [&common[..], &["fc1", "output_layer"]].concat());
    }
}
