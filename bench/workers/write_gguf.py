"""A model folder as a GGUF file for llama.cpp: `write_gguf.py FOLDER FILE DTYPE`.

Just what llama.cpp needs to run token ids: the tokens' texts are placeholders."""

import glob
import json
import sys

import gguf
import safetensors
import torch

folder, path, dtype = sys.argv[1:]
config = json.load(open(f"{folder}/config.json"))
llama = config["model_type"] == "llama"

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def name_of(name):
    """llama.cpp's name of a tensor."""
    if name in TOP:
        return TOP[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def permuted(name, tensor):
    """llama.cpp rotates neighbouring numbers in its `llama` architecture, transformers halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for module, count in heads.items():
        if llama and name.endswith(f"{module}.weight"):
            rows, columns = tensor.shape
            halves = tensor.reshape(count, 2, rows // count // 2, columns)
            return halves.swapaxes(1, 2).reshape(rows, columns).contiguous()
    return tensor


def add(name, tensor):
    """Vectors are f32 in llama.cpp, matrices keep their dtype."""
    tensor = permuted(name, tensor)
    if tensor.dim() == 1 or tensor.dtype == torch.float32:
        writer.add_tensor(name_of(name), tensor.float().numpy())
    else:
        raw = tensor.view(torch.uint8).numpy()
        writer.add_tensor(name_of(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def vocabulary():
    """A token for each row of the embedding."""
    tokens = [f"w{i}" for i in range(config["vocab_size"])]
    tokens[:4] = ["<pad>", "<s>", "</s>", "<unk>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control] * 4 + [normal] * (len(tokens) - 4))
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


writer = gguf.GGUFWriter(path, config["model_type"])
writer.add_context_length(4096)
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_block_count(config["num_hidden_layers"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
if llama:
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
writer.add_vocab_size(config["vocab_size"])
bf16, f32 = gguf.LlamaFileType.MOSTLY_BF16, gguf.LlamaFileType.ALL_F32
writer.add_file_type(bf16 if dtype == "bfloat16" else f32)
vocabulary()
for file_path in sorted(glob.glob(f"{folder}/*.safetensors")):
    with safetensors.safe_open(file_path, "pt") as file:
        for name in file.keys():
            add(name, file.get_tensor(name))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
