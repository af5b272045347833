"""A process that opens one variant of a bundle, runs its self-test and times it, for `deploykit.runtime.trial`.

One JSON object a line: it says ``{"ready": true}``, reads the request, answers with the self-test's result, and then
answers each ``{"seconds": S}`` with ``{"times_ms": […]}``. It ends when its standard input does, whatever it is doing:
no trial outlives the process that asked for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.encoder import Encoder
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.errors import BundleError, DeploykitError
from deploykit.runtime.loading import open_variant
from deploykit.runtime.selftest import judge, one_of, read_inputs, read_reference, refusal, times_ms

Say = Callable[[Mapping[str, Any]], None]


def serve(request: Mapping[str, Any], asked: queue.SimpleQueue[str], say: Say) -> None:
    """Answer the request, and then what is ``asked`` for, as long as there is something to time."""
    name = str(request["variant"])
    try:
        bundle = Bundle.open(Path(request["root"]))
        if bundle.digest != request["digest"]:
            raise BundleError(f"the bundle '{bundle.root}' changed since it was opened", hint="load it again")
        # Before the engine: a self-test that is no plain array is a reason not to open anything.
        inputs, reference = read_inputs(bundle), read_reference(bundle)
        options = EngineOptions(request["threads"], request["arena"])
        encoder: Encoder = open_variant(bundle, bundle.variant(name), options)
        result = judge(bundle, name, encoder, inputs, reference)
    except DeploykitError as error:
        say(asdict(refusal(name, error)))
        return
    say(asdict(result))
    while True:
        seconds = float(json.loads(asked.get())["seconds"])
        try:
            say({"times_ms": times_ms(encoder, one_of(inputs), 1, seconds)})
        except DeploykitError as error:
            say({"reason": error.message})


def _quietly() -> None:
    """A crash leaves no core file, and a system short of memory ends this process before any other."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _read(lines: IO[str], asked: queue.SimpleQueue[str]) -> None:
    for line in lines:
        asked.put(line)
    os._exit(0)


def main() -> None:
    """Standard input and output are the parent's; what libraries print goes to standard error."""
    _quietly()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    asked: queue.SimpleQueue[str] = queue.SimpleQueue()
    say({"ready": True})
    threading.Thread(target=_read, args=(sys.stdin, asked), daemon=True).start()
    serve(json.loads(asked.get()), asked, say)


if __name__ == "__main__":
    code = 0
    try:
        main()
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    # The engines' exit handlers have crashed after the work was done: leave without running them.
    os._exit(code)
