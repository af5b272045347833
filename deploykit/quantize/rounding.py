"""Chooses scales: an activation's range and a weight's grid that change the product least on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.quantize.products import Product, as_matrix, from_matrix
from deploykit.quantize.qdq import FLOAT8_MAX, Range, Scheme, Stored, float8, quantize_array, range_of

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_WEIGHT_CLIPS = np.linspace(1.0, 0.6, 21)
_ROWS = 512
# Share of the mean diagonal that is added to the second moments, so that channels that hardly vary can be divided by.
_DAMPING = 0.01
_BLOCK = 128
# A range with so many times the lowest error clips too much already; no smaller one is better.
_LOST = 2.0


@dataclass(frozen=True)
class Searched:
    """An activation's range and the mean squared error that quantizing it adds to the products, relative to theirs."""

    range: Range
    error: float


def search_range(
    rows: np.ndarray,
    low: float,
    high: float,
    weight: np.ndarray | None,
    scheme: Scheme,
    clips: Sequence[float] = CLIPS,
) -> Searched:
    """The range inside [low, high] that changes ``rows @ weight.T`` least; without a weight, ``rows`` itself.

    ``rows`` float32 [n, in], ``weight`` float32 [out, in]; ``clips`` are the shares of low and high that are tried.
    """
    rows = _spread(rows, _ROWS if weight is not None else 1 << 17)
    energy = _energy_in(weight)
    reference = energy(rows) or 1.0

    def error(at: Range) -> float:
        return energy(quantize_array(rows, at, scheme) - rows) / reference

    if scheme.symmetric:
        return _lowest((range_of(low * clip, high * clip, scheme) for clip in clips), error)
    above = min(clips, key=lambda clip: error(range_of(low, high * clip, scheme)))
    below = min(clips, key=lambda clip: error(range_of(low * clip, high * above, scheme)))
    best = range_of(low * below, high * above, scheme)
    return Searched(best, error(best))


def _energy_in(weight: np.ndarray | None) -> Callable[[np.ndarray], float]:
    """A function from changes of an activation [n, in] to the squares that they add up to in its products."""
    if weight is None:
        return lambda changed: float(np.square(changed, dtype=np.float64).sum())
    out, into = weight.shape
    if into < out:  # |W x|^2 = x^T (W^T W) x takes fewer multiplications
        square = weight.T @ weight
        return lambda changed: float(np.vdot(changed @ square, changed))

    def energy(changed: np.ndarray) -> float:
        made = changed @ weight.T
        return float(np.vdot(made, made))

    return energy


def _lowest(ranges: Iterable[Range], error: Callable[[Range], float]) -> Searched:
    """The range with the lowest error, of ranges that become smaller; what is clipped only becomes more."""
    best: Searched | None = None
    for at in ranges:
        found = Searched(at, error(at))
        if best is None or found.error < best.error:
            best = found
        elif found.error > _LOST * best.error:
            break
    assert best is not None
    return best


def round_weight(product: Product, array: np.ndarray, moments: np.ndarray | None, scheme: Scheme) -> Stored:
    """A weight on the scheme's grid, rounded to nearest, each output channel clipped where that costs least.

    ``moments`` [in] are the inputs' mean squares, by which an error on each counts; None counts all alike.
    """
    matrix = as_matrix(product, array)
    values, scale = _clipped(matrix, moments, scheme)
    return Stored(from_matrix(product, values), scale, product.axis)


def _clipped(matrix: np.ndarray, moments: np.ndarray | None, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    limit = scheme.weight_limit
    largest = np.maximum(np.abs(matrix).max(1), np.finfo(np.float32).tiny * limit)
    best = np.full(len(matrix), np.inf)
    scale = (largest / limit).astype(np.float32)
    if scheme.activation != "float8e4m3fn":
        for clip in _WEIGHT_CLIPS:
            tried = (largest * clip / limit).astype(np.float32)
            off = np.square(_on_grid(matrix, tried, limit) * tried[:, None] - matrix)
            error = off.sum(1) if moments is None else off @ moments
            scale = np.where(error < best, tried, scale)
            best = np.minimum(error, best)
        return _on_grid(matrix, scale, limit).astype(np.int8), scale
    stored = np.clip(matrix / scale[:, None], -FLOAT8_MAX, FLOAT8_MAX).astype(float8())
    return stored, scale


def _on_grid(matrix: np.ndarray, scale: np.ndarray, limit: float) -> np.ndarray:
    return np.asarray(np.clip(np.rint(matrix / scale[:, None]), -limit, limit))


def compensate(product: Product, array: np.ndarray, stored: Stored, rows: np.ndarray, scheme: Scheme) -> Stored:
    """Round column after column, each column's error made up for by those to come (GPTQ, arXiv:2210.17323).

    ``rows`` float32 [n, in] are the inputs as quantized. Keeps the scales of ``stored``.
    """
    matrix = as_matrix(product, array).astype(np.float64)
    scale, limit = stored.scale.astype(np.float64), scheme.weight_limit
    hessian = rows.T.astype(np.float64) @ rows.astype(np.float64) / len(rows)
    hessian[np.diag_indices_from(hessian)] += _DAMPING * max(float(np.diag(hessian).mean()), 1e-12)
    order = np.argsort(-np.diag(hessian))
    matrix, hessian = matrix[:, order], hessian[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    columns = matrix.shape[1]
    values = np.empty(matrix.shape, np.int8)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.empty((len(matrix), end - start))
        for i in range(start, end):
            rounded = np.clip(np.rint(matrix[:, i] / scale), -limit, limit)
            values[:, order[i]] = rounded
            errors[:, i - start] = (matrix[:, i] - rounded * scale) / upper[i, i]
            matrix[:, i + 1 : end] -= np.outer(errors[:, i - start], upper[i, i + 1 : end])
        matrix[:, end:] -= errors @ upper[start:end, end:]
    return Stored(from_matrix(product, values), stored.scale, stored.axis)


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """About ``count`` of the rows, evenly over all inputs."""
    return rows[:: max(1, len(rows) // count)]
