"""TensorRT (10.x and 11.x) on NVIDIA GPUs: a strongly typed ONNX, and the recipe by which the device builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit.runtime.manifest import Card
from deploykit.runtime.tensorrt.flavour import TENSORRT
from deploykit.targets import Compiled, _tensorrt
from deploykit.targets._tensorrt import PRECISIONS, Options, check_engine

__all__ = ["PRECISIONS", "Options", "audit", "check_engine", "compile"]

_LOWEST = "10.0"


def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled:
    """See `deploykit.targets._tensorrt.compile`."""
    return _tensorrt.compile(TENSORRT, model, card, precision, options, out, _LOWEST)


def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]:
    """See `deploykit.targets._tensorrt.audit`."""
    return _tensorrt.audit(TENSORRT, artifact, card, settings)
