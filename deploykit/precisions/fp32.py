"""fp32: the portable model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.graph.prove import Tolerance
from deploykit.precisions import Task

# Torch and the engines differ by the order of their sums alone.
TOLERANCE = Tolerance(cosine=0.99999, relative_error=2e-3)

FORMS: dict[str, str] = {}
CALIBRATED = False


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def lower(task: Task, options: Options, out: Path) -> dict[str, Any]:
    """Leave the graph unchanged; nothing is written."""
    return {"unchanged": True}
