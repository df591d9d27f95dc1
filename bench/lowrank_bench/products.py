"""Matrix products of a model's own layers: `x·Wᵀ` and `dy·W` with 512 rows."""

import contextlib
import json

from .processes import Failed, Worker, run
from .results import at, ratio
from .shapes import DTYPES, SHAPES, model_folder
from .sides import Side, alternate, failures

ROWS = 512
DIRECTIONS = ("forward_seconds", "gradient_seconds")


def measure(settings, results, shape):
    """Both sides and all dtypes, taking turns."""
    name = f"products/{shape}"
    if settings.resume and results.done(name):
        return
    print(name, flush=True)
    found = {"shape": shape, "rows": ROWS, "failures": {}, "complete": False}
    with contextlib.ExitStack() as stack:
        sides = []
        for dtype in settings.dtypes:
            folder = model_folder(settings, shape, dtype)
            sides.append(Side(f"{dtype}/lowrank", lowrank(settings, folder), settings.limit))
            try:
                worker = torch(settings, stack, folder, shape, dtype)
            except (Failed, OSError, ValueError) as problem:
                found["failures"][f"{dtype}/torch"] = str(problem)
                continue
            measured = lambda worker=worker: worker.ask({"passes": 1})["shapes"]  # noqa: E731
            sides.append(Side(f"{dtype}/torch", measured, settings.limit))

        def store(rounds):
            show(rounds[-1])
            results.put(name, {**found, "rounds": rounds})

        found["rounds"] = alternate(sides, settings.pairs, store)
    found["failures"].update(failures(sides))
    found["complete"] = True
    results.put(name, found)


def lowrank(settings, folder):
    """One pass of `lowrank bench`, behind one that isn't counted."""
    command = [settings.lowrank, "bench", "--model", folder, "--only", "products"]
    command += ["--rows", ROWS, "--passes", 1, "--json"]
    return lambda: json.loads(run(command).output)["products"]["shapes"]


def torch(settings, stack, folder, shape, dtype):
    """A process that holds the same weights."""
    question = {
        "model": str(folder),
        "tied": SHAPES[shape].fields["tie_word_embeddings"],
        "dtype": DTYPES[dtype],
        "rows": ROWS,
    }
    command = [settings.python, settings.workers / "products.py"]
    return stack.enter_context(Worker(command, question))


def show(measured):
    """A line for whoever watches."""
    parts = [
        f"{dtype} {side} {work(shapes, ROWS) / seconds(shapes) / 1e9:.0f} GFLOP/s"
        for dtype, sides in measured.items()
        for side, shapes in sides.items()
    ]
    print("  " + " | ".join(parts), flush=True)


def seconds(shapes, directions=DIRECTIONS):
    """Time of one pass over all layers; `None` without any."""
    return sum(s[d][0] for s in shapes for d in directions) if shapes else None


def work(shapes, rows, directions=DIRECTIONS):
    """Floating-point operations of that pass."""
    return sum(len(directions) * 2 * rows * s["count"] * s["out"] * s["input"] for s in shapes)


def rate(shapes, rows, directions=DIRECTIONS):
    """GFLOP/s of that pass."""
    total = seconds(shapes, directions)
    return work(shapes, rows, directions) / total / 1e9 if total else None


def peak(cell, dtype):
    """Best rate that anybody reached over the model's shapes, in FLOP/s: for each shape and
    direction the best time of either side. bf16 weights may be widened to f32, so f32 counts for
    bf16 too."""
    dtypes = ("f32",) if dtype == "f32" else ("f32", "bf16")
    best, shapes = {}, None
    for measured in cell.get("rounds", []):
        for name in dtypes:
            for side in ("lowrank", "torch"):
                found = at(measured, name, side)
                shapes = shapes or found
                for s in found or []:
                    for direction in DIRECTIONS:
                        key = (s["out"], s["input"], direction)
                        best[key] = min(best.get(key, float("inf")), s[direction][0])
    total = sum(best.values())
    return work(shapes, cell["rows"]) / total if total else None


def speed_up(measured, dtype):
    """Torch's time over lowrank's, in a round."""
    return ratio(seconds(at(measured, dtype, "torch")), seconds(at(measured, dtype, "lowrank")))
