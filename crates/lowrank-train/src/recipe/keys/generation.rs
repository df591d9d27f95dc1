//! Keys of generation, and of LLaMA-Factory's `eval` command.

use super::{Key, Kind, Range, here, ignored, later};

const WITH_TASK: &str = "read only with `task`";

pub(super) static KEYS: &[Key] = &[
    here("do_sample", Kind::Switch, "true", "draw the next token instead of taking the likeliest"),
    later("length_penalty", Kind::Number(Range::Finite), "1", "beam search's length penalty"),
    here(
        "max_length",
        Kind::Whole(1),
        "1024",
        "most tokens with the prompt, if max_new_tokens is 0",
    ),
    here("max_new_tokens", Kind::Whole(0), "1024", "most tokens of an answer"),
    later("num_beams", Kind::Whole(1), "1", "beam search"),
    here(
        "repetition_penalty",
        Kind::Number(Range::Positive),
        "1",
        "above 1: avoid tokens already there",
    ),
    here("skip_special_tokens", Kind::Switch, "true", "leave special tokens out of the text"),
    here("temperature", Kind::Number(Range::NotNegative), "0.95", "0: always the likeliest token"),
    here("top_k", Kind::Whole(0), "50", "draw from so many likeliest tokens; 0: from all"),
    here(
        "top_p",
        Kind::Number(Range::AboveZeroUpToOne),
        "0.7",
        "draw from the likeliest tokens with this sum",
    ),
];

pub(super) static BENCHMARK_KEYS: &[Key] = &[
    ignored("batch_size", Kind::Whole(1), "4", "rows at once", WITH_TASK),
    ignored("download_mode", Kind::Text, "reuse_dataset_if_exists", "downloads", WITH_TASK),
    ignored("lang", Kind::Text, "en", "en or zh", WITH_TASK),
    ignored("n_shot", Kind::Whole(0), "5", "examples in the prompt", WITH_TASK),
    ignored("save_dir", Kind::Text, "-", "results folder", WITH_TASK),
    later("task", Kind::Text, "-", "benchmark to run"),
    ignored("task_dir", Kind::Text, "evaluation", "data folder", WITH_TASK),
];
