"""TensorRT for RTX on an NVIDIA GPU; the engine is built on the device and cached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit.runtime.engines import EngineOptions, _tensorrt
from deploykit.runtime.manifest import Card
from deploykit.runtime.tensorrt.flavour import RTX


def open_engine(
    path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions
) -> _tensorrt.TensorRtEngine:
    """See `deploykit.runtime.engines._tensorrt.open_engine`."""
    return _tensorrt.open_engine(RTX, path, card, settings, options)
