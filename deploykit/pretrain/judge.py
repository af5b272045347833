"""What an encoder is worth: probes on held-out data, beside the same encoder untrained and the raw input.

Importing this module imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.pretrain import probe
from deploykit.pretrain.inputs import Held
from deploykit.pretrain.recipe import ProbeSection

_BATCH = 256


@dataclass(frozen=True)
class Judge:
    """``bank`` is what probes learn from, ``query`` what they are asked; ``test`` comes once, at the end."""

    adapter: Any
    bank: Held
    query: Held
    test: Held | None
    options: ProbeSection

    def figures(self, encoder: nn.Module | None) -> dict[str, Any]:
        """Accuracies in percent on the held-out part, their count, and the effective rank; None: the raw input."""
        bank, query = self._vectors(encoder, self.bank), self._vectors(encoder, self.query)
        rank = probe.effective_rank(query if len(query) >= len(bank) else bank[:2000])
        found: dict[str, Any] = {"effective_rank": round(rank, 2), "dim": bank.shape[1]}
        if encoder is not None:
            found["collapsed"] = rank < self.options.rank_alarm
        return found | self._accuracies(bank, query, self.query)

    def final(self, encoder: nn.Module | None) -> dict[str, Any]:
        """As `figures`, on the test data; empty where there are none."""
        if self.test is None:
            return {}
        found: dict[str, Any] = {}
        vectors = self._vectors(encoder, self.test)
        if self.test.pairs:
            found |= {"spearman": round(100 * probe.spearman(vectors, self.test.pairs), 2), "n": len(self.test.pairs)}
        return found | self._accuracies(self._vectors(encoder, self.bank), vectors, self.test)

    def _accuracies(self, bank: Tensor, query: Tensor, asked: Held) -> dict[str, Any]:
        if self.bank.labels is None or asked.labels is None:
            return {}
        near = probe.knn(bank, self.bank.labels, query, self.options.neighbours)
        plane = probe.linear(bank, self.bank.labels, query, self.options.ridge)
        return {"knn": _percent(near, asked.labels), "linear": _percent(plane, asked.labels), "n": len(query)}

    @torch.no_grad()
    def _vectors(self, encoder: nn.Module | None, held: Held) -> Tensor:
        """Embeddings float32 on the CPU; the encoder is left in evaluation mode."""
        if encoder is None:
            return torch.cat([self.adapter.raw(rows) for rows in _batches(held)]).float()
        encoder.eval()
        device = next(encoder.parameters()).device
        found = []
        for rows in _batches(held):
            given = self.adapter.clean(tuple(t.to(device) for t in rows))
            found.append(encoder(given).float().cpu())
        return torch.cat(found)


def _batches(held: Held) -> list[tuple[Tensor, ...]]:
    return list(zip(*(torch.split(t, _BATCH) for t in held.tensors), strict=True))


def _percent(answers: Tensor, truth: Tensor) -> float:
    return round(100 * float((answers == truth).float().mean()), 2)
