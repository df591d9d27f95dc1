"""Short rows, the whole job: `SEQ_CLS` with LoRA on all-MiniLM-L6-v2 for banking77, from the start of
the process to the accuracy on held-out rows."""

import csv
import json
import random
import shutil

from . import install
from .processes import run
from .sides import Side, alternate, failures

HELD_OUT = 2003
RECIPE = """\
model_name_or_path: {model}
stage: sft
do_train: true
do_eval: true
finetuning_type: lora
task_type: SEQ_CLS
lora_target: query,value
lora_rank: 8
lora_alpha: 16
lora_dropout: 0.05
dataset_dir: {folder}
dataset: bank_train
eval_dataset: bank_test
cutoff_len: 128
per_device_train_batch_size: 32
per_device_eval_batch_size: 64
learning_rate: 2.0e-3
lr_scheduler_type: linear
warmup_ratio: 0.05
num_train_epochs: {epochs}.0
disable_gradient_checkpointing: true
logging_steps: 50
save_strategy: "no"
output_dir: {output}
overwrite_output_dir: true
"""


def measure(settings, results):
    """Both sides, taking turns."""
    name = "minilm/banking77"
    if settings.resume and results.done(name):
        return
    print(name, flush=True)
    if not settings.banking77.is_file():
        skip = f"skipped: `{settings.banking77}` is missing; name banking77's train.csv with --banking77"
        print(f"  {skip}", flush=True)
        results.put(name, {"failures": {"data": skip}, "complete": False, "rounds": []})
        return
    model = install.minilm(settings)
    folder = settings.cache / "banking77"
    split(settings.banking77, folder)
    output = folder / "out"
    recipe = folder / "recipe.yaml"
    epochs = settings.minilm_epochs
    recipe.write_text(RECIPE.format(model=model, folder=folder, epochs=epochs, output=output))

    def lowrank():
        shutil.rmtree(output, ignore_errors=True)
        done = run([settings.lowrank, "train", recipe])
        found = {"seconds": done.seconds, "peak_bytes": done.peak_bytes}
        evaluation = output / "eval_results.json"
        if evaluation.is_file():
            found["accuracy"] = json.loads(evaluation.read_text()).get("eval_accuracy")
        return shown("lowrank", found)

    def torch():
        script = settings.workers / "minilm.py"
        done = run([settings.python, script, model, folder, epochs])
        found = json.loads(done.output.splitlines()[-1])
        return shown("torch", {"seconds": done.seconds, "peak_bytes": done.peak_bytes, **found})

    found = {"epochs": epochs, "failures": {}, "complete": False}
    sides = [Side("f32/lowrank", lowrank, 3600), Side("f32/torch", torch, 3600)]
    pairs = min(settings.minilm_pairs, settings.pairs)
    store = lambda rounds: results.put(name, {**found, "rounds": rounds})  # noqa: E731
    found["rounds"] = alternate(sides, pairs, store)
    found["failures"] = failures(sides)
    found["complete"] = True
    results.put(name, found)


def shown(side, found):
    """A line for whoever watches."""
    print(f"  {side} {found['seconds']:.1f} s, accuracy {found.get('accuracy')}", flush=True)
    return found


def split(source, folder):
    """Fixed training and held-out rows, with a column `label`."""
    folder.mkdir(parents=True, exist_ok=True)
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    random.Random(42).shuffle(rows)
    parts = {"test": rows[:HELD_OUT], "train": rows[HELD_OUT:]}
    info = {}
    for part, chosen in parts.items():
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([r["text"], r.get("label") or r["category"]] for r in chosen)
        info[f"bank_{part}"] = {"file_name": f"{part}.csv", "formatting": "classification"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
