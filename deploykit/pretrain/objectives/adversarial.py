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
from deploykit.pretrain.objectives.predict import Outputs


@dataclass(frozen=True)
class Options:
    """``share`` of hidden elements; ``width``, ``depth`` and ``heads`` of the generator; weights of the losses.

    ``weight`` of telling real from generated; ``deceive`` of the generated elements' scores above ``margin``, which
    trains the generator of patches; ``correct`` of predicting what really stood at the generated ones' places
    (COCO-LM, arXiv:2102.08473), 0 for none. ``head``: how many blocks lie between the encoder and its verdicts.
    ``blank``: this share of the hidden elements is not generated but left blank, and ``correct`` is asked for there:
    what stood at a generated one's place can be copied from it. ``residual``: as much of what the generator missed at
    another place is added to each generated patch, which without it is told by its smoothness alone.
    ``augmented``: the input is one view of the sample and not the sample as it is.
    ``tied``: the encoder itself reads what is left of the input and the generator is no more than a decoder behind it,
    so that both losses train it (all weights tied, as ELECTRA's section 3.2 tries): where a generated patch is told by
    its looks alone, telling teaches an encoder little of what is in the picture.
    """

    share: float = 0.25
    width: int = 64
    depth: int = 2
    heads: int = 2
    weight: float = 20.0
    deceive: float = 0.03
    margin: float = 1.0
    correct: float = 0.0
    blank: float = 0.0
    residual: float = 0.0
    head: int = 1
    augmented: bool = False
    tied: bool = False


class Adversarial(nn.Module):
    """Generator, encoder and the head that tells real from generated."""

    def __init__(self, space: Space, encoder: Any, options: Options) -> None:
        super().__init__()
        self.space, self.encoder, self.options = space, encoder, options
        sizes = transformer.Options(width=options.width, depth=options.depth, heads=options.heads)
        self.generator: Any = Tied(space, encoder.width, sizes) if options.tied else transformer.Encoder(space, sizes)
        self.fill = nn.Linear(options.width, space.outputs)
        self.head = Head(encoder.width, options.head)
        self.correct = Outputs(space, encoder.width) if options.correct else None

    def forward(self, views: list[Input], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Generator's loss plus the weighted losses of telling and correcting; ``told``: `_told`."""
        options, space = self.options, self.space
        elements, valid = space.split(views[0]), views[0].valid
        hidden = choose_hidden(space, elements, valid, options.share, draws)
        # The generator's last layer runs at hidden places: with a vocabulary of thousands it costs more than the rest.
        # In their order: which draw belongs to which place must not depend on the longest text of this process.
        order = hidden.float().argsort(dim=1, descending=True, stable=True)
        places = order[:, : max(1, round(options.share * hidden.shape[1]))]
        asked, real = hidden.gather(1, places), _gather(elements, places)
        prediction = self.fill(_gather(self._generated(elements, hidden, places, valid, draws), places))
        generating = distributed.mean(space.score(prediction, real, normalized=False), asked.float())
        filled = space.fill(prediction, draws).to(elements.dtype)
        if space.differentiable and options.residual:
            filled = filled + options.residual * (real - filled).detach().roll(1, dims=1)
        filled = torch.where(_like(asked, filled), filled, real)
        mixed = _put(elements, places, filled.detach())
        false = hidden & ~space.equal(mixed, elements)
        counted = torch.ones_like(hidden) if valid is None else valid.bool()
        blank = self._blank(hidden, draws)
        if blank is not None:
            mixed, false, counted = space.blanked(mixed, blank), false & ~blank, counted & ~blank
            asked = asked & blank.gather(1, places)
        scores, vectors = self.head(self.encoder.tokens(mixed, valid), valid)
        scores = scores.float()
        telling = _balanced(F.binary_cross_entropy_with_logits(scores, false.float(), reduction="none"), false, counted)
        loss = generating + options.weight * telling
        parts = {"generating": generating, "telling": telling, "told": _told(scores, false, counted)}
        if self.correct is not None:
            corrected = space.score(self.correct(_gather(vectors, places), self.encoder), real, normalized=False)
            parts["correcting"] = distributed.mean(corrected, asked.float())
            loss = loss + options.correct * parts["correcting"]
        if space.differentiable and options.deceive:
            parts["deceiving"] = self._deceive(
                _put(elements, places, filled), hidden if blank is None else hidden & ~blank, valid
            )
            loss = loss + options.deceive * parts["deceiving"]
        return loss, parts

    def _generated(
        self, elements: Tensor, hidden: Tensor, places: Tensor, valid: Tensor | None, draws: Draws
    ) -> Tensor:
        """The generator's vectors [batch, length, width]."""
        if not self.options.tied:
            vectors: Tensor = self.generator.tokens(self.space.hide(elements, hidden, draws), valid)
            return vectors
        if self.space.droppable:
            seen = self.encoder.tokens(elements, valid, _others(places, elements.shape[1]))
        else:
            seen = self.encoder.tokens(self.space.hide(elements, hidden, draws), valid)
        decoded: Tensor = self.generator(seen, places, valid)
        return decoded

    def _blank(self, hidden: Tensor, draws: Draws) -> Tensor | None:
        """Which of the hidden elements stay blank, bool [batch, length]; None where none may."""
        if not self.options.blank:
            return None
        return hidden & (draws.columns(self.space.length, hidden.shape[1]) < self.options.blank)

    def _deceive(self, mixed: Tensor, hidden: Tensor, valid: Tensor | None) -> Tensor:
        """How far generated elements are called generated beyond the margin; gradients reach the generator alone.

        Without the margin a generator that has once deceived goes on, and the encoder has nothing left to tell.
        """
        weights = {f"encoder.{k}": v.detach() for k, v in self.encoder.named_parameters()}
        weights |= {f"head.{k}": v.detach() for k, v in self.head.named_parameters()}
        scores = torch.func.functional_call(_Teller(self.encoder, self.head), weights, (mixed, valid)).float()
        return distributed.mean(F.relu(scores - self.options.margin), hidden.float())


class Tied(nn.Module):
    """A decoder behind the encoder: blocks, and a vector for the gaps where the encoder sees none."""

    def __init__(self, space: Space, dim: int, sizes: transformer.Options) -> None:
        super().__init__()
        self.narrow = nn.Linear(dim, sizes.width)
        self.gap = nn.Parameter(torch.zeros(sizes.width)) if space.droppable else None
        self.positions = nn.Parameter(transformer.positions(space.grid, sizes.width), requires_grad=False)
        self.blocks = nn.ModuleList(transformer.Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, seen: Tensor, places: Tensor, valid: Tensor | None) -> Tensor:
        """Vectors [batch, length, width] from the encoder's: all of them, or where gaps are those not at ``places``."""
        tokens = self.narrow(seen)
        if self.gap is not None:
            gaps = self.gap.to(tokens.dtype).expand(len(tokens), tokens.shape[1] + places.shape[1], -1)
            tokens = _put(gaps, _others(places, gaps.shape[1]), tokens)
        tokens = tokens + self.positions[: tokens.shape[1]]
        return transformer.run_blocks(self.blocks, self.norm, tokens, transformer.attention_bias(tokens, valid), False)


class Head(nn.Module):
    """Blocks between the encoder and the verdicts, so that its vectors describe the input and not the verdict alone."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        sizes = transformer.Options(width=dim, depth=1, heads=max(1, dim // 32))
        self.blocks = nn.ModuleList(transformer.Block(sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.tell = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores [batch, length], above 0 for generated, and the vectors [batch, length, dim] they are made from."""
        bias = transformer.attention_bias(tokens, valid)
        inner = transformer.run_blocks(self.blocks, self.norm, tokens, bias, False)
        return self.tell(inner).squeeze(-1), inner


class _Teller(nn.Module):
    def __init__(self, encoder: Any, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, elements: Tensor, valid: Tensor | None) -> Tensor:
        scores: Tensor = self.head(self.encoder.tokens(elements, valid), valid)[0]
        return scores


def _gather(rows: Tensor, places: Tensor) -> Tensor:
    """``rows`` [batch, length, …] at ``places`` [batch, count]."""
    return rows.gather(1, _like(places, rows).expand(-1, -1, *rows.shape[2:]))


def _others(places: Tensor, length: int) -> Tensor:
    """The places [batch, length - count] that are not among ``places`` [batch, count], in ascending order."""
    taken = torch.zeros(len(places), length, device=places.device).scatter(1, places, 1.0)
    return taken.argsort(dim=1, stable=True)[:, : length - places.shape[1]]


def _put(rows: Tensor, places: Tensor, given: Tensor) -> Tensor:
    """``rows`` with ``given`` [batch, count, …] at ``places``."""
    return rows.scatter(1, _like(places, rows).expand(-1, -1, *rows.shape[2:]), given)


def _like(flags: Tensor, rows: Tensor) -> Tensor:
    """[batch, count] with a last axis where ``rows`` has one."""
    return flags if rows.ndim == 2 else flags.unsqueeze(-1)


def _balanced(values: Tensor, false: Tensor, counted: Tensor) -> Tensor:
    """The mean over generated elements and that over real ones, as one: most elements are real.

    Without this an encoder calls everything real until it is nearly sure, which in a short training it never is.
    """
    return (distributed.mean(values, false & counted) + distributed.mean(values, ~false & counted)) / 2


@torch.no_grad()
def _told(scores: Tensor, false: Tensor, counted: Tensor) -> Tensor:
    """Balanced accuracy: always saying "real" gives one half, however few elements are generated."""
    return _balanced(((scores > 0) == false).float(), false, counted)


def views(options: Options) -> int:
    """The input as it is, or one view of it."""
    return int(options.augmented)


def build(space: Space, encoder: Any, options: Options) -> Adversarial:
    """The objective around an encoder that has ``tokens``; `RecipeError` for another."""
    if not hasattr(encoder, "tokens"):
        raise RecipeError("adversarial needs an encoder of elements", hint='set encoder.name = "transformer"')
    if not 0 < options.share < 1:
        raise RecipeError(f"adversarial hides a share of {options.share}", hint="give 0.25")
    if not 0 <= options.blank < 1:
        raise RecipeError(f"adversarial leaves a share of {options.blank} blank", hint="give 0.5, or 0 for none")
    return Adversarial(space, encoder, options)
