"""Start-up time and size of the program, beside those of the Python stack."""

import statistics
from pathlib import Path

from .processes import run

STARTS = 20


def measure(settings, results):
    """`lowrank --version`, and importing torch, transformers and peft."""
    name = "program/start"
    if settings.resume and results.done(name):
        return
    print(name, flush=True)
    own = [run([settings.lowrank, "--version"]).seconds for _ in range(STARTS + 1)][1:]
    imports = [settings.python, "-c", "import torch, transformers, peft; peft.LoraConfig"]
    other = [run(imports).seconds for _ in range(4)][1:]
    packages = next(Path(settings.python).parent.parent.glob("lib/python*/site-packages"))
    found = {
        "start_seconds": own,
        "import_seconds": other,
        "binary_bytes": settings.lowrank.stat().st_size,
        "packages_bytes": sum(f.lstat().st_size for f in packages.rglob("*") if not f.is_dir()),
        "complete": True,
    }
    print(f"  {1000 * statistics.median(own):.1f} ms, Python {statistics.median(other):.1f} s")
    results.put(name, found)
