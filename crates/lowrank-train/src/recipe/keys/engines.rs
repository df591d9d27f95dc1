//! Keys of Python-side engines: they steer software that isn't there, so they are accepted,
//! reported once and not looked at.

use super::{Key, Kind, ignored};

const fn foreign<const N: usize>(
    names: [&'static str; N],
    doc: &'static str,
    reason: &'static str,
) -> [Key; N] {
    let mut keys = [ignored("", Kind::Any, "-", doc, reason); N];
    let mut i = 0;
    while i < N {
        keys[i].name = names[i];
        i += 1;
    }
    keys
}

pub(super) static DISTRIBUTED: [Key; 11] = foreign(
    [
        "accelerator_config",
        "ddp_find_unused_parameters",
        "ddp_timeout",
        "deepspeed",
        "fsdp",
        "fsdp_config",
        "fsdp_transformer_layer_cls_to_wrap",
        "master_addr",
        "master_port",
        "ray_init_kwargs",
        "ray_num_workers",
    ],
    "distribution by DeepSpeed, FSDP, DDP or Ray",
    "lowrank distributes runs by MPI or NCCL, without these engines",
);

pub(super) static FP8: [Key; 3] = foreign(
    ["fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"],
    "matrix products in FP8",
    "products are f32 or bf16",
);

pub(super) static PROFILING: [Key; 10] = foreign(
    [
        "enable_torch_profiler",
        "profile_modules",
        "profiler_active_steps",
        "profiler_output_dir",
        "profiler_profile_memory",
        "profiler_record_shapes",
        "profiler_repeat",
        "profiler_wait_steps",
        "profiler_warmup_steps",
        "profiler_with_stack",
    ],
    "torch's profiler",
    "there is no torch to profile",
);

pub(super) static SWANLAB: [Key; 9] = foreign(
    [
        "swanlab_api_key",
        "swanlab_lark_secret",
        "swanlab_lark_webhook_url",
        "swanlab_logdir",
        "swanlab_mode",
        "swanlab_project",
        "swanlab_run_name",
        "swanlab_workspace",
        "use_swanlab",
    ],
    "the SwanLab tracker",
    "curves go to files and to TensorBoard, not to trackers on the network",
);

pub(super) static KTRANSFORMERS: [Key; 9] = foreign(
    [
        "kt_config",
        "kt_cpu_activation",
        "kt_expert_checkpoint_path",
        "kt_lora_expert_intermediate_size",
        "kt_lora_expert_num",
        "kt_non_expert_weight_path",
        "kt_use_lora_experts",
        "kt_weight_path",
        "use_kt",
    ],
    "experts on the CPU by KTransformers",
    "lowrank is the engine",
);

pub(super) static MEGATRON: [Key; 32] = foreign(
    [
        "account_for_embedding_in_pipeline_split",
        "account_for_loss_in_pipeline_split",
        "apply_rope_fusion",
        "bias_activation_fusion",
        "calculate_per_token_loss",
        "context_parallel_size",
        "cross_entropy_loss_fusion",
        "expert_model_parallel_size",
        "export_hf_on_finish",
        "extra_config",
        "hyper_parallel_args",
        "hyper_parallel_cp_size",
        "masked_softmax_fusion",
        "megatron_bridge_args",
        "megatron_pretrained_checkpoint",
        "mixed_precision",
        "moe_grouped_gemm",
        "moe_token_dispatcher_type",
        "overlap_grad_reduce",
        "overlap_param_gather",
        "pipeline_model_parallel_size",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
        "sequence_parallel",
        "tensor_model_parallel_size",
        "use_distributed_optimizer",
        "use_hyper_parallel",
        "use_mca",
        "use_megatron_bridge",
        "use_packed_sequences",
        "virtual_pipeline_model_parallel_size",
    ],
    "another training engine",
    "lowrank is the engine",
);

pub(super) static INFERENCE: [Key; 10] = foreign(
    [
        "sglang_config",
        "sglang_lora_backend",
        "sglang_maxlen",
        "sglang_mem_fraction",
        "sglang_tp_size",
        "vllm_config",
        "vllm_enforce_eager",
        "vllm_gpu_util",
        "vllm_max_lora_rank",
        "vllm_maxlen",
    ],
    "another inference engine",
    "lowrank is the engine",
);
