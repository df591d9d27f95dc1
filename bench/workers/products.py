"""Matrix products of a model's linear layers with torch: each answer is one pass over the model.

First line: the settings. Every further line: `{"passes": n}`, answered with the seconds by shape.
"""

import glob
import json
import sys
import time

import safetensors
import torch


def weights(folder, tied):
    """All matrices of linear layers, in the model's order."""
    found = []
    for path in sorted(glob.glob(f"{folder}/*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():
                head = "embed_tokens.weight" if tied else "lm_head.weight"
                if name.endswith("_proj.weight") or name.endswith(head):
                    found.append(file.get_tensor(name))
    return found


@torch.no_grad()
def passes(matrices, operands, count):
    """Seconds of forward and input gradient by shape, one entry for each pass."""
    times = {}
    for _ in range(count):
        sums = {}
        for w in matrices:
            x, dy = operands[tuple(w.shape)]
            begun = time.perf_counter()
            y = torch.nn.functional.linear(x, w)
            middle = time.perf_counter()
            dx = dy @ w
            end = time.perf_counter()
            del y, dx
            entry = sums.setdefault(tuple(w.shape), [0, 0.0, 0.0])
            entry[0] += 1
            entry[1] += middle - begun
            entry[2] += end - middle
        for shape, (number, forward, gradient) in sums.items():
            entry = times.setdefault(shape, {"count": number, "forward": [], "gradient": []})
            entry["forward"].append(forward)
            entry["gradient"].append(gradient)
    return [
        {
            "out": shape[0],
            "input": shape[1],
            "count": entry["count"],
            "forward_seconds": entry["forward"],
            "gradient_seconds": entry["gradient"],
        }
        for shape, entry in sorted(times.items())
    ]


def main():
    settings = json.loads(sys.stdin.readline())
    matrices = weights(settings["model"], settings["tied"])
    torch.manual_seed(0)
    dtype = getattr(torch, settings["dtype"])
    operands = {}
    for out, inputs in {tuple(w.shape) for w in matrices}:
        shapes = ((settings["rows"], inputs), (settings["rows"], out))
        operands[out, inputs] = [torch.randn(s).to(dtype) for s in shapes]
    passes(matrices, operands, 1)
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        shapes = passes(matrices, operands, json.loads(line)["passes"])
        print(json.dumps({"shapes": shapes}), flush=True)


main()
