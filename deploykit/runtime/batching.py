"""Which inputs go into one batch: sorted by size, cut by a budget, so that little is padded and no batch is huge."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from deploykit.runtime.manifest import Card


@dataclass(frozen=True)
class Budget:
    """Bounds of one batch: ``cost`` (tokens, pixels or samples, padding included) and ``rows``; one input always
    fits.
    """

    cost: int
    rows: int


@dataclass(frozen=True)
class Shape:
    """How the inputs of one call are batched.

    ``chunk`` inputs are preprocessed at a time. ``pads``: inputs of different sizes may share a batch, since a mask
    marks the padding, or all are padded to the same width. ``lanes`` is how many batches run at once.
    """

    budget: Budget
    chunk: int
    pads: bool
    lanes: int


# Measured with one stream per core, CPU time of mixed-length text through MiniLM: bf16 on AMX was best at 1,024 tokens
# (512: +5 %, 2,048: +4 %), fp32, whose activations are twice as large, at 512 (1,024: +8 %, 2,048: +25 %). Images,
# seconds of sound and ready tensors are large: a few of them fill a core.
_FP32_TEXT = Budget(512, 256)
_BUDGETS = {
    "text": Budget(1024, 256),
    "image": Budget(4 * 512 * 512, 8),
    "audio": Budget(16 * 16_000, 8),
    "tensor": Budget(2**20, 32),
}
# One GPU runs one batch, which has to be large enough to fill it: these bound the memory, and no figure stands behind
# them yet. The engine's largest batch bounds the rows too.
_GPU_BUDGETS = {
    "text": Budget(16_384, 256),
    "image": Budget(64 * 512 * 512, 64),
    "audio": Budget(128 * 16_000, 64),
    "tensor": Budget(2**24, 64),
}
# Inputs that are preprocessed at a time, while earlier ones run: bounds the memory of decoded images.
_CHUNKS = {"text": 1024, "image": 32, "audio": 32, "tensor": 256}


def shape_of(
    card: Card,
    precision: str,
    lanes: int,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    *,
    gpu: bool = False,
) -> Shape:
    """The batching of ``card``'s modality, with the caller's bounds where given and the card's proven batch size.

    ``lanes`` are the cores that run a batch each; on a ``gpu`` few inputs stay together instead.
    """
    default = _FP32_TEXT if card.modality == "text" and precision == "fp32" else _BUDGETS[card.modality]
    if gpu:
        default, lanes = _GPU_BUDGETS[card.modality], 1
    proven = card.limits.axes.get("batch", (1, 2**31))[1]
    fixed = [spec.shape[0] for spec in card.inputs if isinstance(spec.shape[0], int)]
    rows = min(batch_size or (2**31 if batch_tokens else default.rows), proven, *fixed)
    cost = batch_tokens or (2**31 if batch_size else default.cost)
    one_width = card.modality == "text" and all(isinstance(spec.shape[-1], int) for spec in card.inputs)
    pads = one_width or any("mask" in spec.name for spec in card.inputs)
    return Shape(Budget(cost, rows), _CHUNKS[card.modality], pads, lanes)


def spread(costs: Sequence[int], budget: Budget, lanes: int) -> Budget:
    """A smaller budget where the inputs are too few to give each lane a batch."""
    if lanes < 2 or len(costs) < 2:
        return budget
    share = max(max(costs), math.ceil(sum(costs) / lanes))
    return Budget(min(budget.cost, share), min(budget.rows, math.ceil(len(costs) / lanes)))


def cut(costs: Sequence[int], keys: Sequence[Hashable], budget: Budget) -> list[list[int]]:
    """Indices of the inputs of each batch. Inputs of different ``keys`` never share one.

    The largest come first: what needs most memory fails at once, and the short batches at the end level out the lanes.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    batches: list[list[int]] = []
    for group in groups.values():
        group.sort(key=lambda index: -costs[index])
        start = 0
        while start < len(group):
            # Every row is padded to the first, the largest.
            fit = budget.cost // max(1, costs[group[start]])
            rows = max(1, min(fit, budget.rows))
            batches.append(group[start : start + rows])
            start += rows
    return batches
