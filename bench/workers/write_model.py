"""Writes a model of a given shape with random weights: `write_model.py FOLDER SETTINGS`."""

import json
import sys

import torch
import transformers

folder, settings = sys.argv[1], json.loads(sys.argv[2])
classes = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
}
config_class, model_class = classes[settings["model_type"]]
config = config_class(
    hidden_size=settings["hidden"],
    intermediate_size=settings["intermediate"],
    num_hidden_layers=settings["layers"],
    num_attention_heads=settings["heads"],
    num_key_value_heads=settings["kv_heads"],
    vocab_size=settings["vocabulary"],
    tie_word_embeddings=settings["tied"],
    max_position_embeddings=4096,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
torch.manual_seed(0)
model = model_class(config).to(getattr(torch, settings["dtype"]))
model.save_pretrained(folder)
