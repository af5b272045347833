"""How much memory this process can still have, and how much a variant will need at the least."""

from __future__ import annotations

import os
from pathlib import Path

from deploykit.runtime import hardware

_MEMINFO = Path("/proc/meminfo")
# What an engine's own libraries take once a small model is open: 50 to 60 MiB for onnxruntime, twice that for openvino.
_ENGINE_BYTES = 48 << 20


def least_needed(model_bytes: int) -> int:
    """Bytes below which a model of that size cannot be opened: its weights once, and the engine.

    Real needs are up to three times that; it is the bound below which trying would only get this process killed.
    """
    return model_bytes + _ENGINE_BYTES


def available(meminfo: Path = _MEMINFO, groups: list[tuple[int, Path]] | None = None) -> int | None:
    """Bytes that this process can still get, swap included: what the system has, cut by the limits of its control
    groups. None where neither is known.
    """
    found = [_system(meminfo)]
    for kind, folder in hardware.control_groups("memory") if groups is None else groups:
        found.append(_group(folder, *(_V2 if kind == 2 else _V1)))
    return min((value for value in found if value is not None), default=None)


def _system(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _physical()
    sizes = {line.partition(":")[0]: line.split()[1:2] for line in lines}
    values = [sizes[key][0] for key in ("MemAvailable", "SwapFree") if sizes.get(key)]
    if "MemAvailable" not in sizes or not all(value.isdigit() for value in values):
        return None
    return sum(int(value) << 10 for value in values)


def _physical() -> int | None:
    """All the memory there is, where the system (macOS) does not say what is free in a file."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


# File names of a control group: its limit, its use, and the counter in memory.stat of what can be dropped at once.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _group(folder: Path, limit: str, use: str, droppable: str) -> int | None:
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        used = int((folder / use).read_text(encoding="ascii"))
        if most == "max":
            return None
        cached = 0
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            cached = int(value) if key == droppable else cached
        return max(0, int(most) - used + cached)
    except (OSError, ValueError):
        return None
