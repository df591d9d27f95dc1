"""The LoRA step. lowrank: whole runs of `lowrank train`, a long one less a short one, so that start
and loading drop out. torch: steps timed inside a process that has warmed up."""

import contextlib
import json
import math
import shutil

from . import gpu
from .processes import Failed, Worker, available_memory, run
from .results import at
from .shapes import DTYPES, MODELS, data_folder, model_folder, sizes, task_of
from .sides import Side, alternate, failures

RECIPE = """\
model_name_or_path: {model}
bf16: {bf16}
stage: sft
do_train: true
finetuning_type: lora
task_type: {task}
lora_target: {targets}
lora_rank: 8
lora_alpha: 16
lora_dropout: 0.0
dataset_dir: {data}
dataset: rows
disable_shuffling: true
cutoff_len: {length}
per_device_train_batch_size: {batch}
learning_rate: 1.0e-4
lr_scheduler_type: constant
num_train_epochs: 1000.0
disable_gradient_checkpointing: {no_checkpointing}
logging_steps: 1
save_strategy: "no"
overwrite_output_dir: true
output_dir: {output}
device: {device}
"""

#: Most steps of a measurement, by device.
STEPS = {"cpu": 40, "cuda": 400}


def measure(settings, results, cell, part="lora"):
    """All dtypes of a cell, taking turns if memory allows."""
    name = "/".join([part, *cell])
    if settings.resume and results.done(name):
        return
    print(name, flush=True)
    found = {**cell._asdict(), "rounds": [], "complete": False, "failures": {}}
    found["matrices"] = sizes(settings, cell.shape, settings.dtypes[0])["matrices"]
    needed = sum(torch_memory(settings, cell, dtype) for dtype in settings.dtypes)
    together = needed < 0.7 * available_memory()
    found["dtypes_alternate"] = together
    groups = [settings.dtypes] if together else [[dtype] for dtype in settings.dtypes]
    for group in groups:
        rounds = measure_group(settings, results, name, cell, group, found)
        merge(found["rounds"], rounds)
    found["complete"] = True
    results.put(name, found)


def merge(all_rounds, rounds):
    """Adds a group's rounds to those of the groups before."""
    all_rounds.extend({} for _ in range(len(rounds) - len(all_rounds)))
    for whole, part in zip(all_rounds, rounds):
        whole.update(part)


def measure_group(settings, results, name, cell, dtypes, found):
    """Rounds of some dtypes."""
    with contextlib.ExitStack() as stack:
        sides, runs = [], {}
        for dtype in dtypes:
            for maker in (Lowrank, Torch):
                label = f"{dtype}/{maker.NAME}"
                try:
                    side = runs[label] = maker(settings, cell, dtype, stack)
                    sides.append(Side(label, side.measure, settings.limit))
                except (Failed, OSError, LookupError, ValueError) as problem:
                    found["failures"][label] = f"{type(problem).__name__}: {problem}"
                    print(f"  {label} failed: {problem}", flush=True)

        def store(rounds):
            show(rounds[-1], cell)
            partial = {**found, "rounds": [dict(r) for r in found["rounds"]]}
            merge(partial["rounds"], rounds)
            results.put(name, partial)

        rounds = alternate(sides, settings.pairs, store)
        found["failures"].update(failures(sides))
        for label, side in runs.items():
            found.setdefault("facts", {})[label] = side.facts
        return rounds


def show(measured, cell):
    """A line for whoever watches."""
    tokens = batch_of(cell)[0] * batch_of(cell)[1]
    parts = [
        f"{dtype} {side} {tokens / m['seconds']:.0f} tok/s {m['peak_bytes'] / 1e9:.2f} GB"
        for dtype, sides in measured.items()
        for side, m in sides.items()
    ]
    print("  " + " | ".join(parts), flush=True)


def batch_of(cell):
    """Rows and tokens of a row."""
    batch, length = cell.tokens.split("x")
    return int(batch), int(length)


def torch_memory(settings, cell, dtype):
    """A guess at what torch will need, on the high side."""
    batch, length = batch_of(cell)
    size, vocabulary = sizes(settings, cell.shape, dtype), MODELS[cell.shape].fields["vocab_size"]
    bytes_each = 4 if dtype == "f32" else 2
    of_token = 1.5 * bytes_each * size["widths"] + 4 * 4 * vocabulary  # the latter for logits
    return 0.5e9 + size["elements"] * bytes_each * 1.3 + batch * length * of_token


def steps_for(settings, step, least):
    """How many steps of so many seconds a measurement takes."""
    return min(max(math.ceil(settings.seconds / step), least), STEPS[settings.device])


class Lowrank:
    """`lowrank train`, from outside."""

    NAME = "lowrank"

    def __init__(self, settings, cell, dtype, _stack):
        batch, length = batch_of(cell)
        folder = settings.cache / "runs" / f"{cell.shape}-{dtype}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.recipe, self.output = folder / "recipe.yaml", folder / "out"
        self.binary, self.device = settings.lowrank, settings.device
        self.recipe.write_text(
            RECIPE.format(
                model=model_folder(settings, cell.shape, dtype),
                bf16=str(dtype == "bf16").lower(),
                task=MODELS[cell.shape].task,
                targets=cell.targets,
                data=data_folder(settings, length, cell.shape),
                length=length,
                batch=batch,
                no_checkpointing=str(cell.checkpointing == "off").lower(),
                output=self.output,
                device=settings.device,
            )
        )
        # The first run warms the file cache, the others say how many steps a measurement needs.
        _, one, two = self.train(1), self.train(1), self.train(2)
        step = max(two.seconds - one.seconds, 1e-3)
        self.steps = steps_for(settings, step, 2)
        log = (self.output / "trainer_log.jsonl").read_text().splitlines()
        self.facts = {"first_loss": json.loads(log[0])["loss"]}

    def train(self, steps):
        return run([self.binary, "train", self.recipe, f"max_steps={steps}"])

    def measure(self):
        short = self.train(1)
        with gpu.Peak() if self.device == "cuda" else contextlib.nullcontext() as peak:
            long = self.train(1 + self.steps)
        return {
            "seconds": (long.seconds - short.seconds) / self.steps,
            "short_seconds": short.seconds,
            "long_seconds": long.seconds,
            "steps": self.steps,
            "peak_bytes": peak.most if peak else long.peak_bytes,
        }


class Torch:
    """A process with torch that has made two steps."""

    NAME = "torch"

    def __init__(self, settings, cell, dtype, stack):
        batch, length = batch_of(cell)
        question = {
            "model": str(model_folder(settings, cell.shape, dtype)),
            "rows": str(data_folder(settings, length, cell.shape) / "rows.jsonl"),
            "task": MODELS[cell.shape].task,
            **task_of(cell.shape)._asdict(),
            "dtype": DTYPES[dtype],
            "targets": cell.targets,
            "batch": batch,
            "checkpointing": cell.checkpointing == "on",
            "device": settings.device,
        }
        before = gpu.used() if settings.device == "cuda" else 0
        command = [settings.python, settings.workers / "train.py"]
        self.worker = stack.enter_context(Worker(command, question))
        first, second = (self.worker.ask({"steps": 1}) for _ in range(2))
        self.steps = steps_for(settings, second["seconds"], 1)
        self.facts = {"first_loss": first["losses"][0], **self.worker.ready}
        # Its allocator keeps what it once had, and no other side begins meanwhile.
        self.on_gpu = gpu.used() - before if settings.device == "cuda" else None

    def measure(self):
        done = self.worker.ask({"steps": self.steps})
        memory = self.worker.ask({"memory": True})
        if self.on_gpu is not None:
            memory = {"peak_bytes": self.on_gpu}
        return {"seconds": done["seconds"] / self.steps, "steps": self.steps, **memory}


def tokens_per_second(cell, measured, dtype, side):
    """Speed of a side in a round."""
    batch, length = batch_of(cell)
    seconds = at(measured, dtype, side, "seconds")
    return batch * length / seconds if seconds else None
