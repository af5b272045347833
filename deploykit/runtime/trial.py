"""Variants tried in processes of their own: opened, tested and timed, so that one that crashes or hangs costs nothing.

SIGILL and SIGSEGV, which engines built for another processor die of, cannot be caught in the process that they hit.
The processes load and test themselves side by side, as far as cores and memory allow. Then they are timed, one at a
time and in turns, so that a machine that slows down or speeds up does so for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, cast

from deploykit.runtime import memory
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.errors import MissingError
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.manifest import Variant, from_json
from deploykit.runtime.selection import model_bytes
from deploykit.runtime.selftest import VariantResult

#: The interpreter of the trials, where this process's own is none that could run a module: embedded, frozen, emulated.
PYTHON: Final = "DEPLOYKIT_PYTHON"
#: All timing together. Loading and self-tests, which take what they take, come before.
SECONDS: Final = 2.0
_ROUNDS: Final = 3
_STDERR_KEPT: Final = 4096


@dataclass(frozen=True)
class Limits:
    """Seconds until a process that does not answer counts as hung. They are generous: emulators and small boards are
    50 times slower than a server. ``start`` is for the imports, ``load`` for opening and the self-test, ``build`` the
    same for targets that compile an engine on the device.
    """

    start: float = 300.0
    load: float = 300.0
    build: float = 3600.0

    def of(self, variant: Variant) -> float:
        """The limit that holds for a variant once its process is up."""
        return self.build if variant.target.startswith("tensorrt") else self.load


@dataclass
class _Trial:
    """One process and what is known of its variant so far."""

    child: _Child
    result: VariantResult
    limit_s: float
    #: The median time of one input in each turn.
    medians_ms: list[float] = field(default_factory=list)


def run(
    bundle: Bundle,
    variants: Sequence[Variant],
    options: EngineOptions,
    seconds: float = 0.0,
    limits: Limits | None = None,
) -> list[VariantResult]:
    """Try ``variants``, which must be verified already; time them ``seconds`` in all, 0 for not at all.

    `MissingError` when no process can be started here: nothing is known then.
    """
    limits = limits or Limits()
    results: dict[str, VariantResult] = {}
    for group in _groups(bundle, variants):
        trials: list[_Trial] = []
        try:
            _open(bundle, group, options, limits, trials)
            _time(trials, seconds * len(group) / len(variants))
        finally:
            for trial in trials:
                trial.child.close()
        results |= {trial.result.variant: trial.result for trial in trials}
    return [results[variant.name] for variant in variants]


def interpreter() -> str:
    """The Python that trials run in; `MissingError` where this program is not one that could run a module."""
    if given := os.environ.get(PYTHON):
        return given
    name = Path(sys.executable or "").name.lower()
    if getattr(sys, "frozen", False) or not name.startswith(("python", "pypy")):
        raise MissingError(
            f"no trial can be started: '{sys.executable or 'unknown'}' is no Python interpreter",
            hint=f"set {PYTHON} to one that has deploykit",
        )
    return sys.executable


def _groups(bundle: Bundle, variants: Sequence[Variant]) -> list[list[Variant]]:
    """All in one group, to be open side by side, where they fit in half the memory; else each alone."""
    free = memory.available()
    # An open engine holds up to three times the weights.
    needed = sum(memory.least_needed(3 * model_bytes(bundle, variant)) for variant in variants)
    return [list(variants)] if free is not None and needed <= free / 2 else [[variant] for variant in variants]


def _open(
    bundle: Bundle, variants: Sequence[Variant], options: EngineOptions, limits: Limits, trials: list[_Trial]
) -> None:
    """Start a process for each variant, as many at a time as there are cores, and collect their first answers.

    ``trials`` gets each as it is started, so that the caller can end it whatever happens.
    """
    waiting, loading, width = deque(variants), deque[_Trial](), usable_cores()
    while waiting or loading:
        while waiting and len(loading) < width:
            variant = waiting.popleft()
            pending = VariantResult(variant.name, "failed", None, "", None)
            trials.append(_Trial(_Child(), pending, limits.of(variant)))
            loading.append(trials[-1])
            trials[-1].child.say(
                {
                    "root": str(bundle.root.absolute()),
                    "digest": bundle.digest,
                    "variant": variant.name,
                    "threads": options.threads,
                    "arena": options.arena,
                }
            )
        _first_answer(loading.popleft(), limits.start)


def _first_answer(trial: _Trial, start_s: float) -> None:
    if not trial.child.ready(start_s):
        raise MissingError(
            f"no trial can be started: {trial.child.death()}", hint=f"set {PYTHON} to a Python that has deploykit"
        )
    answer = trial.child.answer(trial.limit_s)
    if answer is not None:
        trial.result = from_json(VariantResult, answer, "the trial's answer")
    else:
        trial.result = replace(trial.result, reason=trial.child.death())
    if not trial.result.passed:
        trial.child.close()


def _time(trials: Sequence[_Trial], seconds: float) -> None:
    """Time those that passed, in turns. Each is called at least once; slow ones stop the turns before their end.

    The time of a variant is the median of its best turn: what else the machine does makes turns slower, never faster.
    """
    running = [trial for trial in trials if trial.result.passed]
    if not seconds or not running:
        return
    share, spent = seconds / (_ROUNDS * len(running)), 0.0
    for _ in range(_ROUNDS):
        for trial in [t for t in running if t.result.passed]:
            began = time.perf_counter()
            trial.child.say({"seconds": share})
            answer = trial.child.answer(trial.limit_s) or {"reason": trial.child.death()}
            spent += time.perf_counter() - began
            if reason := answer.get("reason"):
                trial.result = replace(trial.result, status="failed", reason=str(reason))
            else:
                trial.medians_ms.append(statistics.median(answer["times_ms"]))
        if spent >= seconds:
            break
    for trial in running:
        if trial.result.passed:
            trial.result = replace(trial.result, p50_ms=min(trial.medians_ms))


class _Child:
    """A process of `deploykit.runtime.trial_child`, and its lines."""

    def __init__(self) -> None:
        # The same modules as here, whatever put them on the path.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [interpreter(), "-P", "-m", "deploykit.runtime.trial_child"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        except OSError as error:
            raise MissingError(
                f"no trial can be started: {error.strerror or error}: {command[0]}",
                hint=f"set {PYTHON} to a Python that has deploykit",
            ) from error
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = cast("tuple[IO[bytes], IO[bytes], IO[bytes]]", pipes)
        self._lines, self._partial, self._said = deque[bytes](), b"", b""
        self._hung_after_s = 0.0

    def ready(self, limit_s: float) -> bool:
        """Did it come up?"""
        return self.answer(limit_s) == {"ready": True}

    def say(self, request: Mapping[str, Any]) -> None:
        """Hand it a line; one that has died already is found out by `answer`."""
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()

    def answer(self, limit_s: float) -> dict[str, Any] | None:
        """Its next line; None when it died, or said nothing for ``limit_s`` and was killed."""
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as ready:
            for pipe, take in ((self._stdout, self._take_line), (self._stderr, self._take_said)):
                ready.register(pipe, selectors.EVENT_READ, take)
            while not self._lines:
                events = ready.select(deadline - time.monotonic()) if time.monotonic() < deadline else []
                if not events:
                    self._process.kill()
                    self._hung_after_s = limit_s
                    return None
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    if data:
                        take_in: Callable[[bytes], None] = key.data
                        take_in(data)
                    elif key.fileobj is self._stdout:
                        return None
                    else:
                        ready.unregister(key.fileobj)
        try:
            answer = json.loads(self._lines.popleft())
        except ValueError:
            return None
        return answer if isinstance(answer, dict) else None

    def death(self) -> str:
        """Why there was no answer, in words."""
        if self._hung_after_s:
            return f"its trial hung: no answer within {self._hung_after_s:g} s"
        code = self._end()
        number = -code if code < 0 else code - 128
        if number in (known.value for known in signal.Signals):
            killed = " (too little memory?)" if number == signal.SIGKILL else ""
            return f"its trial died of {signal.Signals(number).name}{killed}"
        self._take_said(self._stderr.read() or b"")
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"its trial ended with code {code}: {lines[-1][:300] if lines else 'it said nothing'}"

    def close(self) -> None:
        """End it; twice is no error."""
        self._process.kill()
        self._end()
        for pipe in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):  # what was still to be written to a process that is gone
                pipe.close()

    def _end(self) -> int:
        """Its exit code; one that closed its output without ending is killed."""
        try:
            return self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _take_line(self, data: bytes) -> None:
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._lines.extend(whole)

    def _take_said(self, data: bytes) -> None:
        self._said = (self._said + data)[-_STDERR_KEPT:]
