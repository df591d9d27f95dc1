"""The report: Markdown tables of what `results.json` holds. A ratio is the median over the pairs, with
quartiles; above 1, lowrank is faster (for memory: below 1, it needs less)."""

from . import products
from .lora_step import batch_of, tokens_per_second
from .options import Cell
from .results import at, ratio, spread
from .shapes import MODELS, YARDSTICK

DTYPES = ("f32", "bf16")
#: The header's entry for what others used of the processor, the most before any cell.
BUSY = "others' share of the processor"


def report(results):
    """All tables."""
    parts = [header, lora, best_dtypes, architectures, product_totals, product_shapes, decode]
    parts += [minilm, program]
    texts = [text for part in parts if (text := part(results))]
    return "\n\n".join(texts + failures(results)) + "\n"


def table(title, columns, rows, note=""):
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    lines = [f"## {title}", "", *([note, ""] if note else [])]
    lines += [line(columns), line(["---"] * len(columns))]
    return "\n".join(lines + [line(row) for row in rows])


def line(cells):
    """A row."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def number(value, form="{:.0f}"):
    """A number, or a dash."""
    return "–" if value is None else form.format(value)


def median(values, form="{:.0f}"):
    """The median of what there is."""
    found = spread(values)
    return number(found and found.median, form)


def times(values):
    """A ratio with its quartiles."""
    found = spread(values)
    if not found:
        return "–"
    return f"**{found.median:.2f}×** ({found.low:.2f}–{found.high:.2f}, n={found.count})"


def header(results):
    """Machine and versions."""
    rows = [[name, value] for name, value in results.header.items()]
    text = table("Machine and versions", ["", ""], rows)
    if results.header.get(BUSY, 0) > 0.1:
        text += "\n\n**Other programs were running: these figures say little.**"
    return text


def peak_bytes(rounds, dtype, side):
    """The most memory in any round."""
    found = [at(r, dtype, side, "peak_bytes") for r in rounds]
    return max((f for f in found if f is not None), default=None)


def cell_of(found):
    """What a cell's result was measured for."""
    return Cell(*(found[field] for field in Cell._fields))


def step_rate(found, dtype, attended=0):
    """Floating-point operations of the step's products per second."""
    cell = cell_of(found)
    speed = spread([tokens_per_second(cell, r, dtype, "lowrank") for r in found["rounds"]])
    known = speed and found.get("matrices")
    return (4 * found["matrices"] + attended) * speed.median if known else None


def attention_work(found):
    """Floating-point operations that a step spends on a token in attention's own products: two
    forward, five backward, one of which computes the scores again."""
    length, width = batch_of(cell_of(found))[1], MODELS[found["shape"]].attention
    return 7 * 2 * length * (width.full + width.causal / 2)


def share_of_peak(results, found, dtype, shape):
    """That of lowrank over the best rate that was measured on a model's shapes."""
    best = products.peak(results.cells.get(f"products/{shape}", {}), dtype)
    return ratio(step_rate(found, dtype), best)


def loss_difference(found, dtype):
    """Between the sides' first losses: same weights, same rows, and adapters that change nothing yet
    (their `A` is random, so that later losses are each side's own)."""
    losses = [at(found, "facts", f"{dtype}/{side}", "first_loss") for side in ("lowrank", "torch")]
    return abs(losses[0] - losses[1]) if None not in losses else None


#: The columns of [`step_figures`].
STEP = (
    "dtype|lowrank tok/s|torch + peft tok/s|ratio|share of peak|lowrank GB|torch GB|memory ratio"
    "|loss difference"
)


def step_figures(results, found, peak_shape):
    """A LoRA step, a row for each dtype that was measured; `peak_shape` is whose products count."""
    cell, rounds = cell_of(found), found["rounds"]
    for dtype in DTYPES:
        ours, theirs = (
            [tokens_per_second(cell, r, dtype, side) for r in rounds]
            for side in ("lowrank", "torch")
        )
        if not spread(ours) and not spread(theirs):
            continue
        memory = [peak_bytes(rounds, dtype, side) for side in ("lowrank", "torch")]
        yield [
            dtype,
            median(ours),
            median(theirs),
            times([ratio(a, b) for a, b in zip(ours, theirs)]),
            number(share_of_peak(results, found, dtype, peak_shape), "{:.0%}"),
            *(number(m and m / 1e9, "{:.2f}") for m in memory),
            number(ratio(*memory), "{:.2f}×"),
            number(loss_difference(found, dtype), "{:.1e}"),
        ]


def lora(results):
    """The LoRA step."""
    rows = []
    for found in results.of("lora").values():
        cell = cell_of(found)
        begin = [cell.shape, cell.targets, cell.tokens.replace("x", "×"), cell.checkpointing]
        rows += [begin + figures for figures in step_figures(results, found, cell.shape)]
    columns = f"model|targets|rows × tokens|checkpointing|{STEP}"
    note = (
        "Forward, backward, clipping and AdamW; r 8. Share of peak: 4 × parameters of the matrices × "
        "tokens/s, over the best rate of matrix products that either side reached on this model's "
        "shapes. Memory: most of the whole process in RAM. Loss difference: between both sides, "
        "first step, same weights and rows."
    )
    return table("LoRA step", columns.split("|"), rows, note)


def architectures(results):
    """The LoRA step of one architecture beside the other."""
    rows, cells = [], results.of("architectures").values()
    yardstick = next((found for found in cells if found["shape"] == YARDSTICK), None)
    for found in cells:
        cell, model = cell_of(found), MODELS[found["shape"]]
        begin = [model.model_type, model.task, f"{found['matrices'] / 1e6:.0f}", cell.targets]
        for figures in step_figures(results, found, YARDSTICK):
            over = [
                ratio(*(f and step_rate(f, figures[0], of(f)) for f in (found, yardstick)))
                for of in (lambda _: 0, attention_work)
            ]
            rows.append([*begin, *figures, *(number(o, "**{:.2f}**") for o in over)])
    columns = f"model|task|matrices, M|targets|{STEP}|share over {MODELS[YARDSTICK].model_type}'s"
    columns += "|with attention's products"
    note = (
        "As above, one row of 512 tokens (of an encoder-decoder, 512 read and 512 written). Matrices: "
        "parameters that a token is multiplied with. Share of peak: over the rate of products of "
        f"the {YARDSTICK} model's shapes."
    )
    return table("LoRA step, by architecture", columns.split("|"), rows, note)


def best_dtypes(results):
    """Across dtypes."""
    rows = []
    for found in results.of("lora").values():
        cell = cell_of(found)
        ours, theirs, of_bf16 = [], [], []
        for measured in found["rounds"]:
            sides = [
                [tokens_per_second(cell, measured, dtype, side) for dtype in DTYPES]
                for side in ("lowrank", "torch")
            ]
            if any(speed is None for side in sides for speed in side):
                continue
            ours.append(max(sides[0]))
            theirs.append(max(sides[1]))
            of_bf16.append(sides[0][1])
        if ours:
            rows.append(
                [
                    cell.shape,
                    cell.targets,
                    cell.tokens.replace("x", "×"),
                    cell.checkpointing,
                    times([a / b for a, b in zip(ours, theirs)]),
                    times([a / b for a, b in zip(of_bf16, theirs)]),
                    "yes" if found.get("dtypes_alternate") else "no",
                ]
            )
    columns = "model|targets|rows × tokens|checkpointing|best dtype against torch's best"
    columns += "|bf16 against torch's best|dtypes alternated"
    return table("LoRA step, across dtypes", columns.split("|"), rows)


def product_totals(results):
    """Matrix products, all layers of a model."""
    rows = []
    for shape, found in results.of("products").items():
        rounds, n = found.get("rounds", []), found["rows"]
        for dtype in DTYPES:
            shapes = {side: [at(r, dtype, side) for r in rounds] for side in ("lowrank", "torch")}
            if not any(shapes["lowrank"]) and not any(shapes["torch"]):
                continue
            rates = [
                median([products.rate(s, n, directions) if s else None for s in shapes[side]])
                for directions in (*((d,) for d in products.DIRECTIONS), products.DIRECTIONS)
                for side in ("lowrank", "torch")
            ]
            best = products.peak(found, dtype)
            rows.append(
                [
                    shape,
                    dtype,
                    *rates,
                    times([products.speed_up(r, dtype) for r in rounds]),
                    number(best and best / 1e9),
                ]
            )
    columns = "model|dtype|lowrank forward|torch forward|lowrank gradient|torch gradient"
    columns += "|lowrank both|torch both|ratio of total time|peak (best of all)"
    note = "GFLOP/s with 512 rows, through all layers of the model: `x·Wᵀ` and `dy·W`."
    return table("Matrix products", columns.split("|"), rows, note)


def product_shapes(results):
    """Matrix products, shape by shape."""
    rows = []
    for shape, found in results.of("products").items():
        rounds, n = found.get("rounds", []), found["rows"]
        for dtype in DTYPES:
            places = {
                (s["out"], s["input"], s["count"]): None
                for r in rounds
                for side in ("lowrank", "torch")
                for s in at(r, dtype, side) or []
            }
            for place in places:
                cells = [
                    median([one_rate(at(r, dtype, side), place, n, direction) for r in rounds])
                    for direction in products.DIRECTIONS
                    for side in ("lowrank", "torch")
                ]
                out, inputs, count = place
                rows.append([shape, dtype, f"{out} × {inputs}", count, *cells])
    columns = "model|dtype|out × in|layers|lowrank forward|torch forward|lowrank gradient"
    columns += "|torch gradient"
    return table("Matrix products by shape (GFLOP/s)", columns.split("|"), rows)


def one_rate(shapes, place, rows, direction):
    """GFLOP/s of one shape in one direction."""
    chosen = [s for s in shapes or [] if (s["out"], s["input"], s["count"]) == place]
    return products.rate(chosen, rows, (direction,))


def decode(results):
    """Generation."""
    rows = []
    sides = ("lowrank", "transformers", "llama.cpp")
    for shape, found in results.of("decode").items():
        rounds = found.get("rounds", [])
        bandwidth = {
            kind: max((m[f"{kind}_gigabytes_per_second"] for m in found["memory"]), default=None)
            for kind in ("copy", "read")
        }
        for dtype in DTYPES:
            speed = {s: [at(r, dtype, s, "tokens_per_second") for r in rounds] for s in sides}
            first = {s: [at(r, dtype, s, "first_seconds") for r in rounds] for s in sides}
            load = [
                median([at(r, dtype, s, "load_seconds") for r in rounds], "{:.2f}") for s in sides
            ]
            weights = [at(r, dtype, "lowrank", "weight_bytes") for r in rounds]
            own = spread(
                [w * v / 1e9 if w and v else None for w, v in zip(weights, speed["lowrank"])]
            )
            if not any(spread(s) for s in speed.values()):
                continue
            rows.append(
                [
                    shape,
                    dtype,
                    *(median(speed[s], "{:.1f}") for s in sides),
                    *(times(pairwise(speed["lowrank"], speed[s])) for s in sides[1:]),
                    number(own and own.median, "{:.1f}"),
                    f"{number(bandwidth['copy'], '{:.1f}')} / {number(bandwidth['read'], '{:.1f}')}",
                    number(ratio(own and own.median, bandwidth["copy"]), "{:.0%}"),
                    *(median(first[s], "{:.3f}") for s in sides),
                    *(times(pairwise(first[s], first["lowrank"])) for s in sides[1:]),
                    " / ".join(load),
                    agreement(rounds, dtype, sides),
                ]
            )
    columns = "model|dtype|lowrank tok/s|transformers tok/s|llama.cpp tok/s|over transformers"
    columns += "|over llama.cpp|lowrank weights GB/s|memory copy / read GB/s|share of copy"
    columns += "|lowrank first token s|transformers|llama.cpp|over transformers|over llama.cpp"
    columns += "|loading s (in that order)|same tokens at the start"
    note = (
        "One sequence, the likeliest token; first token behind a prompt of 512. Copy counts bytes read "
        "and written."
    )
    return table("Decoding", columns.split("|"), rows, note)


def pairwise(over, under):
    """Ratios round by round."""
    return [ratio(a, b) for a, b in zip(over, under)]


def agreement(rounds, dtype, sides):
    """How many tokens from the first on are lowrank's, by side."""
    for measured in rounds:
        own = at(measured, dtype, "lowrank", "tokens")
        others = [at(measured, dtype, side, "tokens") for side in sides[1:]]
        if own and any(others):
            return (
                " / ".join(number(o and common(own, o), "{}") for o in others) + f" of {len(own)}"
            )
    return "–"


def common(one, other):
    """Length of the common beginning."""
    pairs = enumerate(zip(one, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def minilm(results):
    """The classification job."""
    found = results.cells.get("minilm/banking77")
    rounds = [at(r, "f32") for r in (found or {}).get("rounds", [])]
    if not any(rounds):
        return ""
    value = lambda side, key: [at(r, side, key) for r in rounds]  # noqa: E731
    ours, whole = value("lowrank", "seconds"), value("torch", "seconds")
    started = value("torch", "without_start_seconds")
    memory = [max(filter(None, value(s, "peak_bytes")), default=None) for s in ("lowrank", "torch")]
    row = [
        found["epochs"],
        median(ours, "{:.1f}"),
        median(whole, "{:.1f}"),
        times(pairwise(whole, ours)),
        times(pairwise(started, ours)),
        *(median(value(s, "accuracy"), "{:.1%}") for s in ("lowrank", "torch")),
        *(number(m and m / 1e9, "{:.2f}") for m in memory),
    ]
    columns = "epochs|lowrank s|torch s|ratio|ratio without torch's start and loading"
    columns += "|lowrank accuracy|torch accuracy|lowrank GB|torch GB"
    note = (
        "LoRA `SEQ_CLS` on all-MiniLM-L6-v2, 8,000 rows, batch 32, then 2,003 held-out rows; the whole "
        "process, from start to end."
    )
    return table("banking77, the whole job", columns.split("|"), [row], note)


def program(results):
    """Start-up and size."""
    found = results.cells.get("program/start", {})
    if not found.get("complete"):
        return ""
    rows = [
        ["`lowrank --version`", median([1000 * s for s in found["start_seconds"]], "{:.1f} ms")],
        ["importing torch, transformers, peft", median(found["import_seconds"], "{:.1f} s")],
        ["the binary", number(found["binary_bytes"] / 1e6, "{:.1f} MB")],
        ["the venv's packages", number(found["packages_bytes"] / 1e6, "{:.0f} MB")],
    ]
    return table("Start and size", ["", ""], rows)


def failures(results):
    """What is missing, and why."""
    lines = []
    for name, cell in results.cells.items():
        for side, why in (cell.get("failures") or {}).items():
            lines.append(f"- {name}, {side}: {' '.join(str(why).split())}")
        if not cell.get("complete") and not cell.get("failures"):
            lines.append(f"- {name}: cut short after {len(cell.get('rounds', []))} rounds")
    return ["\n".join(["## Missing", "", *lines])] if lines else []
