"""What an encoder is worth: probes on held-out data, beside the same encoder untrained and the raw input.

Importing this module imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.pretrain import arithmetic, probe
from deploykit.pretrain.inputs import Held
from deploykit.pretrain.recipe import ProbeSection

_BATCH = 256
_RANKED = 2000
"""Vectors at most of which the effective rank is taken, at equal distances: data often lie sorted by class."""


@dataclass(frozen=True)
class _Bank:
    """What one encoder makes of the probe's data: encoded and solved once, asked as often as there are sets."""

    vectors: Tensor
    plane: probe.Plane | None


@dataclass(frozen=True)
class Judge:
    """``bank`` is what probes learn from, ``query`` what they are asked; ``test`` comes once, at the end."""

    adapter: Any
    bank: Held
    query: Held
    test: Held | None
    options: ProbeSection

    def figures(self, encoder: nn.Module | None) -> dict[str, Any]:
        """Accuracies in percent, or the correlation x 100 with scored pairs, on the held-out part; None: the raw input.

        Their count and the effective rank beside them.
        """
        return self._held_out(encoder, self._bank(encoder))

    def final(self, encoder: nn.Module | None) -> dict[str, dict[str, Any]]:
        """As `figures` under ``held_out``, and the same on the test data, which is empty where there are none."""
        bank = self._bank(encoder)
        return {"held_out": self._held_out(encoder, bank), "test": self._test(encoder, bank)}

    def _held_out(self, encoder: nn.Module | None, bank: _Bank) -> dict[str, Any]:
        query = self._vectors(encoder, self.query)
        rank = probe.effective_rank(query if len(query) >= len(bank.vectors) else _spread(bank.vectors))
        found: dict[str, Any] = {"effective_rank": round(rank, 2), "dim": query.shape[1]}
        if encoder is not None:
            found["collapsed"] = rank < self.options.rank_alarm
        return found | _correlation(query, self.query) | self._accuracies(bank, query, self.query)

    def _test(self, encoder: nn.Module | None, bank: _Bank) -> dict[str, Any]:
        if self.test is None:
            return {}
        vectors = self._vectors(encoder, self.test)
        return _correlation(vectors, self.test) | self._accuracies(bank, vectors, self.test)

    def _bank(self, encoder: nn.Module | None) -> _Bank:
        vectors, labels = self._vectors(encoder, self.bank), self.bank.labels
        return _Bank(vectors, None if labels is None else probe.linear(vectors, labels, self.options.ridges))

    def _accuracies(self, bank: _Bank, query: Tensor, asked: Held) -> dict[str, Any]:
        if self.bank.labels is None or bank.plane is None or asked.labels is None:
            return {}
        near = probe.knn(bank.vectors, self.bank.labels, query, self.options.neighbours)
        accuracies = {"knn": _percent(near, asked.labels), "linear": _percent(bank.plane.classes(query), asked.labels)}
        return accuracies | {"ridge": bank.plane.ridge, "n": len(query)}

    @torch.no_grad()
    def _vectors(self, encoder: nn.Module | None, held: Held) -> Tensor:
        """Embeddings float32 on the CPU; the encoder is left in evaluation mode."""
        if encoder is None:
            return torch.cat([self.adapter.raw(rows) for rows in _batches(held)]).float()
        encoder.eval()
        device = next(encoder.parameters()).device
        lowered = arithmetic.uses_bf16(self.options.precision, device)
        found = []
        for rows in _batches(held):
            given = self.adapter.clean(tuple(t.to(device) for t in rows))
            given = given._replace(values=arithmetic.laid_out(given.values, encoder))
            with torch.autocast(device.type, torch.bfloat16, enabled=lowered):
                found.append(encoder(given).float().cpu())
        return torch.cat(found)


def _spread(vectors: Tensor) -> Tensor:
    """Enough of them for an effective rank."""
    count = len(vectors)
    return vectors[torch.linspace(0, count - 1, min(count, _RANKED), dtype=torch.float64).round().long()]


def _batches(held: Held) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(t, _BATCH) for t in held.tensors), strict=True))


def _correlation(vectors: Tensor, held: Held) -> dict[str, Any]:
    """Spearman's rank correlation x 100 where there are scored pairs."""
    if not held.pairs:
        return {}
    return {"spearman": round(100 * probe.spearman(vectors, held.pairs), 2), "n": len(held.pairs)}


def _percent(answers: Tensor, truth: Tensor) -> float:
    return round(100 * float((answers == truth).float().mean()), 2)
