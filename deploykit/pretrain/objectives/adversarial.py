"""A small generator fills hidden elements; the encoder tells for each element whether it is real.

ELECTRA, Clark et al. 2020, arXiv:2003.10555. The generator of tokens is trained by likelihood, not to deceive, as
there: no gradient flows through a drawn token. The generator of patches is trained by squared error and, with the
weight ``deceive``, to pass for real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import RecipeError
from deploykit.pretrain import distributed
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Space, choose_hidden
from deploykit.pretrain.encoders import transformer


@dataclass(frozen=True)
class Options:
    """``share`` of hidden elements; sizes of the generator; weights of the encoder's loss and of deceiving it."""

    share: float = 0.25
    width: int = 64
    depth: int = 2
    heads: int = 2
    weight: float = 20.0
    deceive: float = 0.1


class Adversarial(nn.Module):
    """Generator, encoder and the head that tells real from generated."""

    def __init__(self, space: Space, encoder: Any, options: Options) -> None:
        super().__init__()
        self.space, self.encoder, self.options = space, encoder, options
        sizes = transformer.Options(width=options.width, depth=options.depth, heads=options.heads)
        self.generator = transformer.Encoder(space, sizes)
        self.fill = nn.Linear(options.width, space.outputs)
        self.tell = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.GELU(), nn.Linear(encoder.dim, 1))

    def forward(self, views: list[Input], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Generator's loss plus the weighted loss of telling; ``told`` is the mean of both kinds' accuracies."""
        elements, valid = self.space.split(views[0]), views[0].valid
        hidden = choose_hidden(self.space, elements, valid, self.options.share, draws)
        prediction = self.fill(self.generator.tokens(self.space.hide(elements, hidden, draws), valid))
        generating = distributed.mean(self.space.score(prediction, elements, normalized=False), hidden.float())
        filled = self.space.fill(prediction, draws)
        place = hidden if elements.ndim == 2 else hidden.unsqueeze(-1)
        mixed = torch.where(place, filled.detach().to(elements.dtype), elements)
        false = hidden & ~self.space.equal(mixed, elements)
        counted = torch.ones_like(hidden) if valid is None else valid.bool()
        scores = self.tell(self.encoder.tokens(mixed, valid)).squeeze(-1).float()
        telling = distributed.mean(F.binary_cross_entropy_with_logits(scores, false.float(), reduction="none"), counted)
        loss = generating + self.options.weight * telling
        parts = {"generating": generating, "telling": telling, "told": _told(scores, false, counted)}
        if self.space.differentiable and self.options.deceive:
            deceiving = self._deceive(elements, filled, place, hidden, valid)
            loss, parts["deceiving"] = loss + self.options.deceive * deceiving, deceiving
        return loss, parts

    def _deceive(self, elements: Tensor, filled: Tensor, place: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """How far generated elements are from being called real; gradients reach the generator alone."""
        weights = {f"encoder.{k}": v.detach() for k, v in self.encoder.named_parameters()}
        weights |= {f"tell.{k}": v.detach() for k, v in self.tell.named_parameters()}
        frozen = _Teller(self.encoder, self.tell)
        mixed = torch.where(place, filled.to(elements.dtype), elements)
        scores = torch.func.functional_call(frozen, weights, (mixed, valid)).float()
        return distributed.mean(F.softplus(scores), hidden.float())


class _Teller(nn.Module):
    def __init__(self, encoder: Any, tell: nn.Module) -> None:
        super().__init__()
        self.encoder, self.tell = encoder, tell

    def forward(self, elements: Tensor, valid: Tensor | None) -> Tensor:
        scores: Tensor = self.tell(self.encoder.tokens(elements, valid)).squeeze(-1)
        return scores


@torch.no_grad()
def _told(scores: Tensor, false: Tensor, counted: Tensor) -> Tensor:
    """Balanced accuracy: always saying "real" gives one half, however few elements are generated."""
    right = ((scores > 0) == false).float()
    return (distributed.mean(right, false & counted) + distributed.mean(right, ~false & counted)) / 2


def views(options: Options) -> int:
    """The input as it is."""
    return 0


def build(space: Space, encoder: Any, options: Options) -> Adversarial:
    """The objective around an encoder that has ``tokens``; `RecipeError` for another."""
    if not hasattr(encoder, "tokens"):
        raise RecipeError("adversarial needs an encoder of elements", hint='set encoder.name = "transformer"')
    if not 0 < options.share < 1:
        raise RecipeError(f"adversarial hides a share of {options.share}", hint="give 0.25")
    return Adversarial(space, encoder, options)
