//! `models`: the registry, and the docs page that is made from it.

use super::{Result, objects, stdout};

#[test]
fn the_page_is_what_the_registry_says() -> Result<()> {
    let page = stdout(["models", "--markdown"])?;
    let committed = include_str!("../../../../docs/architectures.md");
    assert!(
        page == committed,
        "write it anew: lowrank models --markdown > docs/architectures.md\n{page}"
    );
    Ok(())
}

#[test]
fn models_are_classified_in_three_ways() -> Result<()> {
    let object = &objects(&stdout(["models", "--json"])?)?[0];
    let classes = object["classes"].to_string();
    let all = r#"{"data":["language","image","multimodal"],"working":["generative","discriminative","reinforcement learning"],"openness":["weights here","online behind an API"]}"#;
    assert_eq!(classes, all);
    let models = object["models"].as_array().ok_or("no models")?;
    let find = |name: &str| models.iter().find(|m| m["model_type"] == name).ok_or("missing");
    let llama = find("llama")?;
    assert_eq!(llama["data"], "language");
    assert_eq!(llama["working"], "generative");
    assert_eq!(llama["openness"], "weights here");
    assert_eq!(llama["default_targets"], serde_json::json!(["q_proj", "v_proj"]));
    assert_eq!(find("bert")?["working"], "discriminative");
    assert_eq!(find("layoutlm")?["data"], "multimodal");
    assert_eq!(llama["other_types"], serde_json::json!([]));
    assert_eq!(
        find("falcon")?["other_types"],
        serde_json::json!(["RefinedWeb", "RefinedWebModel"])
    );
    let text = stdout(["models"])?;
    assert!(text.contains("by working: generative "), "{text}");
    let others = "other model_types: kimi_k2 (deepseek_v3), RefinedWeb (falcon), \
                  RefinedWebModel (falcon), gpt-sw3 (gpt2), stablelm_epoch (stablelm)";
    assert!(text.contains(others), "{text}");
    Ok(())
}
