"""ONNX and recipe to a serialized engine: every False, None and -1 of the API is an error with the logger's own lines.

Networks are strongly typed: the precision is what the ONNX says, and no builder flag changes it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deploykit.runtime.errors import BundleError, DeploykitError, MissingError
from deploykit.runtime.tensorrt.recipe import Profile, Recipe, digest_of

SCHEMA = "deploykit.engine/1"
# Without a driver every build says this several times; it changes nothing.
_NOISE = re.compile(r"cudaError 35|CUDA driver version is insufficient|CUDA initialization failure")
_KEPT_LINES = 4
_NO_MEMORY = re.compile(r"out ?of ?memory|MemoryAllocation|insufficient memory", re.IGNORECASE)
# A build that lasts longer says this often how far it is.
_PROGRESS_S = 5.0
_log = logging.getLogger("deploykit")


@dataclass(frozen=True)
class Built:
    """An engine, and the metadata that stand beside it."""

    engine: bytes
    metadata: dict[str, Any]
    seconds: float


def recorder(trt: ModuleType) -> Any:
    """A logger that keeps its errors in ``lines`` instead of printing."""

    class Recorder(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Smaller is graver. 10.x and 11.x pass their enumeration, RTX its number.
            if int(severity) <= int(trt.ILogger.ERROR) and not _NOISE.search(message):
                self.lines.append(" ".join(message.split()))

    return Recorder()


def monitor(trt: ModuleType, name: str) -> Any:
    """What the builder tells how far it is; a long build passes it on now and then, a short one is silent."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.said = time.monotonic()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            if time.monotonic() - self.said >= _PROGRESS_S:
                self.said = time.monotonic()
                _log.warning("building the engine of '%s': %s, %d of %d", name, phase, step + 1, self.steps[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def failed(what: str, log: Any, hint: str, kind: type[DeploykitError] = BundleError) -> DeploykitError:
    """The error for something that the API answered with False, None or -1: ``what``, and what the logger heard.

    Where it was of memory it is a `MissingError` with the fix for it, whatever was tried. What was heard is told once.
    """
    heard = "; ".join(dict.fromkeys(log.lines[-_KEPT_LINES:])) or "it gives no reason"
    log.lines = []
    if _NO_MEMORY.search(heard):
        hint = "close what else runs on the GPU, or export with smaller largest shapes or a smaller workspace_mib"
        return MissingError(f"{what}: there is not enough memory on the GPU: {heard}", hint=hint)
    return kind(f"{what}: {heard}", hint=hint)


def build(
    trt: ModuleType, flavour: str, model: Path, recipe: Recipe, sm: str = "", timing: Path | None = None
) -> Built:
    """Build the engine of the ONNX at ``model``; ``sm`` ("8.9") for a GPU that is not here, else for the one that is.

    ``timing`` is a file in which the times of kernels are kept from build to build; only where there is a GPU. Raises
    `BundleError` with TensorRT's own lines.
    """
    begun = time.perf_counter()
    log = recorder(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt))
    if network is None:
        raise failed("TensorRT makes no network", log, "check the installation with `deploykit doctor`")
    _parse(trt, network, model, log)
    config = _configure(trt, builder, recipe, sm, log)
    _add_profiles(builder, config, network, recipe, log)
    progress = monitor(trt, model.name)
    config.progress_monitor = progress
    cache = _load_timings(config, timing) if timing is not None else None
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        wanted = f" for compute capability {sm}" if sm else ""
        raise failed(
            f"TensorRT cannot build an engine of '{model.name}'{wanted}",
            log,
            "take another precision or compute capability, or leave this target out",
        )
    if cache is not None and timing is not None:
        unfinished = timing.with_name(f".{timing.name}.{os.getpid()}")
        unfinished.write_bytes(memoryview(config.get_timing_cache().serialize()))
        unfinished.replace(timing)  # other builds read it meanwhile
    blob = bytes(memoryview(engine))
    metadata = _metadata(trt, flavour, network, model, recipe, sm, blob)
    return Built(blob, metadata, time.perf_counter() - begun)


def _network_flags(trt: ModuleType) -> int:
    """Strongly typed: to be asked for where the flag exists; where it is gone, every network is."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: ModuleType, network: Any, model: Path, log: Any) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(model)):
        return
    faults = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{fault.node_operator()} '{fault.node_name()}': {' '.join(fault.desc().split())}" for fault in faults]
    log.lines = said or log.lines
    hint = "lower the portable fp32 model with a precision of deploykit: it writes what the parser takes"
    raise failed(f"TensorRT's parser does not take '{model.name}'", log, hint)


def _configure(trt: ModuleType, builder: Any, recipe: Recipe, sm: str, log: Any) -> Any:
    config = builder.create_builder_config()
    if config is None:
        raise failed("TensorRT makes no builder configuration", log, "check the installation with `deploykit doctor`")
    if recipe.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib << 20)
    if recipe.optimization_level is not None:
        config.builder_optimization_level = recipe.optimization_level
    # On by default, and products in fp32 would have 10 bits: fp32 means fp32.
    if (tf32 := getattr(trt.BuilderFlag, "TF32", None)) is not None:
        config.clear_flag(tf32)
    if recipe.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if recipe.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if sm:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(capability(trt, sm), 0):
            raise failed(f"TensorRT refuses to build for compute capability {sm}", log, "choose another one")
    return config


def capability(trt: ModuleType, sm: str) -> Any:
    """The flavour's name for a compute capability ("8.9"); `BundleError` lists those that it has."""
    known = capabilities(trt)
    if not known:
        raise BundleError(
            "this TensorRT builds only for the GPU that is here", hint="leave sm out, or take the target tensorrt-rtx"
        )
    if sm not in known:
        raise BundleError(f"this TensorRT has no compute capability {sm}", hint=f"it has {', '.join(known)}")
    return getattr(trt.ComputeCapability, f"SM{sm.replace('.', '')}")


def capabilities(trt: ModuleType) -> list[str]:
    """The compute capabilities that it can build for without the GPU, in order; none for the one that needs it."""
    names = dir(getattr(trt, "ComputeCapability", None))
    numbers = sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
    return [f"{number // 10}.{number % 10}" for number in numbers]


def _add_profiles(builder: Any, config: Any, network: Any, recipe: Recipe, log: Any) -> None:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor for tensor in tensors if -1 in tuple(tensor.shape)]
    if not dynamic:
        return
    if not recipe.profiles:
        raise _unbounded(dynamic[0])
    for bounds in recipe.profiles:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            _set_bounds(profile, tensor, bounds)
        if config.add_optimization_profile(profile) < 0:
            raise failed("TensorRT refuses the optimization profile", log, "check its smallest and largest shapes")


def _set_bounds(profile: Any, tensor: Any, bounds: Profile) -> None:
    if tensor.name not in bounds:
        raise _unbounded(tensor)
    asked = bounds[tensor.name]
    try:
        profile.set_shape(tensor.name, asked.smallest, asked.usual, asked.largest)
    except (ValueError, RuntimeError, TypeError) as error:
        raise BundleError(
            f"the input '{tensor.name}' of shape {list(tensor.shape)} cannot have {list(asked.smallest)} to "
            f"{list(asked.largest)}: {error}",
            hint="set batch, lengths and usual sizes so that they suit the model",
        ) from error


def _unbounded(tensor: Any) -> BundleError:
    return BundleError(
        f"the input '{tensor.name}' has dynamic axes without bounds: {list(tensor.shape)}",
        hint="the encoder card bounds every axis it proved; bound the others in the model, or set `sizes`",
    )


def _load_timings(config: Any, timing: Path) -> Any:
    """A timing cache from the file, or an empty one; None where this TensorRT keeps none."""
    cache = config.create_timing_cache(timing.read_bytes() if timing.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        return None
    return cache


def _metadata(
    trt: ModuleType, flavour: str, network: Any, model: Path, recipe: Recipe, sm: str, engine: bytes
) -> dict[str, Any]:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    types = Counter(layer.type for layer in layers)
    # Strongly typed: what a layer gives is what it computes in, whatever kernel is chosen for it.
    computes_in = Counter(_name(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)
    return {
        "schema": SCHEMA,
        "flavour": flavour,
        "version": str(trt.__version__),
        "compute_capability": sm,
        "platform": this_platform(),
        "precision": recipe.precision,
        "recipe": recipe.settings["recipe"],
        "inputs": [_tensor(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_tensor(network.get_output(i)) for i in range(network.num_outputs)],
        "layers": network.num_layers,
        "layers_by_type": dict(sorted(computes_in.items())),
        "quantize": types[trt.LayerType.QUANTIZE],
        "dequantize": types[trt.LayerType.DEQUANTIZE],
        "digests": {
            "model": digest_of(model),
            "recipe": recipe.digest,
            "engine": hashlib.sha256(engine).hexdigest(),
        },
        "bytes": len(engine),
    }


def _tensor(tensor: Any) -> dict[str, Any]:
    return {"name": str(tensor.name), "dtype": _name(tensor.dtype), "shape": [int(size) for size in tensor.shape]}


def _name(value: Any) -> str:
    return str(getattr(value, "name", value)).rpartition(".")[2].lower()


def this_platform() -> str:
    """``linux-x86_64``: engines do not travel between operating systems."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


def refusal(metadata: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Why an engine with these metadata must not be loaded where ``wanted`` is asked for; empty when it may.

    ``wanted`` holds flavour, version, compute_capability, platform, model and recipe (digests).
    """
    digests = metadata.get("digests", {})
    recipe = metadata.get("recipe", {})
    for key in ("flavour", "platform"):
        if metadata.get(key) != wanted[key]:
            return f"it was built for {metadata.get(key)}, and this is {wanted[key]}"
    have, want = str(metadata.get("version")), str(wanted["version"])
    same_major = have.partition(".")[0] == want.partition(".")[0]
    if have != want and not (recipe.get("version_compatible") and same_major):
        return f"it was built by {wanted['flavour']} {have}, and {want} is installed"
    built, here = str(metadata.get("compute_capability")), str(wanted["compute_capability"])
    if built != here and not (recipe.get("hardware_compatible") and _release(here) >= max(_release(built), (8, 0))):
        return f"it was built for compute capability {built}, and this GPU has {here}"
    for key in ("model", "recipe"):
        if digests.get(key) != wanted[key]:
            return f"it was built from another {key}"
    return ""


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def dumps(metadata: Mapping[str, Any]) -> str:
    """The metadata file's text."""
    return json.dumps(metadata, indent=1, sort_keys=True) + "\n"
