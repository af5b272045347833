"""The models of a bundle, checked before an engine reads one; `check_in_child` does it under limits of its own.

The settings of a variant go to its engine as they are, so they are part of the check: some would make an engine write
files, or read them from elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import Variant
from deploykit.runtime.trust import onnx_model, openvino_ir
from deploykit.runtime.trust.wire import refused, words

OWN_TARGETS: Final = ("onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "tensorrt-rtx")
# OpenVINO's properties that name no file. CACHE_DIR writes, and others load.
_OPENVINO: Final = words(
    "INFERENCE_PRECISION_HINT EXECUTION_MODE_HINT DYNAMIC_QUANTIZATION_GROUP_SIZE ACTIVATIONS_SCALE_FACTOR "
    "SNIPPETS_MODE CPU_DENORMALS_OPTIMIZATION ENABLE_CPU_PINNING ENABLE_HYPER_THREADING PERF_COUNT"
)
# Entries of onnxruntime's session configuration that name no file; some others do.
_ONNXRUNTIME_CONFIG: Final = (
    "mlas.",
    "optimization.",
    "session.disable_",
    "session.inter_op.",
    "session.intra_op.",
    "session.qdq",
    "session.set_denormal_as_zero",
)
_HINT = "do not use this bundle: deploykit writes no such setting"


@dataclass(frozen=True)
class Limits:
    """What the child may use: address space in MiB beside the files themselves, processor and wall time in seconds."""

    memory_mib: int = 1024
    seconds: int = 60


def check_model(bundle: Bundle, variant: Variant, control_flow: bool = False) -> None:
    """`BundleError` when the variant's model or settings are not what an encoder needs. Nothing is loaded.

    For engines that third parties bring, the file's form is theirs to check; the settings are too.
    """
    if variant.target in OWN_TARGETS:
        check_settings(variant)
        _check_file(bundle, variant.path, control_flow)


def check_models(bundle: Bundle, control_flow: bool = False) -> None:
    """`check_model` of every variant, the portable model among them; each file once."""
    seen = {bundle.portable.path} if bundle.manifest.portable else set()
    for path in seen:
        _check_file(bundle, path, control_flow)
    for variant in bundle.manifest.variants:
        if variant.target in OWN_TARGETS:
            check_settings(variant)
            if variant.path not in seen:
                _check_file(bundle, variant.path, control_flow)
        seen.add(variant.path)


def check_settings(variant: Variant) -> None:
    """`BundleError` for a setting that would let an engine write or read outside the bundle."""
    if variant.target == "openvino":
        for key in variant.settings:
            if key not in _OPENVINO:
                raise _setting(variant, key)
    if variant.target == "onnxruntime":
        config = variant.settings.get("config", {})
        if not isinstance(config, dict):
            raise BundleError(f"the setting 'config' of variant '{variant.name}' is no object", hint=_HINT)
        for key in config:
            if not key.startswith(_ONNXRUNTIME_CONFIG):
                raise _setting(variant, key)


def _setting(variant: Variant, key: str) -> BundleError:
    return BundleError(
        f"variant '{variant.name}' is refused: its setting '{key}' is none that a bundle may bring", hint=_HINT
    )


def _check_file(bundle: Bundle, name: str, control_flow: bool) -> None:
    path = bundle.file(name)
    if path.suffix == ".onnx":
        onnx_model.check(onnx_model.Place(bundle.root, name, bundle.manifest.files), control_flow)
    elif path.suffix == ".xml":
        openvino_ir.check(path, name, control_flow)
    else:
        raise refused(name, "is neither .onnx nor .xml")


def check_in_child(bundle: Bundle, limits: Limits | None = None, control_flow: bool = False) -> bool:
    """`check_models` in a process with limits, and onnx's own checker too where the package is installed.

    Returns whether onnx's checker ran. `BundleError` for a refusal, and for a process that died of its limits.
    """
    import subprocess

    limits = limits or Limits()
    command = [sys.executable, "-P", "-m", __name__, str(bundle.root.absolute()), str(int(control_flow))]
    command += [str(limits.memory_mib), str(limits.seconds)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.seconds,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _died(bundle, f"was still being checked after {limits.seconds} s") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise _died(bundle, f"cannot be checked within {limits.memory_mib} MiB (code {done.returncode})") from None
    if reason := answer["refused"]:
        raise BundleError(reason, hint=str(answer["hint"]))
    return bool(answer["onnx"])


def _died(bundle: Bundle, fact: str) -> BundleError:
    hint = "do not use it, or give the check more room if it is your own and very large"
    return BundleError(f"the bundle '{bundle.label}' is refused: a model {fact}", hint=hint)


def main(arguments: list[str]) -> int:
    """The child: prints one JSON line."""
    root, control_flow, memory_mib, seconds = Path(arguments[0]), arguments[1] == "1", *map(int, arguments[2:4])
    bundle = Bundle.open(root)
    # Mapped files count as address space, and onnx's checker reads a model whole beside that.
    most = (memory_mib << 20) + 3 * max((entry.size for entry in bundle.manifest.files.values()), default=0)
    _limit(most, seconds)
    answer: dict[str, Any] = {"refused": "", "hint": "", "onnx": False}
    try:
        check_models(bundle, control_flow)
        answer["onnx"] = _onnx_checker(bundle)
    except BundleError as error:
        answer |= {"refused": error.message, "hint": error.hint}
    except MemoryError:
        answer |= {"refused": f"the models cannot be checked within {most >> 20} MiB", "hint": "do not use this bundle"}
    sys.stdout.write(json.dumps(answer))
    return 0


def _limit(address_bytes: int, seconds: int) -> None:
    try:
        import resource
    except ModuleNotFoundError:  # not on Windows: the time limit of the parent holds there
        return
    resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _onnx_checker(bundle: Bundle) -> bool:
    try:
        from onnx import checker
    except ImportError:
        return False
    own = {v.path for v in bundle.manifest.variants if v.target in OWN_TARGETS and v.path.endswith(".onnx")}
    for name in sorted({*([bundle.portable.path] if bundle.manifest.portable else []), *own}):
        try:
            checker.check_model(str(bundle.root / name))
        except Exception as error:  # onnx raises its own errors, protobuf's and plain ones
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise refused(name, f"does not pass onnx's checker: {first[:300]}") from error
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
