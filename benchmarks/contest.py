"""Runs contestants side by side: long-lived processes, of which only one is ever awake."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ContestantError(Exception):
    """A contestant died, ran out of time or answered with an error."""


class Process:
    """A worker process, stopped (SIGSTOP) between requests: idle thread pools must not spin beside a timed run."""

    def __init__(self, python: Path, threads: int, log: Path) -> None:
        self._log = log
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).parent / "worker.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()

    def ask(self, do: str, *, timeout_s: float = 1800.0, **request: Any) -> dict[str, Any]:
        """Wake the worker, send a request, wait for the answer, put it back to sleep."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
            answered, _, _ = select.select([self._process.stdout], [], [], timeout_s)
            if not answered:
                raise ContestantError(f"it gave no answer to '{do}' in {timeout_s:.0f} s; see {self._log}")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            self._signal(signal.SIGSTOP)
        if not line:
            raise ContestantError(f"it died at '{do}'; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContestantError(f"{answer['error'].splitlines()[0]}; see {self._log}")
        return answer

    def kill(self) -> None:
        """End the worker and whatever it started."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
