"""The order of a run: sides, header, cells, report."""

import json
import traceback

from . import decoding, install, lora_step, machine, minilm, products, program, tables
from .options import parse
from .processes import Failed, run
from .results import Results, spread
from .shapes import YARDSTICK


def main():
    """Measures what was asked and writes the report; 1 if something went wrong on the way."""
    settings = parse()
    results = Results(settings.out / "results.json", settings.resume or settings.report)
    settings.python = install.python()
    whole = True
    if not settings.report:
        settings.lowrank = install.lowrank(settings)
        busy = max(machine.busy_share(), results.header.get(tables.BUSY, 0))
        results.header = {**machine.describe(settings), tables.BUSY: round(busy, 3)}
        for name, value in results.header.items():
            print(f"{name}: {value}")
        try:
            whole = all([attempt(results, name, part) for name, part in plan(settings, results)])
        except KeyboardInterrupt:
            print("stopped; --resume goes on from here")
            whole = False
    write(settings, results)
    return 0 if whole else 1


def plan(settings, results):
    """The cells as calls, by name; small things first."""
    calls = {}

    def add(part, name, measure, *what, reason=None):
        if (reason or part) in settings.only:
            calls[f"{part}/{name}"] = lambda: measure(settings, results, *what)

    add("program", "start", program.measure)
    add("products", YARDSTICK, products.measure, YARDSTICK, reason="architectures")
    for shape in settings.shapes:
        add("products", shape, products.measure, shape)
        for cell in settings.cells:
            if cell.shape == shape:
                add("lora", "/".join(cell), lora_step.measure, cell)
        add("decode", shape, decoding.measure, shape)
    for cell in settings.architectures:
        add("architectures", "/".join(cell), lora_step.measure, cell, "architectures")
    add("minilm", "banking77", minilm.measure)
    return calls.items()


def attempt(results, name, measure):
    """One cell; a failure is kept with it, and the next one begins."""
    busy = max(machine.busy_share(), results.header.get(tables.BUSY, 0))
    results.header[tables.BUSY] = round(busy, 3)
    try:
        measure()
        return True
    except Exception as problem:  # noqa: BLE001: whatever it is, the rest must go on
        print(f"  {name} failed: {problem}", flush=True)
        if not isinstance(problem, Failed):
            traceback.print_exc()
        failed = {"rounds": [], **results.cells.get(name, {}), "complete": False}
        results.put(name, failed | {"failures": {"all": f"{type(problem).__name__}: {problem}"}})
        return False


def write(settings, results):
    """report.md, the chart, and the tables to standard output."""
    results.write()
    text = tables.report(results)
    (settings.out / "report.md").write_text(text)
    print("\n" + text)
    bars = chart_bars(results)
    if bars:
        title = f"{results.header.get('processor')}, {results.header.get('cores')} cores"
        described = settings.out / "chart.json"
        described.write_text(json.dumps({"title": title, "bars": bars}))
        try:
            run(
                [
                    settings.python,
                    settings.workers / "chart.py",
                    described,
                    settings.out / "chart.png",
                ]
            )
        except Failed as problem:
            print(f"no chart: {problem}")
    print(f"written: {settings.out}/results.json, report.md" + (", chart.png" if bars else ""))


def chart_bars(results):
    """What the chart shows."""
    bars = []
    for found in [*results.of("lora").values(), *results.of("architectures").values()]:
        cell = tables.cell_of(found)
        for dtype in tables.DTYPES:
            speed, memory = {}, {}
            for side in ("lowrank", "torch"):
                rounds = found["rounds"]
                rates = [lora_step.tokens_per_second(cell, r, dtype, side) for r in rounds]
                middle = spread(rates)
                speed[side] = middle and middle.median
                peak = tables.peak_bytes(rounds, dtype, side)
                memory[side] = peak and peak / 1e9
            if any(speed.values()):
                checkpointing = ", checkpointing" if cell.checkpointing == "on" else ""
                label = f"{cell.shape} {dtype} {cell.tokens}\n{cell.targets}{checkpointing}"
                bars.append({"label": label, "speed": speed, "memory": memory})
    return bars
