"""Starts one measurement in a fresh process, with a time limit, and says clearly what became of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from deploykit import errors
from deploykit.errors import DeploykitError, MissingError, StepCrashError
from deploykit.measure.worker import BOUNDS

MODULE = "deploykit.measure.worker"
#: The limit of a process, without the time that its points are measured for: opening, compiling, its checks.
TIMEOUT_S = 600.0
# A point's calls may take longer than it is measured for: at the least so many are made.
_SLOW_POINT_S = 30.0
_SLOW = "it hangs, or is too slow: measure smaller batches or shorter inputs"
_TAIL_LINES = 12
# Nothing phones home. All else is as the user has it: it is the user's speed that is measured.
_ENVIRONMENT = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def measure(
    job: Mapping[str, Any],
    arm: str,
    *,
    python: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """The answer of `deploykit.measure.worker` to ``job``, from a process of its own; see `ask`.

    ``timeout_s`` None: `limit_s` of the job.
    """
    if timeout_s is not None:
        return ask(MODULE, job, arm, python=python, timeout_s=timeout_s)
    grown = f"{_SLOW}; the limit grows with the points and with the seconds of each"
    return ask(MODULE, job, arm, python=python, timeout_s=limit_s(job), slow=grown)


def limit_s(job: Mapping[str, Any]) -> float:
    """Seconds that a process may take for ``job``: they grow with its points and with how long each is measured."""
    measured = float(job.get("seconds", BOUNDS["seconds"])) + float(job.get("warm_seconds", BOUNDS["warm_seconds"]))
    return TIMEOUT_S + len(job.get("points", ())) * (measured + _SLOW_POINT_S)


def ask(
    module: str,
    request: Mapping[str, Any],
    arm: str,
    *,
    python: str | os.PathLike[str] | None = None,
    timeout_s: float = TIMEOUT_S,
    slow: str = _SLOW,
) -> dict[str, Any]:
    """What ``python -P -m module``, whose main part is `deploykit.measure.worker.serve`, answers to ``request``.

    ``arm`` names what is measured in messages (``the candidate``). ``python`` is another interpreter that has deploykit
    installed; None: this one. The process and all that it started are gone afterwards, whatever happened. Raises the
    child's own `DeploykitError`, `StepCrashError` when it died or ran past ``timeout_s`` (with the hint ``slow``),
    `MissingError` when it could not be started.
    """
    interpreter = os.fspath(python or sys.executable)
    with tempfile.TemporaryFile() as log:
        process = _start(interpreter, module, arm, log)
        try:
            out, _ = process.communicate(json.dumps(request).encode(), timeout_s)
        except subprocess.TimeoutExpired as error:
            raise StepCrashError(
                f"{arm}: the measuring process was still running after {timeout_s:g} s and was stopped",
                hint=f"{slow}; its last lines:\n{_tail(log)}",
            ) from error
        finally:
            _kill_group(process)
        return _answer(out, process.returncode, arm, interpreter, log)


def _start(interpreter: str, module: str, arm: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [interpreter, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
    except OSError as error:
        raise MissingError(
            f"{arm}: '{interpreter}' cannot be started: {error.strerror}",
            hint="give the path of a Python that has deploykit installed",
        ) from error


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and whatever it started, and give its pipes back."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _answer(out: bytes, code: int, arm: str, interpreter: str, log: IO[bytes]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        raise _died(code, arm, interpreter, log) from None
    if "error" in answer:
        raise _told(answer["error"], arm, log)
    return answer


def _told(error: Mapping[str, str], arm: str, log: IO[bytes]) -> DeploykitError:
    """The worker's own error, with the arm's name in front of it."""
    kind = getattr(errors, error["type"] or "-", None)
    if isinstance(kind, type) and issubclass(kind, DeploykitError):
        found: DeploykitError = kind(f"{arm}: {error['message']}", hint=error["hint"])
        return found
    return StepCrashError(f"{arm}: measuring failed: {error['message']}", hint=f"its last lines:\n{_tail(log)}")


def _died(code: int, arm: str, interpreter: str, log: IO[bytes]) -> DeploykitError:
    tail = _tail(log)
    if "No module named" in tail and "deploykit" in tail:
        return MissingError(
            f"{arm}: '{interpreter}' has no deploykit that can measure",
            hint="install this deploykit there: pip install",
        )
    if code < 0:
        name = signal.Signals(-code).name
        why = "most often: out of memory" if name == "SIGKILL" else "a crash in native code"
        return StepCrashError(f"{arm}: the measuring process died of {name}", hint=f"{why}; its last lines:\n{tail}")
    return StepCrashError(
        f"{arm}: the measuring process ended with code {code} and no answer", hint=f"its last lines:\n{tail}"
    )


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (none)"


def job(
    bundle: str | os.PathLike[str], variant: str | None, points: list[dict[str, Any]], **settings: Any
) -> dict[str, Any]:
    """A job for a bundle's variant; ``settings`` are ``threads``, ``seconds``, ``calls`` … as the worker takes them."""
    subject = {"kind": "bundle", "path": str(Path(bundle).resolve()), "variant": variant}
    return {"subject": subject, "points": points, **settings}
