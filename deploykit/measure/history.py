"""How figures go over time: one line per run in a file per hardware id, and where a series changed its level.

A folder of histories holds ``HARDWARE.jsonl``; figures of different machines are never compared. A line is JSON of the
schema ``deploykit.bench-history/1``: when, which bundle and software, and for every subject (by the bundle's label and
its own name) and point the p50 and the items per second.

A **change point** is found with Pettitt's test (A. N. Pettitt, A non-parametric approach to the change-point problem,
Applied Statistics 28, 1979): U(t) counts by how much the values up to t lie below or above the later ones, the largest
\\|U\\| is the place, and p is about 2 exp(-6 U² / (n³ + n²)). It is taken where p <= 0.05 and the medians on both sides
differ by `LEAST_CHANGE`; then both sides are searched in the same way. Only ranks count, so that one wild run is no
change, and about 6 runs on either side are needed before anything can be found. It is a hint of where to look and
decides nothing: for that there is the gate.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, MissingError
from deploykit.output import write_text

SCHEMA = "deploykit.bench-history/1"
SUFFIX = ".jsonl"
LEAST_CHANGE = 0.03
_P = 0.05
_HARDWARE = re.compile(r"[0-9a-f]{4,64}")
METRICS = ("p50_ms", "items_per_s")


@dataclass(frozen=True)
class Change:
    """A series changed its level with run ``at`` (counted from 0): medians of the runs before and from there on."""

    at: int
    before: float
    after: float
    p: float

    @property
    def ratio(self) -> float:
        """After divided by before."""
        return self.after / self.before


@dataclass(frozen=True)
class Trend:
    """One metric of one subject at one point on one machine, run by run, and its change points."""

    hardware: str
    subject: str
    point: str
    metric: str
    when: tuple[str, ...]
    values: tuple[float, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class History:
    """Every trend of a folder. ``damaged`` names lines that could not be read: file and number."""

    trends: tuple[Trend, ...]
    runs: int
    damaged: tuple[str, ...]


def line_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result leaves in the history."""
    series = {
        f"{_full_name(row)} {measured['point']}": {
            "p50_ms": measured["p50_ms"]["value"],
            "low_ms": measured["p50_ms"]["low"],
            "high_ms": measured["p50_ms"]["high"],
            "n": measured["p50_ms"]["n"],
            "items_per_s": measured["items_per_s"]["value"],
        }
        for row in result["subjects"]
        for measured in row["measurements"]
    }
    return {
        "schema": SCHEMA,
        "created": result["created"],
        "hardware": result["hardware"]["id"],
        "threads": result["options"]["threads"],
        "data": result["data"]["name"],
        "bundles": {bundle["label"]: bundle["digest"] for bundle in result["bundles"]},
        "software": dict(result["software"]),
        "warnings": len(result["noise"]["warnings"]),
        "series": series,
    }


def check_folder(folder: Path) -> None:
    """Refuse a history that could not be written, before minutes of measuring are done for nothing."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the history '{folder}' is a file", hint="name a folder: it holds a file per machine")
    standing = folder if folder.exists() else folder.parent
    if not standing.is_dir():
        raise InputError(f"there is no folder '{standing}' to make '{folder.name}' in", hint="create it first")
    if not os.access(standing, os.W_OK):
        raise MissingError(f"the folder '{standing}' cannot be written", hint="choose another folder")


def append(result: Mapping[str, Any], folder: Path) -> Path:
    """Add the line of ``result`` to its machine's file below ``folder``, which is made where it is missing.

    The file is replaced in one rename while the folder is locked: a killed run adds nothing, two runs add both lines.
    """
    check_folder(folder)
    folder.mkdir(exist_ok=True)
    line = line_of(result)
    path = folder / f"{line['hardware']}{SUFFIX}"
    with _locked(folder):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        write_text(path, text + json.dumps(line, sort_keys=True) + "\n")
    return path


def read(folder: Path) -> History:
    """Every trend below ``folder``, in the order of time; `InputError` when there is no history."""
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'", hint="make one with `deploykit bench … --append FOLDER`")
    files = sorted(path for path in folder.glob(f"*{SUFFIX}") if _HARDWARE.fullmatch(path.stem))
    found: list[Trend] = []
    damaged: list[str] = []
    runs = 0
    for path in files:
        lines = []
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            line = _parsed(text)
            if line is None:
                damaged.append(f"{path.name}:{number}")
            else:
                lines.append(line)
        lines.sort(key=lambda line: str(line["created"]))
        runs += len(lines)
        found += _trends(path.stem, lines)
    if not runs:
        raise InputError(f"'{folder}' holds no history", hint="make one with `deploykit bench … --append FOLDER`")
    return History(tuple(found), runs, tuple(damaged))


def changes(values: Sequence[float]) -> tuple[Change, ...]:
    """The change points of a series (see the module), in order."""
    places = sorted(_split(values, 0, len(values)))
    ends = [0, *(at for at, _ in places), len(values)]
    found = []
    for index, (at, p) in enumerate(places, start=1):
        before, after = values[ends[index - 1] : at], values[at : ends[index + 1]]
        found.append(Change(at, statistics.median(before), statistics.median(after), p))
    return tuple(found)


def _split(values: Sequence[float], start: int, end: int) -> Iterator[tuple[int, float]]:
    part = values[start:end]
    n = len(part)
    if n < 2:
        return
    # U(t+1) = U(t) + sum over j of sign(x_t - x_j).
    total, best, at = 0, 0, 0
    for t, value in enumerate(part[:-1]):
        total += sum((value > other) - (value < other) for other in part)
        if abs(total) > best:
            best, at = abs(total), t + 1
    p = min(1.0, 2 * math.exp(-6 * best**2 / (n**3 + n**2)))
    if p > _P:
        return
    before, after = statistics.median(part[:at]), statistics.median(part[at:])
    if abs(math.log(after / before)) < math.log1p(LEAST_CHANGE):
        return
    yield start + at, p
    yield from _split(values, start, start + at)
    yield from _split(values, start + at, end)


def _trends(hardware: str, lines: Sequence[Mapping[str, Any]]) -> list[Trend]:
    """The series of one machine. Another number of threads or other data is another series."""
    found: dict[tuple[str, str, str], list[tuple[str, float]]] = {}
    for line in lines:
        setting = f"{line.get('threads')} threads, {line.get('data')}"
        for name, figures in line["series"].items():
            subject, _, point = name.rpartition(" ")
            for metric in METRICS:
                value = figures.get(metric)
                if isinstance(value, (int, float)) and value > 0:
                    key = (subject, f"{point}, {setting}", metric)
                    found.setdefault(key, []).append((str(line["created"]), float(value)))
    trends = []
    for (subject, point, metric), pairs in found.items():
        values = tuple(value for _, value in pairs)
        trends.append(Trend(hardware, subject, point, metric, tuple(w for w, _ in pairs), values, changes(values)))
    return trends


def _full_name(row: Mapping[str, Any]) -> str:
    """With the bundle's label: a folder may hold the histories of several."""
    prefix = f"{row['bundle']}@"
    name = str(row["name"])
    return name if name.startswith(prefix) else prefix + name


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("schema") != SCHEMA or "created" not in line:
        return None
    series = line.get("series")
    if not isinstance(series, dict) or not all(isinstance(figures, dict) for figures in series.values()):
        return None
    return line


class _locked:
    """Holds the folder for this process alone: others wait."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        import fcntl

        self._handle = os.open(self._folder, os.O_RDONLY)
        fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)
