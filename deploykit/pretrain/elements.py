"""What an objective sees of its data: inputs made of elements, which are patches of numbers or tokens.

Importing this module imports torch. `Patches` and `Tokens` answer the same questions, so that an objective asks no
others: how an input splits into elements, which of them may be hidden, how a prediction of them is scored, and what a
generator's prediction looks like when it is put in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import RecipeError
from deploykit.pretrain.draws import Draws

_FLAT = 1e-3
"""A patch whose numbers vary less shows nothing: silence around a sound, the paper around a digit."""


class Input(NamedTuple):
    """A batch as encoders take it: floats [batch, channels, height, width], or ids and ``valid`` [batch, length]."""

    values: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class Patches:
    """Rectangles ``patch`` (height, width) of a picture or spectrogram of ``shape`` (channels, height, width)."""

    shape: tuple[int, int, int]
    patch: tuple[int, int]

    droppable = True
    differentiable = True

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of elements."""
        return self.shape[1] // self.patch[0], self.shape[2] // self.patch[1]

    @property
    def length(self) -> int:
        """How many elements an input has."""
        return self.grid[0] * self.grid[1]

    @property
    def outputs(self) -> int:
        """Numbers that predict one element."""
        return self.shape[0] * self.patch[0] * self.patch[1]

    def stem(self, width: int) -> nn.Module:
        """Elements to vectors [batch, length, width]."""
        return nn.Linear(self.outputs, width)

    def split(self, given: Input) -> Tensor:
        """Elements [batch, length, outputs]."""
        (channels, _, _), (rows, columns), (tall, wide) = self.shape, self.grid, self.patch
        if tuple(given.values.shape[2:]) != self.shape[1:]:
            raise RecipeError(
                f"views of {given.values.shape[2]} x {given.values.shape[3]} have other patches than the input",
                hint="leave modality.view_size out, or use an encoder of convolutions",
            )
        cut = given.values.reshape(-1, channels, rows, tall, columns, wide)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows * columns, channels * tall * wide)

    def hideable(self, elements: Tensor, valid: Tensor | None) -> Tensor:
        """Which elements may be masked, bool [batch, length]: flat ones are not, there is nothing to tell of them."""
        return elements.float().var(-1) > _FLAT

    def hide(self, elements: Tensor, hidden: Tensor, draws: Draws) -> Tensor:
        """Elements with all the hidden ones blank."""
        return self.blanked(elements, hidden)

    def blanked(self, elements: Tensor, places: Tensor) -> Tensor:
        """Elements with some set to the mean of the data, which is 0."""
        return elements.masked_fill(places.unsqueeze(-1), 0.0)

    def score(self, prediction: Tensor, elements: Tensor, *, normalized: bool = True) -> Tensor:
        """Squared error [batch, length]; ``normalized``: to patches of mean 0 and variance 1 (arXiv:2111.06377)."""
        target = elements.float()
        if normalized:
            centred = target - target.mean(-1, keepdim=True)
            target = centred / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return ((prediction.float() - target) ** 2).mean(-1)

    def fill(self, prediction: Tensor, draws: Draws) -> Tensor:
        """What a generator puts in place: the prediction itself, through which gradients flow."""
        return prediction

    def equal(self, filled: Tensor, elements: Tensor) -> Tensor:
        """Whether a filled element is the real one by chance, bool [batch, length]: never for numbers."""
        return torch.zeros(elements.shape[:2], dtype=torch.bool, device=elements.device)


@dataclass(frozen=True)
class Tokens:
    """Ids below ``vocabulary``; those below ``reserved`` are special, ``blank`` among them stands for a hidden one.

    ``counts``: how often each id stands in the data; empty where nobody counted.
    """

    length: int
    vocabulary: int
    blank: int
    reserved: int
    counts: tuple[int, ...] = ()

    droppable = False
    differentiable = False

    @property
    def grid(self) -> tuple[int, ...]:
        """One axis."""
        return (self.length,)

    @property
    def outputs(self) -> int:
        """Numbers that predict one element."""
        return self.vocabulary

    def stem(self, width: int) -> nn.Module:
        """Elements to vectors [batch, length, width]."""
        return nn.Embedding(self.vocabulary, width)

    def split(self, given: Input) -> Tensor:
        """Ids [batch, length]."""
        return given.values

    def hideable(self, elements: Tensor, valid: Tensor | None) -> Tensor:
        """Which elements may be masked: words, not the special ids nor padding."""
        return elements >= self.reserved

    def hide(self, elements: Tensor, hidden: Tensor, draws: Draws) -> Tensor:
        """80 % of the hidden ones blank, 10 % another id, 10 % as they are (BERT, arXiv:1810.04805)."""
        draw = draws.columns(self.length, elements.shape[1])
        other = draws.columns(self.length, elements.shape[1]) * (self.vocabulary - self.reserved)
        other = self.reserved + other.long()
        changed = torch.where(draw < 0.8, torch.full_like(elements, self.blank), elements)
        changed = torch.where((draw >= 0.8) & (draw < 0.9), other, changed)
        return torch.where(hidden, changed, elements)

    def blanked(self, elements: Tensor, places: Tensor) -> Tensor:
        """Ids with some of them blank."""
        return elements.masked_fill(places, self.blank)

    def score(self, prediction: Tensor, elements: Tensor, *, normalized: bool = True) -> Tensor:
        """Cross entropy [batch, length]."""
        return F.cross_entropy(prediction.float().transpose(1, 2), elements, reduction="none")

    def fill(self, prediction: Tensor, draws: Draws) -> Tensor:
        """Ids drawn from the predicted distribution; no gradient flows through them."""
        spread = prediction.detach().float().softmax(-1).cumsum(-1)
        draw = draws.columns(self.length, prediction.shape[1]).unsqueeze(-1) * spread[..., -1:]
        return torch.searchsorted(spread, draw).squeeze(-1).clamp(max=self.vocabulary - 1)

    def equal(self, filled: Tensor, elements: Tensor) -> Tensor:
        """Whether the drawn id is the real one by chance."""
        return filled == elements


Space = Patches | Tokens


def choose_hidden(space: Space, elements: Tensor, valid: Tensor | None, share: float, draws: Draws) -> Tensor:
    """A random ``share`` of the elements that may be hidden, at least one where there is any; bool [batch, length]."""
    may = space.hideable(elements, valid)
    drawn = draws.columns(space.length, elements.shape[1])
    order = torch.where(may, drawn, torch.full_like(may, 2.0, dtype=torch.float32))
    ranks = order.argsort(dim=1).argsort(dim=1)
    count = (may.sum(1, keepdim=True) * share).round().clamp(min=1.0)
    return (ranks < count) & may
