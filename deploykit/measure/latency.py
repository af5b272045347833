"""Latency of several artefacts, interleaved, so that a slow moment of the machine hits them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.measure import fingerprint
from deploykit.measure.stats import median
from deploykit.runtime.engines import Engine, EngineOptions, open_engine
from deploykit.runtime.manifest import Card

Feeds = Mapping[str, np.ndarray]

ROUNDS, _FEWEST_ROUNDS = 12, 6
_ENOUGH_SECONDS = 10.0
"""For each subject: once so long was measured, the fewest rounds will do, which are those that have a 95 % interval."""
_BLOCK_SECONDS = 0.08
_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Subject:
    """One artefact to measure: its variant name, the engine and what to load."""

    name: str
    target: str
    path: Path
    settings: Mapping[str, Any]


def compare(subjects: Sequence[Subject], card: Card, feeds: Mapping[str, Feeds]) -> dict[str, Any]:
    """Time every subject on every named workload; all engines stay loaded, blocks are drawn in a seeded order.

    Returns per subject and workload the median call in ms with its 95 % interval over ``ROUNDS`` blocks, of slow models
    fewer (each block's value is the median of its calls), the number of blocks and calls, and the batch size, with the
    hardware id.
    """
    engines = {s.name: open_engine(s.target, s.path, card, s.settings, EngineOptions()) for s in subjects}
    blocks: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], int] = {}
    order = random.Random(0)
    try:
        points = [(subject, workload) for subject in engines for workload in feeds]
        begun = time.perf_counter()
        for done in range(ROUNDS):
            if done >= _FEWEST_ROUNDS and time.perf_counter() - begun > _ENOUGH_SECONDS * len(subjects):
                break
            for subject, workload in order.sample(points, len(points)):
                before = blocks.get((subject, workload), [0.0])[-1]
                times = _block(engines[subject], feeds[workload], warm=before < 1000 * _BLOCK_SECONDS)
                blocks.setdefault((subject, workload), []).append(median(times).value)
                calls[subject, workload] = calls.get((subject, workload), 0) + len(times)
    finally:
        for engine in engines.values():
            engine.close()
    hardware = fingerprint.machine()["id"]
    return {
        name: {
            "hardware": hardware,
            **{w: _row(blocks[name, w], calls[name, w], feeds[w]) for w in feeds},
        }
        for name in engines
    }


def _block(engine: Engine, feeds: Feeds, *, warm: bool = True) -> list[float]:
    """Milliseconds of the calls of one block, after a short warm-up: one call, where it takes as long as a block.

    Without ``warm`` there is none: a model whose calls take longer than a block is no faster for another.
    """
    end = time.perf_counter() + _BLOCK_SECONDS
    for _ in range(_WARM_UP_CALLS if warm else 0):
        engine.run(feeds)
        if time.perf_counter() >= end:
            break
    times: list[float] = []
    end = time.perf_counter() + _BLOCK_SECONDS
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        engine.run(feeds)
        times.append((time.perf_counter() - started) * 1000)
    return times


def _row(blocks: Sequence[float], calls: int, feeds: Feeds) -> dict[str, Any]:
    shape = next(iter(feeds.values())).shape
    m = median(blocks)
    figures = {key: round(value, 4) for key, value in asdict(m).items() if key != "n"}
    return {
        "p50_ms": figures["value"],
        "low_ms": figures["low"],
        "high_ms": figures["high"],
        "blocks": m.n,
        "calls": calls,
        "shape": list(shape),
    }
