//! Which templates the chat models of an architecture were trained with. Reference: LLaMA-Factory
//! 0.9.5 `extras/constants.py`, which names a template for each published model.

/// Rows are sorted by `model_type`.
const FAMILIES: &[(&str, &[&str])] = &[
    ("chatglm", &["chatglm3", "glm4"]),
    ("deepseek_v3", &["deepseek3", "deepseekr1"]),
    ("falcon", &["falcon"]),
    ("gemma", &["gemma"]),
    ("gemma2", &["gemma2"]),
    ("gemma3_text", &["gemma3"]),
    ("glm", &["glm4"]),
    ("glm4", &["glm4", "glmz1"]),
    ("gpt_bigcode", &["starchat"]),
    ("llama", &["llama2", "llama3", "vicuna", "yi"]),
    ("mistral", &["mistral", "ministral", "zephyr"]),
    ("mixtral", &["mistral"]),
    ("phi3", &["phi", "phi4", "phi4_mini"]),
    ("qwen2", &["qwen"]),
    ("qwen2_moe", &["qwen"]),
    ("qwen3", &["qwen3", "qwen3_nothink"]),
    ("qwen3_moe", &["qwen3", "qwen3_nothink"]),
];

/// The built-in templates of the best known chat models of a `model_type`; none where there are no
/// chat models, or only such as bring a template of their own.
#[must_use]
pub fn templates_of(model_type: &str) -> &'static [&'static str] {
    let row = FAMILIES.binary_search_by_key(&model_type, |(name, _)| name).ok();
    row.and_then(|row| FAMILIES.get(row)).map_or(&[], |(_, templates)| templates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_templates_that_there_are() {
        assert!(FAMILIES.is_sorted_by(|a, b| a.0 < b.0));
        let known = crate::template_names().unwrap();
        for template in FAMILIES.iter().flat_map(|(_, templates)| *templates) {
            assert!(known.iter().any(|k| k == template), "{template}");
        }
        assert_eq!(templates_of("qwen2"), ["qwen"]);
        assert!(templates_of("bert").is_empty());
    }
}
