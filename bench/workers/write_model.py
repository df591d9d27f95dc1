"""Writes a model of a given shape with random weights: `write_model.py FOLDER SETTINGS`."""

import json
import sys

import torch
import transformers
from transformers.pytorch_utils import Conv1D

#: Layers that see one token of a text.
POOLED = ("bert.pooler.dense", "classifier")


def sizes(model):
    """Elements of the model, and of all matrices that a token is multiplied with, the output layer
    among them, of experts those that it visits; and the widths of what goes in and comes out."""
    found = {"elements": sum(p.numel() for p in model.parameters()), "matrices": 0, "widths": 0}

    def add(matrix, times=1):
        found["matrices"] += times * matrix.numel()
        found["widths"] += times * sum(matrix.shape)

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name not in POOLED:
            add(module.weight)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3:
                add(parameter[0], model.config.num_experts_per_tok)
    return found


def main():
    folder, settings = sys.argv[1], json.loads(sys.argv[2])
    config = transformers.AutoConfig.for_model(settings["model_type"], **settings["fields"])
    torch.manual_seed(0)
    model = getattr(transformers, settings["auto_class"]).from_config(config)
    model = model.to(getattr(torch, settings["dtype"]))
    model.save_pretrained(folder)
    with open(f"{folder}/sizes.json", "w") as file:
        json.dump(sizes(model), file)


main()
