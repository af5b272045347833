"""Predict the hidden elements of an input from the others, or each next one from those before it.

Where elements can be dropped (patches): the masked autoencoder, He et al. 2022, arXiv:2111.06377: the encoder sees the
visible ones alone, a small decoder fills the gaps. Where they cannot (tokens): BERT, arXiv:1810.04805: hidden ones are
blanked. ``next``: each element from those before it, for a causal encoder.
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
from deploykit.pretrain.elements import Input, Patches, Space, Tokens, choose_hidden
from deploykit.pretrain.encoders import transformer


@dataclass(frozen=True)
class Options:
    """``share`` of the elements to hide; 0: 0.75 of patches, 0.15 of tokens. ``width``, ``depth`` of the decoder.

    ``next`` predicts the next element instead; ``normalized``: patches are predicted at mean 0 and variance 1, which
    suits photographs and not what is mostly empty: there the noise becomes the target. ``augmented``: the input is one
    view of the sample, as in the paper, and not the sample as it is. ``pooled``: the weight of predicting each hidden
    token from the embedding too, which so learns what the whole text is about, and not its tokens alone.
    """

    share: float = 0.0
    next: bool = False
    normalized: bool = True
    augmented: bool = False
    pooled: float = 0.0
    width: int = 96
    depth: int = 2


class Dropped(nn.Module):
    """The masked autoencoder: visible elements through the encoder, all places through the decoder."""

    def __init__(self, space: Patches, encoder: Any, options: Options) -> None:
        super().__init__()
        self.space, self.encoder, self.options = space, encoder, options
        self.narrow = nn.Linear(encoder.width, options.width)
        self.gap = nn.Parameter(torch.zeros(options.width))
        self.positions = nn.Parameter(transformer.positions(space.grid, options.width), requires_grad=False)
        blocks = transformer.Options(width=options.width, depth=options.depth, heads=max(1, options.width // 32))
        self.blocks = nn.ModuleList(transformer.Block(blocks) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, space.outputs)

    def forward(self, views: list[Input], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over the hidden elements of the global batch, those that are flat left out."""
        elements = self.space.split(views[0])
        kept = max(1, round(elements.shape[1] * (1 - (self.options.share or 0.75))))
        order = draws.uniform(elements.shape[1]).argsort(dim=1)
        seen = order[:, :kept]
        narrow = self.narrow(self.encoder.tokens(elements, None, seen))
        gaps = self.gap.to(narrow.dtype).expand(len(elements), elements.shape[1], -1)
        tokens = gaps.scatter(1, seen.unsqueeze(-1).expand(-1, -1, narrow.shape[-1]), narrow) + self.positions
        prediction = self.head(transformer.run_blocks(self.blocks, self.norm, tokens, None, False))
        hidden = torch.ones(elements.shape[:2], device=elements.device).scatter(1, seen, 0.0)
        errors = self.space.score(prediction, elements, normalized=self.options.normalized)
        return distributed.mean(errors, hidden * self.space.hideable(elements, None)), {}


class Outputs(nn.Module):
    """Vectors to predictions; of tokens by the encoder's own embeddings, which so learn from every one (BERT)."""

    def __init__(self, space: Space, dim: int) -> None:
        super().__init__()
        self.linear = None if isinstance(space, Tokens) else nn.Linear(dim, space.outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(space.outputs))

    def forward(self, vectors: Tensor, encoder: Any) -> Tensor:
        """[…, dim] to […, outputs]."""
        weight = encoder.stem.weight if self.linear is None else self.linear.weight
        return F.linear(vectors, weight, self.bias)


class Blanked(nn.Module):
    """Hidden elements are blanked and predicted from the encoder's vectors at their places, or each next one is."""

    def __init__(self, space: Space, encoder: Any, options: Options) -> None:
        super().__init__()
        self.space, self.encoder, self.options = space, encoder, options
        self.inner = _inner(encoder.width, encoder.width)
        self.outer = Outputs(space, encoder.width)
        self.whole = _inner(encoder.dim, encoder.width) if options.pooled else None

    def head(self, tokens: Tensor) -> Tensor:
        """Predictions from the encoder's vectors."""
        predicted: Tensor = self.outer(self.inner(tokens), self.encoder)
        return predicted

    def forward(self, views: list[Input], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean score over the predicted elements of the global batch."""
        elements, valid = self.space.split(views[0]), views[0].valid
        if self.options.next:
            tokens = self.encoder.tokens(elements, valid)[:, :-1]
            weights = torch.ones_like(tokens[..., 0]) if valid is None else valid[:, 1:].float()
            errors = self.space.score(self.head(tokens), elements[:, 1:], normalized=self.options.normalized)
            return distributed.mean(errors, weights), {}
        hidden = choose_hidden(self.space, elements, valid, self.options.share or 0.15, draws)
        tokens = self.encoder.tokens(self.space.hide(elements, hidden, draws), valid)
        # The head runs at hidden places alone: with a vocabulary of thousands it costs more than the encoder.
        errors = self.space.score(self.head(tokens[hidden]).unsqueeze(0), elements[hidden].unsqueeze(0))
        loss = distributed.mean(errors, torch.ones_like(errors))
        if self.whole is None:
            return loss, {}
        rows = self.outer(self.whole(self.encoder.embed(tokens, valid)), self.encoder).float().log_softmax(-1)
        found = -rows[hidden.nonzero()[:, 0], elements[hidden]]
        pooled = distributed.mean(found, torch.ones_like(found))
        return loss + self.options.pooled * pooled, {"token": loss, "pooled": pooled}


def _inner(dim: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.LayerNorm(width))


def views(options: Options) -> int:
    """The input as it is, or one view of it."""
    return int(options.augmented)


def build(space: Space, encoder: Any, options: Options) -> nn.Module:
    """The objective around an encoder that has ``tokens``; `RecipeError` for another."""
    if not hasattr(encoder, "tokens"):
        raise RecipeError("predict needs an encoder of elements", hint='set encoder.name = "transformer"')
    if not 0 <= options.share < 1:
        raise RecipeError(f"predict hides a share of {options.share}", hint="give 0.15 for tokens, 0.75 for patches")
    if options.next and not encoder.options.causal:
        raise RecipeError("the next element is predicted by an encoder that sees it", hint="set encoder.causal = true")
    if options.pooled and (options.next or isinstance(space, Patches)):
        raise RecipeError("hidden tokens alone are predicted from the embedding", hint="set objective.pooled = 0")
    if isinstance(space, Patches) and not options.next:
        return Dropped(space, encoder, options)
    return Blanked(space, encoder, options)
