"""Children: run to their end and measured, or kept and spoken to line by line."""

import json
import os
import subprocess
import tempfile
import time
from collections import namedtuple
from pathlib import Path

#: Seconds from start to end, the most memory in RAM, what was printed.
Finished = namedtuple("Finished", "seconds peak_bytes output")


class Failed(Exception):
    """A child that didn't do its work; the text says which and why."""


def run(command, environment=None, folder=None):
    """Runs a command; its peak memory is what the kernel counted for this child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment_with(environment),
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            raise Failed(described(command, child.returncode, text_of(err)))
        return Finished(seconds, usage.ru_maxrss * 1024, text_of(out))


class Worker:
    """A child that answers a JSON line with a JSON line. It sleeps between questions."""

    def __init__(self, command, settings, environment=None):
        self.command = [str(part) for part in command]
        self.errors = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment_with(environment),
        )
        try:
            self.ready = self.ask(settings)
        except BaseException:
            self.close()
            raise

    def ask(self, question):
        """The answer; `Failed` if the child ended instead."""
        try:
            self.child.stdin.write(json.dumps(question) + "\n")
            self.child.stdin.flush()
            answer = self.child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self.child.wait()
            raise Failed(described(self.command, code, text_of(self.errors)))
        return json.loads(answer)

    def close(self):
        """Ends the child."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout, self.errors):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def environment_with(more):
    """This process's environment, offline for Hugging Face's libraries, and `more`."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **quiet, **(more or {})}


def text_of(file):
    """All that was written to a temporary file."""
    file.seek(0)
    return file.read().decode(errors="replace")


def described(command, code, errors):
    """A failure in a line or a few."""
    name = " ".join(str(Path(part).name) for part in command[:3])
    ending = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    if code == -9:
        ending += " (out of memory?)"
    last = "\n".join(errors.strip().splitlines()[-6:])
    return f"{name}: {ending}\n{last}".strip()


def available_memory():
    """Bytes that could be used without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
