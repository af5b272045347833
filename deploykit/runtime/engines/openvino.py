"""OpenVINO on the CPU: one stream over all threads for a single batch, one stream per core for many.

A variant's settings are OpenVINO's own properties (``INFERENCE_PRECISION_HINT`` …). Where they name no precision, f32
is asked for: OpenVINO alone would pick bf16 on machines that have it, without a word. A precision that was asked for by
name and is not what the compiled model reports is an error. No compiled model is cached on disk unless ``CACHE_DIR`` is
set. The package's telemetry is kept from being loaded (`without_telemetry`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deploykit.runtime.engines import EngineOptions, Feeds
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.lanes import Lanes
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import openvino

Outputs = dict[str, np.ndarray]


def open_engine(path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions) -> OpenVinoEngine:
    """Load the ``.xml`` (its ``.bin`` beside it) or ``.onnx`` at ``path``.

    `BundleError` when OpenVINO cannot load the file, `MissingError` when this machine cannot give the precision asked
    for.
    """
    without_telemetry()
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise _unloadable(path, error) from error
    return OpenVinoEngine(path, model, card, settings, options.threads or usable_cores())


def without_telemetry() -> None:
    """Keep openvino and nncf, imported after this, from sending usage data.

    Both send events, openvino when it is imported, if they find the package openvino-telemetry, which nncf brings
    along; where it cannot be imported they have a stub of their own.
    """
    cast(dict[str, Any], sys.modules)["openvino_telemetry"] = None


class OpenVinoEngine:
    """One model, compiled at once for latency, and for throughput when `run_many` is first used."""

    def __init__(
        self, path: Path, model: openvino.Model, card: Card, settings: Mapping[str, Any], threads: int
    ) -> None:
        import openvino

        self._tensor = openvino.Tensor
        self._core = openvino.Core()
        self._path, self._model, self._threads = path, model, threads
        self._settings = {"INFERENCE_PRECISION_HINT": "f32", **settings}
        self._outputs = tuple(spec.name for spec in card.outputs)
        self._lock = threading.Lock()
        self._lanes: Lanes[openvino.InferRequest] | None = None
        compiled = self._compile({"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
        self._request: openvino.InferRequest | None = compiled.create_infer_request()
        self.effective: Mapping[str, Any] = {
            "engine": "openvino",
            "version": openvino.get_version().split("-")[0],
            "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
            "precision": self._check_precision(compiled),
            "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
            "streams": compiled.get_property("NUM_STREAMS"),
            "streams_many": threads,
        }

    def run(self, feeds: Feeds) -> Outputs:
        """One batch on all threads. Calls from several threads take turns."""
        with self._lock:
            if self._request is None:
                raise InputError("this encoder was closed", hint="load the bundle again")
            return self._infer(self._request, feeds)

    def run_many(self, batches: Iterable[Feeds]) -> list[Outputs]:
        """Many batches, one per stream at a time, each stream on one core: no barrier between cores inside a batch."""
        return self._throughput().map(self._infer, batches)

    def close(self) -> None:
        """Free the compiled models."""
        with self._lock:
            lanes, self._lanes, self._request = self._lanes, None, None
        if lanes is not None:
            lanes.close()

    def _throughput(self) -> Lanes[openvino.InferRequest]:
        with self._lock:
            if self._request is None:
                raise InputError("this encoder was closed", hint="load the bundle again")
            if self._lanes is None:
                # The weights are the same mapped file; what is packed anew for the second form is up to OpenVINO.
                compiled = self._compile({"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": self._threads})
                self._lanes = Lanes([compiled.create_infer_request() for _ in range(self._threads)])
            return self._lanes

    def _compile(self, properties: Mapping[str, Any]) -> openvino.CompiledModel:
        config = {**properties, "INFERENCE_NUM_THREADS": self._threads, **self._settings}
        try:
            return self._core.compile_model(self._model, "CPU", config)
        except RuntimeError as error:
            raise _unloadable(self._path, error) from error

    def _check_precision(self, compiled: openvino.CompiledModel) -> str:
        asked = str(self._settings["INFERENCE_PRECISION_HINT"])
        runs = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
        if runs != asked:
            raise MissingError(
                f"'{self._path.name}' is to run in {asked}, and OpenVINO runs it in {runs} on this machine",
                hint="load another variant of the bundle, or use a CPU that has this arithmetic",
            )
        return runs

    def _infer(self, request: openvino.InferRequest, feeds: Feeds) -> Outputs:
        # Tensors are set one by one over the arrays' own memory: the package's dictionary way checks, converts and
        # copies first. `held` keeps the arrays alive while the request may read them.
        held = [(name, _plain(array)) for name, array in feeds.items()]
        try:
            for name, array in held:
                request.set_tensor(name, self._tensor(array, shared_memory=True))
            request.infer()
            return {name: request.get_tensor(name).data.astype(np.float32) for name in self._outputs}
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in held)
            raise InputError(
                f"OpenVINO failed in '{self._path.name}' on {shapes}: {_last_line(error)}",
                hint="check the input's sizes; another variant of the bundle may take them",
            ) from error


def _plain(array: np.ndarray) -> np.ndarray:
    """An array whose memory can be shared: contiguous and writable (views of files and broadcasts are not)."""
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def _unloadable(path: Path, error: RuntimeError) -> BundleError:
    return BundleError(
        f"OpenVINO cannot load '{path.name}': {_last_line(error)}",
        hint="the bundle may have been built with a newer openvino: upgrade it, or load another variant",
    )


def _last_line(error: RuntimeError) -> str:
    """OpenVINO puts the source lines of its check first and the fact last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
