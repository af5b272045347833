"""Which inputs of a data set to calibrate on: few, yet from everywhere in it, and the same ones every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_POOL = 4


def evenly(count: int, total: int) -> list[int]:
    """``count`` places (or as many as there are) at even distances from 0 to ``total`` - 1, both included."""
    if count >= total:
        return list(range(total))
    if count == 1:
        return [total // 2]
    return sorted({round(i * (total - 1) / (count - 1)) for i in range(count)})


def across_sizes(sizes: Sequence[int], count: int) -> list[int]:
    """Places of ``count`` inputs at even distances in the order of their sizes, ascending.

    Short and long inputs enter as often as they are in the data, the shortest and the longest among them.
    """
    order = sorted(range(len(sizes)), key=lambda place: (sizes[place], place))
    return sorted(order[i] for i in evenly(count, len(order)))


def farthest(vectors: np.ndarray, count: int) -> list[int]:
    """Places of ``count`` rows of ``vectors`` [n, dim], each one farthest from those taken before (Gonzalez 1985).

    Starts at the row nearest to the mean. Distances are Euclidean.
    """
    rows = vectors.astype(np.float64)
    chosen = [int(np.argmin(np.linalg.norm(rows - rows.mean(axis=0), axis=1)))]
    nearest = np.linalg.norm(rows - rows[chosen[0]], axis=1)
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return sorted(chosen)


def choose(sizes: Sequence[int], count: int, embed: Callable[[Sequence[int]], np.ndarray]) -> tuple[list[int], str]:
    """Places of ``count`` inputs, and how they were chosen.

    Where sizes differ they decide. Where all are of one size (images), vectors do: ``embed`` gives those of the places
    that it is asked for.
    """
    if count >= len(sizes):
        return list(range(len(sizes))), "all"
    if len(set(sizes)) > 1:
        return across_sizes(sizes, count), "evenly over the sizes"
    pool = evenly(_POOL * count, len(sizes))
    return [pool[i] for i in farthest(embed(pool), count)], "farthest apart by their vectors"
