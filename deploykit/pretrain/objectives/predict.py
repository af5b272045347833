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
    view of the sample, as in the paper, and not the sample as it is.

    ``pooled``: the weight of predicting all hidden tokens of a text from its embedding too, which so learns what the
    whole text is about; it costs one row of logits a text and not one a token. ``token``: the weight of predicting
    each from the vector at its place; 0, with ``pooled``, leaves that out and its cost. ``frequent``: tokens with more
    than this share of the data count less, by the root of how much more (arXiv:1310.4546); 0: all count the same.
    """

    share: float = 0.0
    next: bool = False
    normalized: bool = True
    augmented: bool = False
    pooled: float = 0.0
    token: float = 1.0
    frequent: float = 0.0
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
        order = draws.columns(self.space.length, elements.shape[1]).argsort(dim=1)
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

    @torch.no_grad()
    def begin_with(self, counts: Tensor) -> None:
        """Predict what is frequent before anything is learnt: that alone would take a thousand steps."""
        self.bias.copy_((counts.clamp(min=0.1) / counts.sum()).log())

    def forward(self, vectors: Tensor, encoder: Any) -> Tensor:
        """[…, dim] to […, outputs]."""
        weight = encoder.stem.weight if self.linear is None else self.linear.weight
        return F.linear(vectors, weight, self.bias)


class Blanked(nn.Module):
    """Hidden elements are blanked and predicted from the encoder's vectors at their places, or each next one is."""

    def __init__(self, space: Space, encoder: Any, options: Options) -> None:
        super().__init__()
        self.space, self.encoder, self.options = space, encoder, options
        # What is not asked for has no weights: processes wait for the gradient of every one.
        self.inner = _inner(encoder.width, encoder.width) if options.token else None
        self.outer = Outputs(space, encoder.width)
        self.whole = _inner(encoder.dim, encoder.width) if options.pooled else None
        self.weights: Tensor | None = None
        if isinstance(space, Tokens) and space.counts:
            self.weights = _weights(space, options.frequent)
            self.outer.begin_with(self.weights * torch.tensor(space.counts))

    def head(self, tokens: Tensor) -> Tensor:
        """Predictions from the encoder's vectors."""
        assert self.inner is not None
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
        if self.whole is None:
            return self._each(tokens, elements, hidden), {}
        parts = {"pooled": self._all(self.whole(self.encoder.embed(tokens, valid)), elements, hidden)}
        loss = self.options.pooled * parts["pooled"]
        if self.options.token:
            parts["token"] = self._each(tokens, elements, hidden)
            loss = loss + self.options.token * parts["token"]
        return loss, parts

    def _each(self, tokens: Tensor, elements: Tensor, hidden: Tensor) -> Tensor:
        """Mean score of the hidden elements, each predicted at its place."""
        # The head runs at hidden places alone: with a vocabulary of thousands it costs more than the encoder.
        errors = self.space.score(self.head(tokens[hidden]).unsqueeze(0), elements[hidden].unsqueeze(0))
        return distributed.mean(errors, self._weigh(elements[hidden]).unsqueeze(0))

    def _all(self, vectors: Tensor, elements: Tensor, hidden: Tensor) -> Tensor:
        """Mean cross entropy of the hidden tokens under the one distribution that their text's vector predicts."""
        rows = self.outer(vectors, self.encoder).float().log_softmax(-1)
        # Counts and a product: the gradient of picking single scores would be written one by one.
        counts = torch.zeros_like(rows).scatter_add_(1, elements, hidden * self._weigh(elements))
        many = counts.sum(1)
        return distributed.mean(-(counts * rows).sum(1) / many.clamp(min=1e-12), many)

    def _weigh(self, elements: Tensor) -> Tensor:
        """How much each element counts, float32 of the same shape."""
        if self.weights is None:
            return torch.ones(elements.shape[:2], device=elements.device)
        weights: Tensor = self.weights.to(elements.device)[elements]
        return weights


def _weights(space: Tokens, frequent: float) -> Tensor:
    """For each id: the root of ``frequent`` over its share of the data, 1 at most."""
    shares = torch.tensor(space.counts) / max(1, sum(space.counts))
    return (frequent / shares.clamp(min=1e-12)).sqrt().clamp(max=1.0) if frequent else torch.ones(len(shares))


def _inner(dim: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.LayerNorm(width))


def views(options: Options) -> int:
    """The input as it is, or one view of it."""
    return int(options.augmented)


def build(space: Space, encoder: Any, options: Options) -> nn.Module:
    """The objective around an encoder that has ``tokens``; `RecipeError` for another."""
    if not hasattr(encoder, "tokens"):
        raise RecipeError("predict needs an encoder of elements", hint='set encoder.name = "transformer"')
    if not 0 <= options.frequent <= 1:
        raise RecipeError(f"objective.frequent is {options.frequent}", hint="it is a share: give 1e-4, or 0")
    if not 0 <= options.share < 1:
        raise RecipeError(f"predict hides a share of {options.share}", hint="give 0.15 for tokens, 0.75 for patches")
    if options.next and not encoder.options.causal:
        raise RecipeError("the next element is predicted by an encoder that sees it", hint="set encoder.causal = true")
    if min(options.pooled, options.token) < 0 or not options.pooled + options.token:
        fact = f"predict weighs tokens by {options.token} and texts by {options.pooled}"
        raise RecipeError(fact, hint="give weights from 0, one of them above it")
    if (options.pooled or options.token != 1) and (options.next or isinstance(space, Patches)):
        hint = "set objective.pooled = 0 and objective.token = 1"
        raise RecipeError("hidden tokens alone are predicted from the embedding", hint=hint)
    if isinstance(space, Patches) and not options.next:
        return Dropped(space, encoder, options)
    return Blanked(space, encoder, options)
