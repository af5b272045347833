"""Subjects for the measuring process that are no bundles: quick, slow, noisy, deadly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Counting:
    """Remembers what it was asked; a call takes ``seconds``."""

    effective = {"engine": "none"}  # noqa: RUF012

    def __init__(self, seconds=0.0):
        self.seconds, self.asked = seconds, []

    def encode(self, inputs):
        self.asked.append(list(inputs))
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return inputs

    def tokens(self, inputs):
        return len(inputs), 2 * len(inputs)


opened = []


def counting(threads, **options):
    opened.append(Counting(**options))
    return opened[-1]


def chatty(threads):
    print("a library that talks")
    os.write(1, b"and one that writes to the descriptor\n")
    return Counting()


def hanging(threads, mark):
    """Leaves a grandchild that would outlive it."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(mark).write_text(str(grandchild.pid))
    print("about to hang", file=sys.stderr, flush=True)
    time.sleep(60)


def dying(threads):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def raising(threads):
    raise ValueError("no such weights")


def sleeping(threads, mark):
    Path(f"{mark}.new").write_text(str(os.getpid()))
    Path(f"{mark}.new").replace(mark)
    time.sleep(60)


class Hungry(Counting):
    """Holds much while it counts tokens."""

    def tokens(self, inputs):
        held = bytearray(b"1") * 300_000_000
        return len(inputs), len(held)


def hungry(threads):
    return Hungry()
