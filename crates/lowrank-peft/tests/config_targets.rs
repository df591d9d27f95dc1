//! Target matching against PEFT 0.21.2: models and results in `fixtures/targets/cases.json`, which
//! `make.py` beside it wrote.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::collections::BTreeSet;

use lowrank_peft::adapter_names::TensorName;
use lowrank_peft::default_targets::{default_target_modules, model_types};
use lowrank_peft::lora_config::{Bias, LoraConfig, TargetModules};
use lowrank_peft::targets::{
    BaseParameter, ModelModules, ModuleInfo, ModuleKind, TargetError, TargetPlan, TargetWarning,
    plan_targets,
};
use serde_json::{Map, Value, json};

struct Model {
    modules: Vec<ModuleInfo>,
    /// Full names of the base model's parameters.
    parameters: Vec<String>,
    model_type: String,
    input_embedding: Option<String>,
    output_embedding: Option<String>,
}

impl Model {
    fn new(dump: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let mut model = Self {
            modules: Vec::new(),
            parameters: Vec::new(),
            model_type: text(&dump["model_type"]).unwrap(),
            input_embedding: text(&dump["input_embedding"]),
            output_embedding: text(&dump["output_embedding"]),
        };
        for module in dump["modules"].as_array().unwrap() {
            let path = text(&module[0]).unwrap();
            let names = module[2].as_array().unwrap().iter();
            model.parameters.extend(names.map(|n| format!("{path}.{}", n.as_str().unwrap())));
            model.modules.push(ModuleInfo { path, kind: kind(&module[1]) });
        }
        model
    }

    fn view(&self) -> ModelModules<'_> {
        ModelModules {
            modules: &self.modules,
            model_type: &self.model_type,
            input_embedding: self.input_embedding.as_deref(),
            output_embedding: self.output_embedding.as_deref(),
        }
    }
}

fn kind(name: &Value) -> ModuleKind {
    match name.as_str().unwrap() {
        "Linear" => ModuleKind::Linear,
        "Conv1D" => ModuleKind::Conv1D,
        "Embedding" => ModuleKind::Embedding,
        "Norm" => ModuleKind::Norm,
        "Container" => ModuleKind::Container,
        "Router" => ModuleKind::Router,
        "Parameter" => ModuleKind::Parameter,
        "Other" => ModuleKind::Other,
        other => panic!("unknown kind {other}"),
    }
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/targets/cases.json")).unwrap()
}

fn config(fields: &Value) -> LoraConfig {
    let mut fields = fields.clone();
    fields["peft_type"] = "LORA".into();
    LoraConfig::from_value(&fields).unwrap().0
}

#[test]
fn plans_are_those_of_peft() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 119);
    for case in cases {
        let model = Model::new(&fixture["models"][case["model"].as_str().unwrap()]);
        let config = config(&case["config"]);
        let about = format!("{} {}", case["model"], case["config"]);
        match plan_targets(&config, &model.view()) {
            Ok(plan) => {
                assert!(case["error"].is_null(), "{about}: PEFT raised {}", case["error"]);
                check_targets(case, &plan, &about);
                check_config(case, &plan, &about);
                if !case["trainable"].is_null() {
                    check_parameters(case, &plan, &model, &about);
                }
            }
            Err(error) => check_error(case, &error, &about),
        }
    }
}

fn check_targets(case: &Value, plan: &TargetPlan, about: &str) {
    let modules = plan.targets.iter().filter(|(_, target)| !target.by_parameter);
    let paths: Vec<&String> = modules.map(|(path, _)| path).collect();
    assert_eq!(paths, case["targets"].as_object().unwrap().keys().collect::<Vec<_>>(), "{about}");
    let parameters = plan.targets.len() - paths.len();
    assert_eq!(parameters, case["parameters"].as_object().map_or(0, Map::len), "{about}");
    for (path, target) in &plan.targets {
        let list = if target.by_parameter { "parameters" } else { "targets" };
        let expected = &case[list][plan.adapter_path(path)];
        assert_eq!(json!(target.r), expected[0], "{about}: rank of {path}");
        let scaling = expected[1].as_f64().unwrap();
        assert_eq!(target.scaling, scaling, "{about}: scaling of {path}");
    }
}

fn check_config(case: &Value, plan: &TargetPlan, about: &str) {
    let mut resolved = serde_json::to_value(&plan.config).unwrap();
    if let Some(names) = resolved["target_modules"].as_array_mut() {
        names.sort_by_key(|name| name.as_str().unwrap().to_owned());
    }
    assert_eq!(resolved["target_modules"], case["resolved"], "{about}");
    if let Some(names) = resolved["target_parameters"].as_array_mut() {
        names.sort_by_key(|name| name.as_str().unwrap().to_owned());
    }
    assert_eq!(resolved["target_parameters"], case["target_parameters"], "{about}");
    assert_eq!(resolved["fan_in_fan_out"], case["fan_in_fan_out"], "{about}");
    // PEFT lists a head again if the configuration names it already.
    let mut expected: Option<Vec<String>> =
        serde_json::from_value(case["modules_to_save"].clone()).unwrap();
    if let Some(names) = &mut expected {
        names.dedup();
    }
    assert_eq!(plan.config.modules_to_save, expected, "{about}");
    let warned: BTreeSet<&str> = plan.warnings.iter().filter_map(peft_code).collect();
    let expected: BTreeSet<&str> =
        case["warnings"].as_array().unwrap().iter().map(|code| code.as_str().unwrap()).collect();
    assert_eq!(warned, expected, "{about}: {:?}", plan.warnings);
}

/// The warnings that PEFT gives too.
fn peft_code(warning: &TargetWarning) -> Option<&'static str> {
    match warning {
        TargetWarning::ExcludeWithoutHits => Some("exclude_modules"),
        TargetWarning::PatternWithoutHits { field, .. } => Some(field),
        _ => None,
    }
}

/// Which parameters train and which tensors are saved, by the plan and by PEFT.
fn check_parameters(case: &Value, plan: &TargetPlan, model: &Model, about: &str) {
    let list = |key: &str| -> BTreeSet<String> {
        let names = case[key].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let mut trained = adapter_tensors(plan);
    trained.extend(model.parameters.iter().filter_map(|name| base_tensor(plan, name)));
    let plain = |name: &String| {
        TensorName::parse(&format!("base_model.model.{}", name.replace(".default", ""))).unwrap()
    };
    // Where PEFT wraps a module, the parameter's name says so; its place in the model is the same.
    let unwrapped = |name: &String| plain(&name.replace(".modules_to_save.default", ""));
    assert_eq!(trained, list("trainable").iter().map(unwrapped).collect(), "{about}");

    let weights = plan.saved_embeddings.iter().cloned().map(TensorName::BaseLayerWeight);
    let saved: BTreeSet<TensorName> = trained.into_iter().chain(weights).collect();
    let mut expected: BTreeSet<TensorName> = list("saved").iter().map(plain).collect();
    // Buffers of modules to save are stored as well; plans are about what trains.
    expected.retain(|name| !name.path().ends_with("e_score_correction_bias"));
    if plan.config.bias == Bias::All {
        expected.retain(|name| !matches!(name, TensorName::Wrapped(_)));
    }
    assert_eq!(saved, expected, "{about}");
}

fn adapter_tensors(plan: &TargetPlan) -> BTreeSet<TensorName> {
    let mut names = BTreeSet::new();
    for (path, target) in &plan.targets {
        let parts: &[fn(String) -> TensorName] = match target.kind {
            ModuleKind::Embedding => &[TensorName::EmbeddingA, TensorName::EmbeddingB],
            _ if plan.config.lora_bias => {
                &[TensorName::LoraA, TensorName::LoraB, TensorName::LoraBBias]
            }
            _ => &[TensorName::LoraA, TensorName::LoraB],
        };
        names.extend(parts.iter().map(|part| part(plan.adapter_path(path))));
    }
    names
}

fn base_tensor(plan: &TargetPlan, name: &str) -> Option<TensorName> {
    let (module, _) = name.rsplit_once('.').unwrap();
    match plan.base_parameter(name) {
        BaseParameter::Frozen => None,
        BaseParameter::Bias if plan.targets.contains_key(module) => {
            Some(TensorName::BaseLayerBias(module.to_owned()))
        }
        BaseParameter::Bias | BaseParameter::Saved => Some(TensorName::Plain(name.to_owned())),
    }
}

fn check_error(case: &Value, error: &TargetError, about: &str) {
    let expected = match error {
        TargetError::NothingMatched { .. } | TargetError::AllExcluded { .. } => {
            "NoMatchingPeftModuleError"
        }
        TargetError::Unsupported { .. }
        | TargetError::Parameter { .. }
        | TargetError::HalfOfFused { .. }
        | TargetError::NoDefault { .. }
        | TargetError::Mamba { .. } => "ValueError",
        TargetError::AdaptedAndSaved { .. } => "TypeError",
        other => panic!("{about}: {other}"),
    };
    assert_eq!(case["error"], expected, "{about}: {error}");
}

#[test]
fn default_targets_are_those_of_peft() {
    let fixture = fixture();
    let table = fixture["default_targets"].as_object().unwrap();
    let mut names: Vec<&str> = table.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(model_types().collect::<Vec<_>>(), names);
    for (model_type, expected) in table {
        let targets = TargetModules::from(default_target_modules(model_type).unwrap());
        assert_eq!(serde_json::to_value(targets).unwrap(), *expected, "{model_type}");
    }
    assert_eq!(default_target_modules("unheard_of"), None);
}

fn llama_plan(fields: Value) -> Result<TargetPlan, TargetError> {
    let model = Model::new(&fixture()["models"]["llama"]);
    plan_targets(&config(&fields), &model.view())
}

#[test]
fn entries_without_hits_are_reported_with_similar_names() {
    let plan = llama_plan(json!({"target_modules": ["q_proj", "v_porj"],
        "exclude_modules": ["o_proj", "down_prj"], "modules_to_save": ["lm_haed"]}));
    let warnings: Vec<String> = plan.unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "`target_modules` entry `v_porj` matches no module; similar names are `v_proj`, \
         `k_proj`, `o_proj`",
            "`modules_to_save` entry `lm_haed` matches no module; similar names are `lm_head`",
            "`exclude_modules` entry `down_prj` matches no module; similar names are `down_proj`, \
         `o_proj`",
        ]
    );
    let error = llama_plan(json!({"target_modules": ["c_attn"]})).unwrap_err().to_string();
    assert!(error.contains("`embed_tokens`, `q_proj`, `k_proj`"), "{error}");
}

#[test]
fn a_pattern_whose_order_is_lost_in_the_file_is_reported() {
    let fields = |patterns| json!({"target_modules": ["q_proj"], "rank_pattern": patterns});
    let plan = llama_plan(fields(json!({"q_proj": 2, "layers.0.*": 4}))).unwrap();
    let order = |w: &TargetWarning| matches!(w, TargetWarning::PatternOrder { .. });
    assert_eq!(plan.targets[0].r, 2);
    assert_eq!(plan.warnings.iter().filter(|w| order(w)).count(), 1);
    let plan = llama_plan(fields(json!({"layers.0.*": 4, "q_proj": 2}))).unwrap();
    assert_eq!(plan.targets[0].r, 4);
    assert!(plan.warnings.is_empty());
}

#[test]
fn what_can_not_be_planned_says_why() {
    let message = |fields| llama_plan(fields).unwrap_err().to_string();
    let q = |field: &str, value: Value| {
        let mut fields = json!({"target_modules": ["q_proj"]});
        fields[field] = value;
        fields
    };
    let lookahead = message(json!({"target_modules": "(?!model).*"}));
    assert!(lookahead.contains("`(?!model).*`: look-around"), "{lookahead}");
    assert!(message(q("modules_to_save", json!(["layer"]))).contains("`base_layer`"));
    // PEFT adapts the layer and then trains it whole, adapter and all.
    let nested = message(q("modules_to_save", json!(["attn"])));
    assert!(nested.contains("`model.layers.0.self_attn` is trained whole"), "{nested}");
    let bias = json!({"target_modules": ["embed_tokens"], "lora_bias": true});
    assert!(message(bias).contains("`lora_bias`"));
    assert!(message(q("use_dora", json!(true))).contains("`use_dora`"));
    let dummy = llama_plan(json!({"target_modules": "dummy-target-modules"})).unwrap();
    assert!(dummy.targets.is_empty());
}
