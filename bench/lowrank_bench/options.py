"""What is asked on the command line, and the list of training cells that follows from it."""

import argparse
import itertools
import os
from collections import namedtuple
from pathlib import Path

from .shapes import DTYPES, SHAPES, YARDSTICK

BENCH = Path(__file__).resolve().parent.parent
PARTS = ("program", "products", "lora", "architectures", "decode", "minilm")
#: What `--quick` leaves out.
LONG = ("architectures", "minilm")
#: What there is for a GPU.
ON_GPU = ("lora", "architectures")
TARGETS = ("q_proj,v_proj", "all-linear")
TOKENS = ("1x512", "4x512", "1x2048")
CHECKPOINTING = ("off", "on")
#: PEFT's default targets of each architecture. It has none for the mixture, which is measured with
#: adapters on attention and with adapters on experts.
ADAPTED = {
    YARDSTICK: ["q_proj,v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "gemma2": ["q_proj,v_proj"],
    "bert": ["query,value"],
    "t5": ["q,v"],
    "qwen3_moe": ["q_proj,v_proj", "gate_proj,up_proj,down_proj"],
}

Cell = namedtuple("Cell", "shape targets tokens checkpointing")


def parse(arguments=None):
    """The settings of a run."""
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="lowrank against torch + transformers + peft, alternating on this machine.",
    )
    add = parser.add_argument
    add("--only", type=listed(PARTS), help=f"parts: {','.join(PARTS)}")
    add("--quick", action="store_true", help="135m, 1x512, no architectures, no minilm; minutes")
    add("--full", action="store_true", help="every combination of the axes; a day")
    add("--shapes", type=listed(SHAPES), help=f"models: {','.join(SHAPES)}")
    add("--architectures", type=listed(ADAPTED), default=list(ADAPTED), help=",".join(ADAPTED))
    add("--targets", action="append", choices=TARGETS, help="adapted layers; may be repeated")
    add("--tokens", type=listed(TOKENS), help=f"rows x tokens: {','.join(TOKENS)}")
    add("--dtypes", type=listed(DTYPES), default=list(DTYPES), help="f32,bf16")
    add("--checkpointing", choices=(*CHECKPOINTING, "both"), help="of activations")
    add("--pairs", type=int, help="counted pairs (default 7, with --quick 3)")
    add("--seconds", type=float, help="how long a side should run in a pair (default 8, quick 4)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides train")
    add("--limit", type=float, default=1200, help="most seconds for a side in a cell")
    add("--out", type=Path, default=BENCH / "out", help="folder of results.json, report.md, png")
    add("--resume", action="store_true", help="keep the cells that results.json has")
    add("--report", action="store_true", help="measure nothing, print what results.json has")
    add("--binary", type=Path, help="a lowrank that is built already")
    add("--cache", type=Path, default=BENCH / ".cache", help="models and data; about 12 GB")
    add("--banking77", type=Path, default=banking77(), help="train.csv of banking77")
    add("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: from PyPI)")
    add("--minilm-epochs", type=int, default=1)
    add("--minilm-pairs", type=int, default=3)
    add("--new-tokens", type=int, default=64, help="tokens that are decoded")
    settings = parser.parse_args(arguments)
    settings.pairs = settings.pairs or (3 if settings.quick else 7)
    settings.seconds = settings.seconds or (4.0 if settings.quick else 8.0)
    short = [part for part in PARTS if not settings.quick or part not in LONG]
    settings.only = settings.only or short
    if settings.device != "cpu":
        settings.only = [part for part in settings.only if part in ON_GPU]
    settings.architectures = [
        Cell(shape, targets, TOKENS[0], CHECKPOINTING[0])
        for shape in settings.architectures
        for targets in ADAPTED[shape]
    ]
    settings.cells = training_cells(settings)
    settings.shapes = settings.shapes or (["135m"] if settings.quick else list(SHAPES))
    settings.root = BENCH.parent
    settings.workers = BENCH / "workers"
    settings.out, settings.cache = settings.out.resolve(), settings.cache.resolve()
    return settings


def listed(known):
    """A parser of comma-separated names."""

    def parse_list(text):
        names = [name.strip() for name in text.split(",") if name.strip()]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"`{name}` is unknown; known: {', '.join(known)}")
        return names

    return parse_list


def banking77():
    """Where the data is said or known to lie."""
    beside = BENCH.parent.parent / "shared/data/banking77/train.csv"
    return Path(os.environ.get("LOWRANK_BANKING77", beside))


def training_cells(settings):
    """The axes that were given, crossed; without any, the cells that the project is judged by."""
    checkpointing = {None: None, "both": list(CHECKPOINTING)}
    chosen = (
        settings.shapes,
        settings.targets,
        settings.tokens,
        checkpointing.get(settings.checkpointing, [settings.checkpointing]),
    )
    if settings.full:
        all_of = (list(SHAPES), TARGETS, TOKENS, CHECKPOINTING)
    elif settings.quick or any(chosen):
        shapes = ["135m"] if settings.quick else list(SHAPES)
        all_of = (shapes, TARGETS[:1], TOKENS[:1], CHECKPOINTING[:1])
    else:
        small = [Cell("135m", *rest, "off") for rest in itertools.product(TARGETS, TOKENS)]
        small.append(Cell("135m", TARGETS[0], "1x512", "on"))
        large = [Cell(shape, TARGETS[0], "1x512", "off") for shape in ("0.5b", "1.1b")]
        return small + large
    axes = [given or default for given, default in zip(chosen, all_of)]
    return [Cell(*cell) for cell in itertools.product(*axes)]
