"""Preprocess several inputs at once, in threads: Pillow, numpy and file reads free the interpreter while they work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

MAX_WORKERS = 8


def map_threads(function: Callable[[Any, int], T], inputs: Sequence[Any]) -> list[T]:
    """``function(input, index)`` of every input, in order; the error of the first input that fails is raised."""
    workers = min(len(inputs), MAX_WORKERS, _cores())
    if workers <= 1:
        return [function(value, index) for index, value in enumerate(inputs)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, inputs, range(len(inputs))))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
