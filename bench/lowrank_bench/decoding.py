"""Generation: tokens one by one, and the first token after a prompt of 512, against transformers and
llama.cpp."""

import contextlib
import json

from . import install
from .processes import Failed, Worker, run
from .shapes import DTYPES, WORDS, model_folder
from .sides import Side, alternate, failures

SHORT, LONG = 16, 512


def measure(settings, results, shape):
    """All sides and dtypes, taking turns."""
    name = f"decode/{shape}"
    if settings.resume and results.done(name):
        return
    print(name, flush=True)
    found = {"shape": shape, "failures": {}, "complete": False, "new_tokens": settings.new_tokens}
    makers = {"lowrank": lowrank, "transformers": transformers, "llama.cpp": llama_cpp}
    with contextlib.ExitStack() as stack:
        sides = []
        for dtype in settings.dtypes:
            folder = model_folder(settings, shape, dtype)
            for side, maker in makers.items():
                try:
                    ask = maker(settings, stack, folder, shape, dtype)
                    sides.append(Side(f"{dtype}/{side}", ask, settings.limit))
                except (Failed, OSError, ValueError) as problem:
                    found["failures"][f"{dtype}/{side}"] = str(problem)
                    print(f"  {dtype}/{side} skipped: {problem}", flush=True)
        found["memory"] = [bandwidth(settings, shape)]

        def store(rounds):
            show(rounds[-1])
            results.put(name, {**found, "rounds": rounds})

        found["rounds"] = alternate(sides, settings.pairs, store)
        found["memory"].append(bandwidth(settings, shape))
    found["failures"].update(failures(sides))
    found["complete"] = True
    results.put(name, found)


def show(measured):
    """A line for whoever watches."""
    parts = [
        f"{dtype} {side} {m['tokens_per_second']:.1f} tok/s, first after {m['first_seconds']:.2f} s"
        for dtype, sides in measured.items()
        for side, m in sides.items()
    ]
    print("  " + " | ".join(parts), flush=True)


def prompt(tokens):
    """The prompts of `lowrank bench`."""
    return [3 + 7919 * i % (WORDS - 3) for i in range(tokens)]


def bandwidth(settings, shape):
    """Measured memory bandwidth."""
    folder = model_folder(settings, shape, settings.dtypes[-1])
    command = [settings.lowrank, "bench", "--model", folder, "--only", "memory", "--passes", 5]
    return json.loads(run([*command, "--json"]).output)["memory"]


def lowrank(settings, _stack, folder, _shape, _dtype):
    """`lowrank bench`, which warms up by itself."""
    command = [settings.lowrank, "bench", "--model", folder, "--only", "decode,prompt"]
    command += ["--new-tokens", settings.new_tokens, "--prompt-tokens", LONG]
    command += ["--passes", 1, "--json"]

    def ask():
        done = run(command)
        report = json.loads(done.output)
        return {
            "tokens_per_second": report["decode"]["tokens_per_second"],
            "first_seconds": report["prompt"]["seconds"][0],
            "tokens": report["decode"]["tokens"],
            "weight_bytes": report["decode"]["weight_bytes"],
            "load_seconds": report["load_seconds"],
            "peak_bytes": done.peak_bytes,
        }

    return ask


def transformers(settings, stack, folder, _shape, dtype):
    """A process that holds the model and has warmed up."""
    command = [settings.python, settings.workers / "decode.py"]
    worker = Worker(command, {"model": str(folder), "dtype": DTYPES[dtype]})
    stack.enter_context(worker)
    worker.ask({"prompt": prompt(SHORT), "new": 4})
    worker.ask({"prompt": prompt(LONG), "new": 1})

    def ask():
        answer = worker.ask({"prompt": prompt(SHORT), "new": settings.new_tokens})
        first = worker.ask({"prompt": prompt(LONG), "new": 1})["times"][0]
        return {**of_times(answer), "first_seconds": first, **worker.ready}

    return ask


def of_times(answer):
    """Speed between the first new token and the last."""
    times = answer["times"]
    speed = (len(times) - 1) / (times[-1] - times[0])
    return {"tokens_per_second": speed, "tokens": answer["tokens"]}


def llama_cpp(settings, stack, folder, shape, dtype):
    """node-llama-cpp over a GGUF file of the same weights."""
    node = install.node_llama_cpp(settings)
    gguf = folder / "model.gguf"
    if not gguf.is_file():
        partial = gguf.with_suffix(".partial")
        run([settings.python, settings.workers / "write_gguf.py", folder, partial, DTYPES[dtype]])
        partial.rename(gguf)
    worker = Worker(["node", node / "llama_cpp.mjs"], {"model": str(gguf)})
    stack.enter_context(worker)
    worker.ask({"prompt": prompt(SHORT), "new": 4})

    def ask():
        answer = worker.ask({"prompt": prompt(SHORT), "new": settings.new_tokens})
        first = worker.ask({"prompt": prompt(LONG), "new": 1})["times"][0]
        return {**of_times(answer), "first_seconds": first, **worker.ready}

    return ask
