"""fp32: the portable model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def lower(model: Path, options: Options, out: Path) -> dict[str, Any]:
    """Leave the graph unchanged; nothing is written."""
    return {"unchanged": True}
