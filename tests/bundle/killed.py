"""Forks a process for each line that it reads, and kills it after a while: what a test needs to kill one at any moment.

A line is a JSON list: the seconds to kill after or null, the name of an operation, its paths. The answer is one too:
the exit code or minus the signal, and the seconds that it took.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from deploykit.bundle.pack import pack, unpack
from deploykit.bundle.record import record
from deploykit.bundle.write import write_bundle
from deploykit.runtime.bundle import Bundle
from tests.runtime import made

BYTES = 24 << 20


def write(work, output):
    """A bundle with a file that takes a while to copy."""
    large = Path(work) / "large.bin"
    if not large.exists():
        large.write_bytes(np.random.default_rng(0).bytes(BYTES))
    contents = made.contents(Path(work))
    write_bundle(Path(output), type(contents)(**{**vars(contents), "files": {**contents.files, "extra": large}}))


OPERATIONS = {
    "write": write,
    "pack": lambda bundle, output: pack(Path(bundle), Path(output)),
    "unpack": lambda packed, output: unpack(Path(packed), Path(output)),
    "open": lambda packed: Bundle.open(packed),
    "record": lambda bundle, report: record(Path(bundle), [Path(report)]),
}


def serve():
    for line in sys.stdin:
        kill_after_s, name, *paths = json.loads(line)
        began, child = time.perf_counter(), os.fork()
        if child == 0:
            try:
                OPERATIONS[name](*paths)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)  # nobody has waited for it yet, so the number is still its own
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - began]), flush=True)


if __name__ == "__main__":
    serve()
