//! Keys that say which model is loaded and how.

use super::{Key, Kind, Range, here, ignored, later};

const NO_MEDIA: &str = "no videos or audio are read";
const ONE_VIEW: &str = "no model that takes a picture apart is implemented";
const NO_HUB: &str = "nothing is downloaded or uploaded; models and data are local folders";
const QUANTIZED: &str = "read only with `quantization_bit`";
const KERNELS: &str = "lowrank has its own kernels";
const FLOAT_KINDS: Kind =
    Kind::OneOf { here: &["auto", "float32", "bfloat16"], later: &["float16"] };

pub(super) static KEYS: &[Key] = &[
    here("adapter_folder", Kind::Text, "-", "subfolder of each adapter"),
    here("adapter_name_or_path", Kind::Names, "-", "adapter folders; the last one is trained on"),
    later("add_special_tokens", Kind::Names, "-", "special tokens to add"),
    later("add_tokens", Kind::Names, "-", "ordinary tokens to add"),
    ignored("audio_sampling_rate", Kind::Whole(1), "16000", "resample rate", NO_MEDIA),
    ignored("cache_dir", Kind::Text, "-", "download cache", NO_HUB),
    ignored("crop_to_patches", Kind::Switch, "false", "tiles of large images", ONE_VIEW),
    here(
        "disable_gradient_checkpointing",
        Kind::Switch,
        "false",
        "keep all activations instead of computing them again in the backward pass",
    ),
    ignored("double_quantization", Kind::Switch, "true", "quantize block scales", QUANTIZED),
    ignored("enable_liger_kernel", Kind::Switch, "false", "Liger's fused kernels", KERNELS),
    ignored("flash_attn", Kind::Text, "auto", "attention kernel", KERNELS),
    ignored("hf_hub_token", Kind::Text, "-", "hub credential", NO_HUB),
    ignored("image_do_pan_and_scan", Kind::Switch, "false", "crops of large images", ONE_VIEW),
    here("image_max_pixels", Kind::Whole(1), "-", "shrink larger pictures before all else"),
    here("image_min_pixels", Kind::Whole(1), "-", "enlarge smaller pictures before all else"),
    ignored(
        "infer_backend",
        Kind::Text,
        "huggingface",
        "inference engine",
        "lowrank is the engine",
    ),
    here("infer_dtype", FLOAT_KINDS, "auto", "dtype of the weights in chat and export"),
    ignored(
        "init_special_tokens",
        Kind::Text,
        "noise_init",
        "first values of added tokens",
        "read only with added tokens",
    ),
    ignored(
        "low_cpu_mem_usage",
        Kind::Switch,
        "true",
        "torch loading detail",
        "weights are memory-mapped",
    ),
    later("mixture_of_depths", Kind::Text, "-", "mixture of depths: convert or load"),
    here("model_name_or_path", Kind::Text, "-", "folder of the base model"),
    later("model_revision", Kind::Text, "main", "hub branch, tag or commit")
        .instead("models are local folders: fetch that revision and give its folder"),
    here(
        "moe_aux_loss_coef",
        Kind::Number(Range::NotNegative),
        "-",
        "factor of the loss that keeps experts evenly visited",
    ),
    ignored("ms_hub_token", Kind::Text, "-", "hub credential", NO_HUB),
    later("new_special_tokens_config", Kind::Text, "-", "file of special tokens to add"),
    ignored(
        "offload_folder",
        Kind::Text,
        "offload",
        "disk offload folder",
        "weights are memory-mapped",
    ),
    ignored("om_hub_token", Kind::Text, "-", "hub credential", NO_HUB),
    ignored(
        "print_param_status",
        Kind::Switch,
        "false",
        "list the parameters",
        "`lowrank inspect` lists them",
    ),
    later("quantization_bit", Kind::Whole(1), "-", "load the base quantized to so many bits"),
    ignored("quantization_device_map", Kind::Text, "-", "device map", QUANTIZED),
    ignored("quantization_method", Kind::Text, "bnb", "bnb, hqq or eetq", QUANTIZED),
    ignored("quantization_type", Kind::Text, "nf4", "nf4 or fp4", QUANTIZED),
    later("resize_vocab", Kind::Switch, "false", "grow the embeddings to the tokenizer's size"),
    here(
        "rope_scaling",
        Kind::OneOf { here: &["linear", "dynamic", "yarn", "llama3"], later: &[] },
        "-",
        "longer context by rescaled rotary positions",
    ),
    later("shift_attn", Kind::Switch, "false", "LongLoRA's shifted attention"),
    here(
        "split_special_tokens",
        Kind::Switch,
        "false",
        "tokenize special tokens in the text as plain text",
    ),
    later("train_from_scratch", Kind::Switch, "false", "random initial weights"),
    ignored(
        "trust_remote_code",
        Kind::Switch,
        "false",
        "run code shipped with the model",
        "code that comes with a model is never run",
    ),
    ignored(
        "upcast_layernorm",
        Kind::Switch,
        "false",
        "norm weights in f32",
        "norms are always computed in f32",
    ),
    ignored(
        "upcast_lmhead_output",
        Kind::Switch,
        "false",
        "logits in f32",
        "logits are always f32",
    ),
    ignored("use_audio_in_video", Kind::Switch, "false", "interleave audio", NO_MEDIA),
    ignored(
        "use_fast_tokenizer",
        Kind::Switch,
        "true",
        "Rust tokenizer",
        "the Rust tokenizer is the only one",
    ),
    ignored(
        "use_kv_cache",
        Kind::Switch,
        "true",
        "key-value cache in generation",
        "generation always has its cache",
    ),
    ignored("use_reentrant_gc", Kind::Switch, "true", "torch checkpointing detail", KERNELS),
    ignored("use_unsloth", Kind::Switch, "false", "Unsloth's kernels", KERNELS),
    ignored("use_unsloth_gc", Kind::Switch, "false", "Unsloth's checkpointing", KERNELS),
    ignored("use_v1_kernels", Kind::Switch, "false", "other kernels", KERNELS),
    ignored("video_fps", Kind::Number(Range::Positive), "2.0", "frames per second", NO_MEDIA),
    ignored("video_max_pixels", Kind::Whole(1), "65536", "most pixels per frame", NO_MEDIA),
    ignored("video_maxlen", Kind::Whole(1), "128", "most frames", NO_MEDIA),
    ignored("video_min_pixels", Kind::Whole(1), "256", "fewest pixels per frame", NO_MEDIA),
];
