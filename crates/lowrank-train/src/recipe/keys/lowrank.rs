//! Keys that LLaMA-Factory doesn't have: the rest of PEFT's `LoraConfig`, and lowrank's own.

use super::{Key, Kind, Range, here};

const FLOAT_KINDS: Kind =
    Kind::OneOf { here: &["auto", "float32", "bfloat16"], later: &["float16"] };

pub(super) static KEYS: &[Key] = &[
    here(
        "alpha_pattern",
        Kind::Table,
        "{}",
        "other alpha for some modules: name or regex to number",
    ),
    here(
        "bias",
        Kind::OneOf { here: &["none", "all", "lora_only"], later: &[] },
        "none",
        "which biases of the base are trained too",
    ),
    here(
        "device",
        Kind::Mixed("`cpu`, `cuda` or `cuda:N`"),
        "cpu",
        "where the run happens: `cpu`, `cuda` or `cuda:N`",
    ),
    here("doc_stride", Kind::Whole(1), "128", "tokens that two windows of a long document share"),
    here("dtype", FLOAT_KINDS, "auto", "dtype of the base weights in training; auto: see `bf16`"),
    here(
        "exclude_modules",
        Kind::Names,
        "-",
        "modules that get no adapter: names, or a regex of the full path",
    ),
    here("fan_in_fan_out", Kind::Switch, "false", "the base stores weights as (in, out)"),
    here(
        "init_lora_weights",
        Kind::Mixed("true, false or `gaussian`"),
        "true",
        "first values of A and B; true: B is 0, the adapter starts as no change",
    ),
    here(
        "layers_pattern",
        Kind::Names,
        "-",
        "name of the list of layers that `layers_to_transform` counts",
    ),
    here(
        "layers_to_transform",
        Kind::Mixed("a layer's index, or a list of indices"),
        "-",
        "only these layers get adapters",
    ),
    here("lora_bias", Kind::Switch, "false", "a bias on B"),
    here(
        "mlm_probability",
        Kind::Number(Range::AboveZeroUpToOne),
        "0.15",
        "`stage: pt`: the share of tokens that are to be guessed",
    ),
    here("rank_pattern", Kind::Table, "{}", "other rank for some modules: name or regex to rank"),
    here(
        "skip_bad_rows",
        Kind::Switch,
        "false",
        "leave out rows that can't be used instead of stopping",
    ),
    here(
        "target_parameters",
        Kind::Names,
        "-",
        "parameters that get an adapter without being a linear layer's, as experts are: ends of names",
    ),
    here(
        "task_type",
        Kind::OneOf {
            here: &["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "SEQ_2_SEQ_LM"],
            later: &["FEATURE_EXTRACTION"],
        },
        "CAUSAL_LM",
        "what the model is trained for, PEFT's `TaskType`",
    ),
];
