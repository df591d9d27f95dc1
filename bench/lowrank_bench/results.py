"""`results.json`: every single measurement, written after each cell; and what is computed of it."""

import json
import statistics
from collections import namedtuple

#: Median and quartiles.
Spread = namedtuple("Spread", "median low high count")


class Results:
    """Cells by name. A cell has `rounds`, one entry for each pair, and what else it found."""

    def __init__(self, path, keep):
        self.path = path
        self.header = {}
        self.cells = {}
        if keep and path.is_file():
            stored = json.loads(path.read_text())
            self.header, self.cells = stored["header"], stored["cells"]

    def done(self, name):
        """Whether a cell was measured to its end; a side that failed stays so until it is removed."""
        return self.cells.get(name, {}).get("complete", False)

    def put(self, name, cell):
        """Stores a cell, and writes the file."""
        self.cells[name] = cell
        self.write()

    def write(self):
        """Writes the file; it is whole at any moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"header": self.header, "cells": self.cells}, indent=1))
        partial.rename(self.path)

    def of(self, part):
        """The cells of a part that have rounds, by the rest of their names."""
        begin = f"{part}/"
        found = {n: c for n, c in self.cells.items() if n.startswith(begin) and c.get("rounds")}
        return {name[len(begin) :]: cell for name, cell in found.items()}


def spread(numbers):
    """Median and quartiles of what there is; `None` of nothing."""
    numbers = [n for n in numbers if n is not None]
    if not numbers:
        return None
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0], 1)
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(statistics.median(numbers), low, high, len(numbers))


def ratio(over, under):
    """A quotient where both are known."""
    return over / under if over is not None and under else None


def at(tree, *path):
    """What lies at a path of keys; `None` where it ends early."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
