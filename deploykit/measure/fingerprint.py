"""What machine and what software a figure was measured on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from deploykit.runtime import hardware

_PACKAGES = (
    "deploykit",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tokenizers",
    "torch",
    "transformers",
)


# The instruction sets that decide which kernels the engines pick, on x86 and ARM.
_DECISIVE = ("amx", "avx", "fma", "f16c", "asimd", "bf16", "fphp", "i8mm", "neon", "sve")


def machine() -> dict[str, Any]:
    """CPU model, features that decide speed, usable cores, memory, system, and ``id``: eight hex digits of all that."""
    facts: dict[str, Any] = {
        "cpu": hardware.cpu_model(),
        "architecture": platform.machine(),
        "features": sorted(f for f in hardware.cpu_features() if f.startswith(_DECISIVE)),
        "cores": hardware.usable_cores(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "system": platform.system(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"id": digest[:8], **facts}


def software() -> dict[str, str]:
    """Versions of Python and of the packages that decide speed and numerics, as far as they are installed."""
    installed = {d.name.lower(): d.version for d in distributions() if d.name}
    return {"python": sys.version.split()[0], **{name: installed[name] for name in _PACKAGES if name in installed}}


def _memory_bytes() -> int:
    if Path("/proc/meminfo").exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0
