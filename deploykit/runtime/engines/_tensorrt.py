"""What both flavours of TensorRT share on the device: the gate, the engine from the cache or built, the lanes.

The engine is built here from the variant's ONNX and recipe, once, and kept (`deploykit.runtime.tensorrt.cache`). An
engine that came with a bundle is executable code from elsewhere: it is loaded only where ``DEPLOYKIT_TRUST_ENGINES`` is
1, and only when it was built from this very model for this TensorRT and this GPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.runtime.engines import EngineOptions, Feeds
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.lanes import Lanes
from deploykit.runtime.manifest import Card
from deploykit.runtime.tensorrt import cache, driver, layers
from deploykit.runtime.tensorrt.build import Built, build, failed, recorder, refusal, this_platform
from deploykit.runtime.tensorrt.driver import Cuda, Gpu
from deploykit.runtime.tensorrt.flavour import Flavour
from deploykit.runtime.tensorrt.recipe import Recipe, digest_of
from deploykit.runtime.tensorrt.session import Device, Lane, Outputs, tensors_of

_log = logging.getLogger("deploykit")
# Copies of one batch run beside the kernels of the other; more in flight gain nothing on one GPU.
_LANES = 2


def open_engine(
    flavour: Flavour, path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions
) -> TensorRtEngine:
    """Load, or build and keep, the engine of the ONNX at ``path``.

    `MissingError` where GPU, driver or package are not what it needs; `BundleError` where TensorRT cannot build it.
    """
    recipe = Recipe.read(settings)
    gpu = gate(flavour, recipe, driver.gpu())
    trt = flavour.load()
    blob, effective, cached = _engine(trt, flavour, path, recipe, gpu)
    engine = TensorRtEngine(trt, blob, card, recipe, Cuda(), effective)
    found = engine.layers() if cached is None else cache.layers(cache.default_root(), cached, engine.layers)
    engine.effective = {**engine.effective, "layers": layers.summary(found)}
    return engine


def gate(flavour: Flavour, recipe: Recipe, gpu: Gpu | None) -> Gpu:
    """The GPU, when it can run the recipe's precision and its driver the installed package; else `MissingError`."""
    if gpu is None:
        raise MissingError(
            f"{flavour.name} needs an NVIDIA GPU, and no driver finds one here",
            hint="see whether `nvidia-smi` lists one; without it, another variant of the bundle runs",
        )
    if _numbers(gpu.compute_capability) < _numbers(recipe.compute_capability):
        raise MissingError(
            f"{recipe.precision} needs compute capability {recipe.compute_capability}, and the {gpu.name} has "
            f"{gpu.compute_capability}",
            hint="load the fp16 or fp32 variant of the bundle",
        )
    wheel = flavour.cuda_major()
    if _numbers(gpu.driver)[0] < wheel:
        raise MissingError(
            f"the NVIDIA driver speaks CUDA {gpu.driver}, and the installed {flavour.package} needs CUDA {wheel}",
            hint=f"update the driver, or install a {flavour.package} for CUDA {_numbers(gpu.driver)[0]}",
        )
    return gpu


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _engine(
    trt: ModuleType, flavour: Flavour, path: Path, recipe: Recipe, gpu: Gpu
) -> tuple[bytes, dict[str, Any], dict[str, Any] | None]:
    """The engine, what `effective` says of it, and what the cache knows it by: None for one that is not in it."""
    version = str(trt.__version__)
    wanted: dict[str, Any] = {
        "flavour": flavour.name,
        "version": version,
        "compute_capability": gpu.compute_capability,
        "platform": this_platform(),
        "model": digest_of(path),
        "recipe": recipe.digest,
    }
    effective = {
        "engine": flavour.name,
        "version": version,
        "device": gpu.name,
        "precision": recipe.precision,
        "compute_capability": gpu.compute_capability,
        "driver": gpu.driver,
    }
    if os.environ.get("DEPLOYKIT_TRUST_ENGINES") == "1" and (blob := _brought(path, wanted)) is not None:
        return blob, {**effective, "from": "ahead of time"}, None
    root = cache.default_root()
    cached = {**wanted, "driver": gpu.driver, "gpu": gpu.name}
    found = cache.get(root, cached, lambda: _build(trt, path, recipe, wanted))
    for reason in found.stale:
        _log.warning("%s: an older engine in %s is not used: %s; it was built anew", path.name, root, reason)
    return found.engine, {**effective, "from": "built now" if found.built else "the cache"}, cached


def _brought(path: Path, wanted: Mapping[str, Any]) -> bytes | None:
    """The engine that was built ahead of time for this GPU; None, with a notice, where it does not serve.

    It stands beside the ONNX, or where an export puts it: in ``NAME.engines`` beside ``NAME.bundle``.
    """
    stem = f"{path.stem}.sm{str(wanted['compute_capability']).replace('.', '')}"
    bundle = path.absolute().parent.parent
    for folder in (path.parent, bundle.parent / f"{bundle.name.removesuffix('.bundle')}.engines"):
        try:
            metadata = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
            blob = (folder / f"{stem}.engine").read_bytes()
        except (OSError, ValueError):
            continue
        reason = refusal(metadata, wanted)
        if not reason and hashlib.sha256(blob).hexdigest() != metadata["digests"]["engine"]:
            reason = "it is damaged"
        if not reason:
            return blob
        _log.warning("%s is not used: %s", folder / f"{stem}.engine", reason)
    return None


def _build(trt: ModuleType, path: Path, recipe: Recipe, wanted: Mapping[str, Any]) -> Built:
    _log.warning("building the %s engine of '%s' for this GPU; it is kept for the next time", trt.__name__, path.name)
    timing = cache.default_root() / f"timing-{wanted['flavour']}-{wanted['version']}-{wanted['compute_capability']}.bin"
    built = build(trt, str(wanted["flavour"]), path, recipe, timing=timing)
    built.metadata["compute_capability"] = wanted["compute_capability"]
    return built


class TensorRtEngine:
    """One deserialized engine; a lane for single batches, and several when `run_many` is first used."""

    def __init__(
        self, trt: ModuleType, blob: bytes, card: Card, recipe: Recipe, device: Device, effective: Mapping[str, Any]
    ) -> None:
        self._trt, self._device, self._recipe = trt, device, recipe
        self._recorder = recorder(trt)
        device.enter()
        self._runtime = trt.Runtime(self._recorder)
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            hint = "delete the engines' cache (DEPLOYKIT_ENGINES) and load again, or load another variant"
            raise failed("TensorRT does not load the engine", self._recorder, hint, BundleError)
        self._tensors = tensors_of(trt, self._engine)
        self._names = tuple(spec.name for spec in card.outputs)
        self._most_rows = _most_rows(card, recipe)
        self._lock = threading.Lock()
        self._lane: Lane | None = self._open_lane()
        self._many: Lanes[Lane] | None = None
        self._opened = [self._lane]
        self.effective: Mapping[str, Any] = {**effective, "streams": 1, "streams_many": _LANES}

    def run(self, feeds: Feeds) -> Outputs:
        """One batch. Calls from several threads take turns."""
        with self._lock:
            if self._lane is None:
                raise InputError("this encoder was closed", hint="load the bundle again")
            return self._infer(self._lane, feeds)

    def run_many(self, batches: Iterable[Feeds]) -> list[Outputs]:
        """Many batches, two at a time, each in a stream of its own: one copies while the other computes."""
        return self._throughput().map(self._infer, batches)

    @property
    def native(self) -> Any:
        """TensorRT's own engine, for callers with memory and a stream of their own; None once it is closed."""
        return self._engine

    def layers(self) -> list[dict[str, Any]]:
        """What TensorRT's inspector tells of the engine's layers (`deploykit.runtime.tensorrt.layers`)."""
        return layers.inspect(self._trt, self._engine)

    def close(self) -> None:
        """Free the GPU's memory."""
        with self._lock:
            many, self._many, self._lane = self._many, None, None
            opened, self._opened = self._opened, []
        if many is not None:
            many.close()
        for lane in opened:
            lane.close()
        if opened:
            self._engine = self._runtime = None
            self._device.close()

    def _throughput(self) -> Lanes[Lane]:
        with self._lock:
            if self._lane is None:
                raise InputError("this encoder was closed", hint="load the bundle again")
            if self._many is None:
                lanes = [self._open_lane() for _ in range(_LANES)]
                self._opened += lanes
                self._many = Lanes(lanes)
            return self._many

    def _open_lane(self) -> Lane:
        return Lane(self._engine, self._tensors, self._recipe, self._device, self._recorder)

    def _infer(self, lane: Lane, feeds: Feeds) -> Outputs:
        """A batch of more rows than the engine was built for goes through in parts."""
        rows = len(next(iter(feeds.values())))
        step = self._most_rows or rows
        parts = [
            lane.run({name: array[start : start + step] for name, array in feeds.items()})
            for start in range(0, rows, step)
        ]
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in self._names}


def _most_rows(card: Card, recipe: Recipe) -> int:
    """The largest batch of every profile; 0 where not every input begins with the batch."""
    if not recipe.profiles or any(not spec.shape or spec.shape[0] != "batch" for spec in card.inputs):
        return 0
    return min(bounds.largest[0] for profile in recipe.profiles for bounds in profile.values())
