"""Runs a step's action in a process of its own, so that a crash or a hang of a native compiler stays there.

The parent writes ``request.json`` and starts ``python -m deploykit.pipeline.child request.json``; the child leaves
``result.json`` or ``error.json`` beside it. The same command, by hand, reproduces a failure.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import errors
from deploykit.errors import DeploykitError, StepCrashError

# Nothing phones home, and nobody's default thread pool spins beside another's.
QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
_LOG_TAIL = 20
_SECONDS = "DEPLOYKIT_STEP_SECONDS"
_BEGUN = time.perf_counter()


@dataclass(frozen=True)
class Request:
    """What the child is to do; ``inputs`` maps parent step names to artefact folders, ``out`` is an empty folder.

    ``watch`` are the fields of a `deploykit.pipeline.step.Watch`; with it the child leaves ``reads.json`` too.
    """

    step: str
    action: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    out: str
    watch: Mapping[str, Any] | None = None


class StoppedError(Exception):
    """A child was ended, or not begun, because the whole run ends; whoever ended the run says why."""


class Children:
    """The processes that a run has started from several threads, so that all of them can be ended at once."""

    def __init__(self) -> None:
        self._lock, self._processes = threading.Lock(), set[subprocess.Popen[bytes]]()
        self._stopped = threading.Event()

    def begin(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process; `StoppedError` after `stop`."""
        with self._lock:
            self.check()
            process = subprocess.Popen(command, **options)
            self._processes.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process with whatever it started; it may be over already."""
        _kill_group(process)
        with self._lock:
            self._processes.discard(process)

    def stop(self) -> None:
        """End all of them; none begins from here on."""
        with self._lock:
            self._stopped.set()
            for process in self._processes:
                if process.poll() is None:
                    _signal_group(process)

    def check(self) -> None:
        """Raise `StoppedError` after `stop`."""
        if self._stopped.is_set():
            raise StoppedError

    def pause(self, seconds: float) -> None:
        """Wait; `StoppedError` when `stop` is called meanwhile."""
        self._stopped.wait(seconds)
        self.check()


def run_in_child(
    request: Request, work: Path, timeout_s: float, children: Children | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Run ``request`` and return the action's metadata, with ``run`` (seconds, processor seconds and peak memory of
    the child) added.

    ``threads`` is how many threads its arithmetic may use, where others run beside it. The action's own
    `DeploykitError` is raised again here; death by a signal and a time-out are `StepCrashError`, and `StoppedError`
    says that ``children`` were stopped.
    """
    children = children or Children()
    path = work / "request.json"
    path.write_text(json.dumps(vars(request), indent=1), encoding="utf-8")
    log = work / "log.txt"
    started = time.perf_counter()
    with log.open("wb") as sink:
        process = children.begin(
            [sys.executable, "-P", "-m", __name__, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **QUIET, **_shared(threads), _SECONDS: str(timeout_s)},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise StepCrashError(
                f"step '{request.step}' was still running after {timeout_s:.0f} s and was stopped",
                hint="give it longer with timeout_s in the recipe, or look at its log",
            ) from error
        finally:
            children.end(process)
    children.check()
    result = _read(work / "result.json")
    if code == 0 and result is not None:
        seconds = round(time.perf_counter() - started, 2)
        return {**result["metadata"], "run": {"seconds": seconds, **result["run"]}}
    raise _failure(request, code, _read(work / "error.json"), log)


def seconds_left() -> float | None:
    """What is left of the time limit of this process's step; None where it has none, as in a step run by hand."""
    given = os.environ.get(_SECONDS)
    return None if given is None else float(given) - (time.perf_counter() - _BEGUN)


def _shared(threads: int | None) -> dict[str, str]:
    """The environment of a child that has ``threads`` of the cores; what the user allows may be fewer."""
    if threads is None:
        return {}
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return {"OMP_NUM_THREADS": str(min(threads, int(allowed)) if allowed.isdigit() and int(allowed) else threads)}


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started."""
    _signal_group(process)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data


def _failure(request: Request, code: int, error: dict[str, Any] | None, log: Path) -> DeploykitError:
    if error and error["type"]:
        known: DeploykitError = getattr(errors, error["type"])(error["message"], hint=error["hint"])
        return known
    if error:
        return StepCrashError(
            f"step '{request.step}' failed: {error['message']}",
            hint="the log below says where; --debug prints it whole",
        )
    tail = "\n    ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:])
    if code < 0:
        name = signal.Signals(-code).name
        why = "most often: out of memory" if name == "SIGKILL" else "a crash in native code"
        return StepCrashError(
            f"step '{request.step}' died of {name}", hint=f"{why}; its last lines:\n    {tail or '(none)'}"
        )
    return StepCrashError(
        f"step '{request.step}' ended with code {code} and no result", hint=f"its last lines:\n    {tail}"
    )


def reproduce_command(request: Path) -> str:
    """The command that runs a kept request again."""
    return f"{sys.executable} -P -m {__name__} {request}"


def main(path: Path) -> int:
    """The child's side: run the action, leave ``result.json`` or ``error.json``."""
    _die_with_parent()
    request = Request(**json.loads(path.read_text(encoding="utf-8")))
    out = Path(request.out)
    out.mkdir(parents=True, exist_ok=True)
    module, _, function = request.action.partition(":")
    inputs = {name: Path(folder) for name, folder in request.inputs.items()}
    try:
        with _watched(request, path.parent):
            action = getattr(importlib.import_module(module), function)
            metadata = action(request.options, inputs, out)
        run = {"cpu_seconds": round(time.process_time(), 2), "peak_memory_mb": _peak_memory_mb()}
        answer = json.dumps({"metadata": metadata, "run": run})
    except Exception as error:
        traceback.print_exc()
        (path.parent / "error.json").write_text(json.dumps(_describe(error)), encoding="utf-8")
        return 1
    (path.parent / "result.json").write_text(answer, encoding="utf-8")
    return 0


@contextlib.contextmanager
def _watched(request: Request, work: Path) -> Iterator[None]:
    """Leave in ``reads.json`` what is read meanwhile, where that is asked for and can be known."""
    if request.watch is None:
        yield
        return
    from deploykit.pipeline.observe import Observer, observing

    roots = [Path(root) for root in request.watch["roots"]]
    own = [work, Path(request.out), *map(Path, request.inputs.values())]
    observer = Observer(roots, own, by_name=request.watch["by_name"])
    with observing(observer):
        yield
    if (reads := observer.reads()) is not None:
        (work / "reads.json").write_text(json.dumps(reads.to_json()), encoding="utf-8")


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, DeploykitError):
        kind = type(error).__name__
        return {
            "type": kind if hasattr(errors, kind) else "DeploykitError",
            "message": error.message,
            "hint": error.hint,
        }
    if isinstance(error, MemoryError):
        return {
            "type": "MissingError",
            "message": "not enough memory",
            "hint": "close other programs, or a smaller model",
        }
    if isinstance(error, OSError) and error.errno == 28:
        hint = "free some space; what was there before is untouched"
        return {
            "type": "DiskError",
            "message": f"no space left on the device: {error.filename or 'the store'}",
            "hint": hint,
        }
    text = (str(error).strip().splitlines() or [""])[0]
    return {"type": "", "message": f"{type(error).__name__}: {text}"[:600], "hint": ""}


def _peak_memory_mb() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed, so that no orphan goes on compiling."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    # The engines' exit handlers have crashed after the work was done: leave without running them.
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
