//! Keys of the `merge` and `export` commands.

use super::{Key, Kind, here, ignored, later};

const QUANTIZED: &str = "read only with `export_quantization_bit`";

pub(super) static KEYS: &[Key] = &[
    ignored(
        "export_device",
        Kind::Text,
        "cpu",
        "cpu or auto",
        "merging happens where `device` says",
    ),
    here("export_dir", Kind::Text, "-", "folder of the merged model"),
    ignored("export_hub_model_id", Kind::Text, "-", "upload", "nothing is uploaded"),
    later("export_legacy_format", Kind::Switch, "false", ".bin files instead of safetensors"),
    later("export_quantization_bit", Kind::Whole(1), "-", "quantize by GPTQ"),
    ignored("export_quantization_dataset", Kind::Text, "-", "calibration text", QUANTIZED),
    ignored("export_quantization_maxlen", Kind::Whole(1), "1024", "calibration", QUANTIZED),
    ignored("export_quantization_nsamples", Kind::Whole(1), "128", "calibration", QUANTIZED),
    here("export_size", Kind::Whole(1), "5", "most gigabytes (10^9 bytes) of a weight file"),
];
