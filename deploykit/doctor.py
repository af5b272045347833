"""What this machine and installation offer: Python, packages, CPU, engines that really load, folders, telemetry."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from deploykit.runtime import archive, engines, hardware

PACKAGES = (
    *("deploykit", "numpy", "typer", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tokenizers", "pillow"),
    *("soundfile", "pyarrow", "torch", "onnx", "onnxscript", "transformers", "sentence-transformers", "timm"),
)
# The CPU features that decide which low-precision arithmetic is fast.
FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_PROBE_TIMEOUT_S = 60
_PROBE = """
import importlib, json, sys
name = sys.argv[1]
module = importlib.import_module(name.removesuffix("-cuda").replace("-", "_"))
if name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in module.get_available_providers():
    raise ModuleNotFoundError("No module named 'onnxruntime_cuda'")
facts = {"version": getattr(module, "__version__", "")}
if name == "onnxruntime":
    facts["providers"] = module.get_available_providers()
if name == "openvino":
    facts["devices"] = module.Core().available_devices
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class EngineState:
    """Whether an engine loads here. ``state``: ``loads``, ``not installed``, or ``broken``; ``detail`` says more."""

    name: str
    state: str
    detail: str


@dataclass(frozen=True)
class Folder:
    """A folder that deploykit writes to, and the bytes in it."""

    role: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Findings:
    """What was found. ``packages`` maps a name to its version, None where it is not installed."""

    python: str
    system: str
    packages: dict[str, str | None]
    cpu: str
    architecture: str
    features: tuple[str, ...]
    cores: int
    engines: tuple[EngineState, ...]
    folders: tuple[Folder, ...]
    telemetry: dict[str, str]

    @property
    def usable(self) -> bool:
        """Does at least one engine load?"""
        return any(engine.state == "loads" for engine in self.engines)


def examine() -> Findings:
    """Look at everything; each engine is imported in a process of its own, so that a crash is only reported."""
    from deploykit.pipeline.store import default_root

    cpu = hardware.cpu()
    folders = {"store": default_root(), "unpacked bundles": archive.cache_folder() / "bundles"}
    return Findings(
        python=sys.version.split()[0],
        system=f"{os.uname().sysname} {os.uname().release}",
        packages={name: _version(name) for name in PACKAGES},
        cpu=cpu.model,
        architecture=cpu.architecture,
        features=tuple(name for name in FEATURES if name in cpu.features),
        cores=hardware.usable_cores(),
        engines=tuple(probe(name) for name in engines.names()),
        folders=tuple(Folder(role, str(path), _bytes_below(path)) for role, path in folders.items()),
        telemetry=_telemetry(),
    )


def probe(name: str) -> EngineState:
    """Import engine ``name`` in a child process and ask it for its version."""
    command = [sys.executable, "-c", _PROBE, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return EngineState(name, "broken", f"its import did not end within {_PROBE_TIMEOUT_S} s")
    if done.returncode < 0:
        return EngineState(name, "broken", f"its import crashed with {signal.Signals(-done.returncode).name}")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode != 0:
        missing = last == f"ModuleNotFoundError: No module named '{name.replace('-', '_')}'"
        return EngineState(name, "not installed" if missing else "broken", "" if missing else last)
    facts = json.loads(done.stdout.splitlines()[-1])
    more = ", ".join(facts.get("providers") or facts.get("devices") or ())
    return EngineState(name, "loads", facts["version"] + (f" ({more})" if more else ""))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(root, name)).st_size
            except OSError:  # another run has just removed it
                continue
    return total


def _telemetry() -> dict[str, str]:
    """What could send something home, and its state. deploykit itself sends nothing."""
    states = {"deploykit": "sends nothing", "onnxruntime": "switched off whenever deploykit opens it"}
    installed = _version("openvino-telemetry") is not None
    here = "is installed: only OpenVINO's converter uses it" if installed else "is not installed"
    states["openvino"] = f"its telemetry package {here}; deploykit does not call it"
    off = any(os.environ.get(name) for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE"))
    states["huggingface_hub"] = "switched off" if off else "on in this process, off in those that deploykit starts"
    return states
