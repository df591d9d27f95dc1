//! Keys of the stages that learn from preferences; none is read by stage sft.

use super::{Key, Kind, Range, ignored};

const DPO: &str = "read only by stage dpo";
const KTO: &str = "read only by stage kto";
const PPO: &str = "read only by stage ppo";
const REFERENCE: &str = "read only by stages dpo, kto and ppo";

pub(super) static KEYS: &[Key] = &[
    ignored("dpo_label_smoothing", Kind::Number(Range::UpToOne), "0", "cDPO", DPO),
    ignored("kto_chosen_weight", Kind::Number(Range::NotNegative), "1", "class weight", KTO),
    ignored("kto_rejected_weight", Kind::Number(Range::NotNegative), "1", "class weight", KTO),
    ignored("ld_alpha", Kind::Number(Range::NotNegative), "-", "LD-DPO", DPO),
    ignored("ppo_buffer_size", Kind::Whole(1), "1", "mini-batches per step", PPO),
    ignored("ppo_epochs", Kind::Whole(1), "4", "passes over a buffer", PPO),
    ignored("ppo_score_norm", Kind::Switch, "false", "normalise scores", PPO),
    ignored("ppo_target", Kind::Number(Range::Finite), "6.0", "KL target", PPO),
    ignored("ppo_whiten_rewards", Kind::Switch, "false", "whiten rewards", PPO),
    ignored("pref_bco_weight", Kind::Number(Range::NotNegative), "0", "BCO share", DPO),
    ignored(
        "pref_beta",
        Kind::Number(Range::NotNegative),
        "0.1",
        "beta",
        "read only by stages dpo and kto",
    ),
    ignored(
        "pref_ftx",
        Kind::Number(Range::NotNegative),
        "0",
        "SFT share",
        "read only by stages dpo and kto",
    ),
    ignored("pref_loss", Kind::Text, "sigmoid", "kind of loss", DPO),
    ignored("ref_model", Kind::Text, "-", "reference model", REFERENCE),
    ignored("ref_model_adapters", Kind::Text, "-", "its adapters", REFERENCE),
    ignored("ref_model_quantization_bit", Kind::Whole(1), "-", "its bits", REFERENCE),
    ignored("reward_model", Kind::Text, "-", "reward model", PPO),
    ignored("reward_model_adapters", Kind::Text, "-", "its adapters", PPO),
    ignored("reward_model_quantization_bit", Kind::Whole(1), "-", "its bits", PPO),
    ignored("reward_model_type", Kind::Text, "lora", "lora, full or api", PPO),
    ignored("simpo_gamma", Kind::Number(Range::Finite), "0.5", "SimPO's margin", DPO),
];
