"""ONNX Runtime: on the CPU one session over all threads for a single batch, and one thread per core for many.

A variant's settings are ``graph_optimization`` (all, extended, basic or off; all unless said) and ``config``, entries
of the session's configuration as ONNX Runtime names them. Telemetry is switched off before the first session. The
provider that a session really got is checked: ONNX Runtime falls back without raising. Other providers than the CPU's
use the same engine through `Provider`; `deploykit.runtime.engines.onnxruntime_cuda` is one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.runtime.engines import EngineOptions, Feeds
from deploykit.runtime.errors import BundleError, InputError, MissingError, nearest
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.lanes import Lanes
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import onnxruntime

Outputs = dict[str, np.ndarray]

_SETTINGS = ("graph_optimization", "config")
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_ERRORS_ONLY = 3


def _nothing_more(session: onnxruntime.InferenceSession, path: Path) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Provider:
    """Where sessions run, and its ``options`` as ONNX Runtime names them.

    ``lanes`` is how many batches are in flight on one session, 0: one for each thread, each of one thread. ``inspect``
    looks at every new session: it raises where that does not run as it should, and gives facts for ``effective``.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    lanes: int = 0
    inspect: Callable[[onnxruntime.InferenceSession, Path], Mapping[str, Any]] = _nothing_more


CPU = Provider("CPUExecutionProvider")


def open_engine(path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions) -> OnnxRuntimeEngine:
    """Load the ``.onnx`` at ``path``; `BundleError` when ONNX Runtime cannot, or a setting is unknown."""
    return open_on(CPU, path, card, settings, options.threads or usable_cores(), options.arena)


def open_on(
    provider: Provider, path: Path, card: Card, settings: Mapping[str, Any], threads: int, arena: bool = True
) -> OnnxRuntimeEngine:
    """Load the ``.onnx`` at ``path`` on a provider; `MissingError` when the session gets another one."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    for key in settings:
        if key not in _SETTINGS:
            raise BundleError(f"onnxruntime has no setting '{key}'", hint=nearest(key, _SETTINGS))
    return OnnxRuntimeEngine(path, card, settings, threads, provider, arena)


class OnnxRuntimeEngine:
    """A session for latency, and one more, shared by one thread per core, when `run_many` is first used."""

    def __init__(
        self,
        path: Path,
        card: Card,
        settings: Mapping[str, Any],
        threads: int,
        provider: Provider = CPU,
        arena: bool = True,
    ) -> None:
        import onnxruntime

        self._provider, self._arena = provider, arena
        self._path, self._settings, self._threads = path, settings, threads
        self._outputs = [spec.name for spec in card.outputs]
        self._lock = threading.Lock()
        self._lanes: Lanes[onnxruntime.InferenceSession] | None = None
        self._session: onnxruntime.InferenceSession | None = self._open_session(threads)
        self.effective: Mapping[str, Any] = {
            "engine": "onnxruntime",
            "version": onnxruntime.__version__,
            "device": self._session.get_providers()[0],
            "precision": "as stored in the file",
            "threads": threads,
            "streams": 1,
            "streams_many": provider.lanes or threads,
            **({} if arena else {"arena": False}),
            **provider.inspect(self._session, path),
        }

    def run(self, feeds: Feeds) -> Outputs:
        """One batch on all threads."""
        session = self._session
        if session is None:
            raise InputError("this encoder was closed", hint="load the bundle again")
        return self._infer(session, feeds)

    def run_many(self, batches: Iterable[Feeds]) -> list[Outputs]:
        """Many batches, one per core at a time, each on one thread: no barrier between cores inside a batch."""
        return self._throughput().map(self._infer, batches)

    def close(self) -> None:
        """Free the sessions."""
        with self._lock:
            lanes, self._lanes, self._session = self._lanes, None, None
        if lanes is not None:
            lanes.close()

    def _throughput(self) -> Lanes[onnxruntime.InferenceSession]:
        with self._lock:
            if self._session is None:
                raise InputError("this encoder was closed", hint="load the bundle again")
            if self._lanes is None:
                lanes = self._provider.lanes or self._threads
                shared = bool(self._provider.lanes) or self._threads == 1
                self._lanes = Lanes([self._session if shared else self._open_session(1)] * lanes)
            return self._lanes

    def _open_session(self, threads: int) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = self._arena
        options.log_severity_level = _ERRORS_ONLY
        level = str(self._settings.get("graph_optimization", "all"))
        if level not in _LEVELS:
            raise BundleError(f"graph_optimization is '{level}'", hint=nearest(level, tuple(_LEVELS)))
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
        for key, value in {**self._provider.config, **self._settings.get("config", {})}.items():
            options.add_session_config_entry(key, str(value))
        wanted = self._provider.name
        try:
            # Without its own fallback, which prints, and goes on with the CPU where the provider fails.
            session = onnxruntime.InferenceSession(
                self._path, options, providers=[(wanted, dict(self._provider.options))], enable_fallback=0
            )
        except Exception as error:  # onnxruntime's exceptions share no base but this one
            raise BundleError(
                f"onnxruntime {onnxruntime.__version__} cannot load '{self._path.name}': {_first_line(error)}",
                hint="the bundle may have been built with a newer onnxruntime: upgrade it, or load another variant",
            ) from error
        if (got := session.get_providers()[0]) != wanted:
            raise MissingError(
                f"onnxruntime {onnxruntime.__version__} gave {got}, not {wanted}: a library that it needs cannot be "
                "loaded",
                hint="reinstall it with its libraries; `deploykit doctor` shows what loads",
            )
        return session

    def _infer(self, session: onnxruntime.InferenceSession, feeds: Feeds) -> Outputs:
        try:
            arrays = session.run(self._outputs, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base but this one
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise InputError(
                f"onnxruntime failed in '{self._path.name}' on {shapes}: {_first_line(error)}",
                hint="check the input's sizes; another variant of the bundle may take them",
            ) from error
        return {name: np.asarray(array, np.float32) for name, array in zip(self._outputs, arrays, strict=True)}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
