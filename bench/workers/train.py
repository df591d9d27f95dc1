"""LoRA steps with torch + transformers + peft: answers JSON lines with JSON lines.

First line: the settings. Then `{"steps": n}` runs n steps and answers with their seconds and losses,
`{"memory": true}` with the peak."""

import gc
import json
import sys
import time

import peft
import torch
import transformers

transformers.logging.set_verbosity_error()


def peak_bytes():
    """The most memory that this process had in RAM."""
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def reset_peak():
    """Lets the kernel count the peak from here on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def ids(rows, column):
    """The number in each word, which is its token or class."""
    texts = [row[column].split() for row in rows]
    return torch.tensor([[int(word[1:]) for word in text] for text in texts])


class Run:
    def __init__(self, settings):
        dtype = getattr(torch, settings["dtype"])
        auto_class = getattr(transformers, settings["auto_class"])
        model = auto_class.from_pretrained(settings["model"], dtype=dtype)
        if settings["checkpointing"]:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        targets = settings["targets"]
        config = peft.LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=targets if targets == "all-linear" else targets.split(","),
            task_type=settings["task"],
        )
        self.device = settings["device"]
        self.model = peft.get_peft_model(model, config).to(self.device)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0)
        with open(settings["rows"]) as file:
            rows = [json.loads(line) for line in file]
        self.input, self.labels = (ids(rows, settings[column]) for column in ("input", "labels"))
        self.batch = settings["batch"]
        self.next = 0

    def step(self):
        places = [(self.next + i) % len(self.input) for i in range(self.batch)]
        self.next += self.batch
        input_ids, labels = (t[places].to(self.device) for t in (self.input, self.labels))
        loss = self.model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def main():
    settings = json.loads(sys.stdin.readline())
    begun = time.perf_counter()
    run = Run(settings)
    loading_peak = peak_bytes()
    gc.collect()
    reset_peak()
    steps_peak = 0
    answer = {"threads": torch.get_num_threads(), "load_seconds": time.perf_counter() - begun}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "steps" in question:
            begun = time.perf_counter()
            losses = [run.step() for _ in range(question["steps"])]
            answer = {"seconds": time.perf_counter() - begun, "losses": losses}
        else:
            steps_peak = peak_bytes()
            answer = {"peak_bytes": max(loading_peak, steps_peak), "steps_peak_bytes": steps_peak}
        print(json.dumps(answer), flush=True)


main()
