"""Which machine, which programs."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

from . import gpu

#: The CPU features that decide between kernels.
FEATURES = (
    "avx2 fma avx512f avx512bw avx512vl avx512_bf16 avx512_fp16 amx_tile amx_bf16 asimd bf16"
).split()

VERSIONS = """
import json, torch, transformers, peft, numpy
parallel = torch.__config__.parallel_info()
libraries = [l.strip() for l in torch.__config__.show().splitlines() if "MKL" in l or "oneDNN" in l]
print(json.dumps({
    "torch": torch.__version__, "transformers": transformers.__version__,
    "peft": peft.__version__, "torch threads": torch.get_num_threads(),
    "torch libraries": "; ".join(l.lstrip("- ") for l in libraries if "Build" not in l),
    "torch CPU capability": torch.backends.cpu.get_cpu_capability(),
}))
"""


def describe(settings):
    """The header of a report."""
    cpu = cpu_fields()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    family = f"family {cpu.get('cpu family')} model {cpu.get('model')}"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "processor": f"{cpu.get('model name', platform.processor())} ({family})",
        "cores": os.cpu_count(),
        "features": " ".join(f for f in FEATURES if f in flags),
        **gpu_fields(settings),
        "memory GB": round(memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load at the start": " ".join(f"{x:.2f}" for x in os.getloadavg()),
        "lowrank": output([settings.lowrank, "--version"]),
        "commit": commit(settings),
        "rustc": output(["rustc", "--version"]),
        **python_versions(settings),
    }


def gpu_fields(settings):
    """The GPU, if it is what is measured."""
    if settings.device == "cpu":
        return {}
    return {"GPU": gpu.query("name"), "driver": gpu.query("driver_version")}


def cpu_fields():
    """The first processor in `/proc/cpuinfo`."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if not line.strip() and fields:
            break
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields


def memory_bytes():
    """All memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def busy_share(seconds=0.5):
    """How much of all cores is in use, while nothing of this benchmark runs."""

    def ticks():
        values = [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]  # all, idle and waiting for a disk

    before, idle_before = ticks()
    time.sleep(seconds)
    after, idle_after = ticks()
    return 1 - (idle_after - idle_before) / max(after - before, 1)


def commit(settings):
    """The commit of the checkout, and whether it has changes."""
    head = output(["git", "-C", settings.root, "rev-parse", "--short", "HEAD"])
    changed = output(["git", "-C", settings.root, "status", "--porcelain", "-uno"])
    return f"{head} with changes" if head and changed else head


def python_versions(settings):
    """Versions in the venv."""
    text = output([settings.python, "-c", VERSIONS])
    return json.loads(text.splitlines()[-1]) if text else {}


def output(command):
    """What a command prints; nothing if it can't be run."""
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
