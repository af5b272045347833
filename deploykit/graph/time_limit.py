"""A time limit on a piece of Python that may not end: one exporter that hangs must leave time for the next."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from deploykit.errors import ExportError

_AGAIN_S = 5.0


class _TimeIsUp(BaseException):
    """No `Exception`: exporters catch those of their own steps and go on."""


@contextmanager
def at_most(seconds: float | None, what: str, hint: str) -> Iterator[None]:
    """Raise `ExportError` in the block when it takes longer than ``seconds``; None is no limit.

    Works between two Python instructions of the thread that it is used in; inside native code that does not return,
    the time limit of the whole step holds.
    """
    if seconds is None:
        yield
        return
    watch = _Watch(threading.get_ident(), seconds)
    late: BaseException | None = None
    try:
        try:
            yield
        finally:
            watch.stop()
    except _TimeIsUp as error:
        late = error
        watch.stop()  # once more: it may have come in the middle of the first
    if late is not None or watch.fired:
        raise ExportError(f"{what} was still running after {seconds:.0f} s and was stopped", hint=hint) from late


class _Watch:
    """Raises `_TimeIsUp` in a thread once its time is up, and every few seconds in case something catches even that.

    No signal: on a CPU with AMX, a process in which several engines had run was seen to die (SIGSEGV) when one was
    delivered, before any handler ran.
    """

    def __init__(self, thread: int, seconds: float) -> None:
        self.fired = False
        self._target, self._seconds = ctypes.c_ulong(thread), seconds
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._wait, name="deploykit-time-limit", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Raise nothing from here on, nor what was raised and has not arrived."""
        with self._lock:
            self._over.set()
            if self.fired:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._target, None)

    def _wait(self) -> None:
        if self._over.wait(self._seconds):
            return
        while True:
            with self._lock:
                if self._over.is_set():
                    return
                self.fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._target, ctypes.py_object(_TimeIsUp))
            if self._over.wait(_AGAIN_S):
                return
