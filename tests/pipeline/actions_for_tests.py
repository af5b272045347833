"""Actions that the pipeline's tests run in child processes."""

import os
import signal
import time
from pathlib import Path

from deploykit.errors import SourceError


def write(options, inputs, out):
    (out / "text.txt").write_text(options["text"] + "".join((p / "text.txt").read_text() for p in inputs.values()))
    return {"length": len(options["text"])}


def refuse(options, inputs, out):
    raise SourceError("the folder 'x' is empty", hint="put a model in it")


def crash(options, inputs, out):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(options, inputs, out):
    time.sleep(60)


def stumble(options, inputs, out):
    (out / "half.bin").write_bytes(b"half")
    raise KeyError("a programming mistake")


def fill_the_disk(options, inputs, out):
    raise OSError(28, "No space left on device", str(Path(out) / "model.onnx"))


def last(options, inputs, out):
    """Take some time, and leave when that was and how many threads were allowed."""
    began = time.monotonic()
    time.sleep(options.get("seconds", 0.2))
    (out / "times.txt").write_text(f"{began} {time.monotonic()}")
    (out / "threads.txt").write_text(os.environ.get("OMP_NUM_THREADS", ""))
    return {}


def wait_for(options, inputs, out):
    """Say that it has begun, and end when the other one has too."""
    began, folder = time.monotonic(), out.parent.parent
    mine = "a.txt" if options["file"] == "b.txt" else "b.txt"
    (out.parent / mine).write_text("begun")
    while not list(folder.glob(f"*/{options['file']}")):
        if time.monotonic() - began > 30:
            raise TimeoutError("the other one never began")
        time.sleep(0.01)
    time.sleep(0.3)  # long enough for the other to see it
    (out / "times.txt").write_text(f"{began} {time.monotonic()}")
    return {}


def tell(options, inputs, out):
    """`last`, and the options that came."""
    return {**last({}, inputs, out), "told": dict(options)}


def read(options, inputs, out):
    """Take over the text of a file that is no parent's."""
    (out / "text.txt").write_text(Path(options["file"]).read_text())
    return {}


def timed(options, inputs, out):
    """Times that were taken while others had most of the machine."""
    return {"busy": {"others": 0.6, "stolen": 0.0, "load": 3.0}}
