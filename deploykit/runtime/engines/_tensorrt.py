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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploykit.runtime.engines import EngineOptions, Feeds
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.lanes import Lanes
from deploykit.runtime.manifest import Card
from deploykit.runtime.tensorrt import cache, driver, layers
from deploykit.runtime.tensorrt.build import Built, build, capabilities, failed, recorder, refusal, this_platform
from deploykit.runtime.tensorrt.driver import Cuda, Gpu
from deploykit.runtime.tensorrt.flavour import Flavour
from deploykit.runtime.tensorrt.kernels import Kernels
from deploykit.runtime.tensorrt.recipe import Recipe, digest_of
from deploykit.runtime.tensorrt.session import Device, Lane, Outputs, runtime_config, tensors_of

_log = logging.getLogger("deploykit")
# Copies of one batch run beside the kernels of the other; more in flight gain nothing on one GPU.
_LANES = 2
_DISTANCE = 8
_PADDED = {"input_ids", "attention_mask", "token_type_ids"}


def open_engine(
    flavour: Flavour, path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions
) -> TensorRtEngine:
    """Load, or build and keep, the engine of the ONNX at ``path``.

    `MissingError` where GPU, driver or package are not what it needs; `BundleError` where TensorRT cannot build it.
    """
    recipe = Recipe.read(settings)
    gpu = gate(flavour, recipe, driver.gpu())
    trt = flavour.load()
    check_capability(trt, flavour, gpu)
    blob, effective, cached = _engine(trt, flavour, path, recipe, gpu)
    kernels = None if cached is None else cache.kernels(cache.default_root(), cached)
    engine = TensorRtEngine(trt, blob, card, recipe, Cuda(), effective, kernels)
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


def check_capability(trt: ModuleType, flavour: Flavour, gpu: Gpu) -> None:
    """`MissingError` where the flavour lists the GPUs that it knows, and this one is not among them."""
    known = capabilities(trt)
    if known and gpu.compute_capability not in known:
        raise MissingError(
            f"{flavour.name} has no compute capability {gpu.compute_capability}, which the {gpu.name} has",
            hint=f"it has {', '.join(known)}; load a variant of another target",
        )


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
    # The flavour that builds for any GPU builds for several unless it is told which.
    sm = str(wanted["compute_capability"]) if capabilities(trt) else ""
    built = build(trt, str(wanted["flavour"]), path, recipe, sm, timing=None if sm else timing)
    built.metadata["compute_capability"] = wanted["compute_capability"]
    return built


class TensorRtEngine:
    """One deserialized engine; a lane for single batches, and several when `run_many` is first used.

    ``kernels`` is where TensorRT for RTX keeps what it compiles while it runs; None for nowhere.
    """

    def __init__(
        self,
        trt: ModuleType,
        blob: bytes,
        card: Card,
        recipe: Recipe,
        device: Device,
        effective: Mapping[str, Any],
        kernels: Path | None = None,
    ) -> None:
        self._trt, self._device, self._recipe = trt, device, recipe
        self._recorder = recorder(trt)
        device.enter()
        self._runtime = trt.Runtime(self._recorder)
        if recipe.version_compatible:  # its engines bring code of their own, which a runtime refuses unless it is told
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            hint = "delete the engines' cache (DEPLOYKIT_ENGINES) and load again, or load another variant"
            raise failed("TensorRT does not load the engine", self._recorder, hint, BundleError)
        self._tensors = tensors_of(trt, self._engine)
        self._config = runtime_config(trt, self._engine)
        self._kernels = None if self._config is None or kernels is None else Kernels(self._config, kernels)
        self._step = _Lengths.of(card, recipe)
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

    @property
    def records_graphs(self) -> bool:
        """Whether calls are to be recorded as CUDA graphs from outside; contexts of TensorRT for RTX do it inside."""
        return self._config is None

    def context(self) -> Any:
        """A context of the native engine, as this engine's own are; None where there is no memory for it."""
        if self._config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._config)

    def warm_up(self, card: Card) -> None:
        """Run the usual shape of each profile once, so that kernels that are compiled on the way are there."""
        kinds = {spec.name: np.dtype(spec.dtype) for spec in card.inputs}
        for profile in self._recipe.profiles:
            if set(profile) == set(kinds):
                self.run({name: np.ones(bounds.usual, kinds[name]) for name, bounds in profile.items()})

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
            if self._kernels is not None:
                self._kernels.keep()
            self._config = self._kernels = None
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
        records = self.records_graphs
        return Lane(self.context, self._tensors, self._recipe, self._device, self._recorder, records=records)

    def _infer(self, lane: Lane, feeds: Feeds) -> Outputs:
        """A batch of more rows than the engine was built for goes through in parts."""
        if self._step is not None:
            feeds = self._step.filled(feeds)
        rows = len(next(iter(feeds.values())))
        step = self._most_rows or rows
        parts = [
            lane.run({name: array[start : start + step] for name, array in feeds.items()})
            for start in range(0, rows, step)
        ]
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in self._names}


@dataclass(frozen=True)
class _Lengths:
    """Texts are padded to lengths of some distance, so that few shapes come up and their graphs are at hand.

    ``longest`` is the largest length of any profile, ``blank`` the id of padding.
    """

    longest: int
    blank: int

    @classmethod
    def of(cls, card: Card, recipe: Recipe) -> _Lengths | None:
        """None where no mask marks padding, it belongs in front, or an output has a row for each token."""
        names = {spec.name for spec in card.inputs}
        tokens = [spec.shape == ("batch", "length") for spec in card.inputs]
        if not recipe.profiles or "attention_mask" not in names or not names <= _PADDED or not all(tokens):
            return None
        if card.preprocess.get("padding_side", "right") != "right":
            return None
        if any("length" in spec.shape for spec in card.outputs):
            return None
        longest = max(bounds.largest[1] for profile in recipe.profiles for bounds in profile.values())
        return cls(longest, int(card.preprocess.get("pad_id", 0)))

    def filled(self, feeds: Feeds) -> Feeds:
        """The inputs with padding behind them, up to the next of the lengths."""
        length = next(iter(feeds.values())).shape[1]
        more = min(-(-length // _DISTANCE) * _DISTANCE, self.longest) - length
        if more <= 0:
            return feeds
        blanks = {name: self.blank if name == "input_ids" else 0 for name in feeds}
        return {n: np.pad(array, ((0, 0), (0, more)), constant_values=blanks[n]) for n, array in feeds.items()}


def _most_rows(card: Card, recipe: Recipe) -> int:
    """The largest batch of every profile; 0 where not every input begins with the batch."""
    if not recipe.profiles or any(not spec.shape or spec.shape[0] != "batch" for spec in card.inputs):
        return 0
    return min(bounds.largest[0] for profile in recipe.profiles for bounds in profile.values())
