"""Generation with transformers: `{"prompt": [...], "new": n}` is answered with the seconds after
which each new token came."""

import json
import sys
import time

import torch
import transformers

transformers.logging.set_verbosity_error()


class Clock(transformers.generation.BaseStreamer):
    """Hears of the prompt first, then of every token."""

    def __init__(self):
        self.begun = time.perf_counter()
        self.heard = []

    def put(self, _):
        self.heard.append(time.perf_counter() - self.begun)

    def end(self):
        pass


def main():
    settings = json.loads(sys.stdin.readline())
    begun = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["dtype"])
    )
    model.eval()
    answer = {"threads": torch.get_num_threads(), "load_seconds": time.perf_counter() - begun}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        ids = torch.tensor([question["prompt"]])
        clock = Clock()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=question["new"],
            max_new_tokens=question["new"],
            streamer=clock,
        )
        tokens = out[0, ids.shape[1] :].tolist()
        print(json.dumps({"times": clock.heard[1:], "tokens": tokens}), flush=True)


main()
