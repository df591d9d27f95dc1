//! Keys that say which data is read and how it becomes tokens.

use super::{Key, Kind, Range, here, ignored, later};

const THREADS: &str = "rows are prepared on threads, and the result doesn't depend on their number";
const NO_CACHE: &str = "there is no preprocessing cache";

pub(super) static KEYS: &[Key] = &[
    ignored("buffer_size", Kind::Whole(1), "16384", "shuffle buffer", "read only with `streaming`"),
    here("cutoff_len", Kind::Whole(2), "2048", "most tokens of a sample, or of a packed row"),
    ignored("data_shared_file_system", Kind::Switch, "false", "one rank prepares", NO_CACHE),
    here("dataset", Kind::Names, "-", "names in dataset_info.json"),
    here(
        "dataset_dir",
        Kind::Mixed("a folder, or a map like dataset_info.json"),
        "data",
        "folder of dataset_info.json, or its content as a map",
    ),
    here("default_system", Kind::Text, "-", "system text of rows without one"),
    here(
        "enable_thinking",
        Kind::Switch,
        "true",
        "how reasoning templates treat thoughts; null is a third way",
    ),
    here("eval_dataset", Kind::Names, "-", "names in dataset_info.json to evaluate on"),
    ignored(
        "eval_num_beams",
        Kind::Whole(1),
        "-",
        "beams in prediction",
        "read only with `predict_with_generate`",
    ),
    later("eval_on_each_dataset", Kind::Switch, "false", "metrics per dataset"),
    here("ignore_pad_token_for_loss", Kind::Switch, "true", "padding carries no loss"),
    ignored(
        "interleave_probs",
        Kind::Any,
        "-",
        "shares",
        "read only with an interleaving `mix_strategy`",
    ),
    here("mask_history", Kind::Switch, "false", "loss on the last turn only"),
    here("max_samples", Kind::Whole(1), "-", "only the first rows of each dataset"),
    here("media_dir", Kind::Text, "-", "where the paths of pictures begin; null: in `dataset_dir`"),
    here(
        "mix_strategy",
        Kind::OneOf {
            here: &["concat"],
            later: &["interleave_under", "interleave_over", "interleave_once"],
        },
        "concat",
        "how datasets are joined",
    ),
    here(
        "neat_packing",
        Kind::Switch,
        "false",
        "pack, and keep packed samples from seeing each other",
    ),
    ignored("overwrite_cache", Kind::Switch, "false", "prepare again", NO_CACHE),
    here("packing", Kind::Switch, "-", "put several samples into a row of cutoff_len tokens"),
    here("preprocessing_batch_size", Kind::Whole(1), "1000", "rows that are packed together"),
    ignored("preprocessing_num_workers", Kind::Whole(1), "-", "processes", THREADS),
    here("preserve_thinking", Kind::Switch, "false", "keep the thoughts of earlier turns"),
    later("streaming", Kind::Switch, "false", "iterate without loading everything"),
    here("template", Kind::Text, "-", "chat format; null: the model's own chat_template"),
    later("tokenized_path", Kind::Text, "-", "folder of tokenized data"),
    here("tool_format", Kind::Text, "-", "style of tool calls; null: the template's"),
    here("train_on_prompt", Kind::Switch, "false", "loss on prompts too"),
    here(
        "val_size",
        Kind::Number(Range::NotNegative),
        "0",
        "rows split off for evaluation: a share below 1, or a count",
    ),
];
