"""What NVIDIA's driver says of the GPU."""

import subprocess
import threading


def query(field):
    """A field of `nvidia-smi --query-gpu` for the first GPU."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "--id=0"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def used():
    """Bytes of the GPU's memory that are in use, whoever uses them."""
    return int(query("memory.used")) << 20


class Peak:
    """The most memory in use beyond what was in use before, asked for again and again."""

    def __enter__(self):
        self.before, self.most, self.done = used(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        """Runs until the end of the block."""
        while not self.done.wait(0.05):
            self.most = max(self.most, used() - self.before)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
