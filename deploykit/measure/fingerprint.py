"""What machine and what software a figure was measured on."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
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


def machine() -> dict[str, Any]:
    """CPU model, features that decide speed, usable cores, memory, system, and ``id``: eight hex digits of all that."""
    return hardware.machine()


def software() -> dict[str, str]:
    """Versions of Python and of the packages that decide speed and numerics, as far as they are installed."""
    installed = {d.name.lower(): d.version for d in distributions() if d.name}
    return {"python": sys.version.split()[0], **{name: installed[name] for name in _PACKAGES if name in installed}}
