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
