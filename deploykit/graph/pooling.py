"""From token vectors to one vector per input: pooling, dense layers and normalisation as torch modules.

Importing this module imports torch. Every operation is one that the exporters and the engines take literally (where,
sum, max, comparison, matrix product): OpenVINO has answered forms that index by a computed position with a wrong batch
size, or with a crash. Nothing here yields NaN or an infinity: what stands at a padded place never reaches the result,
not even a NaN, and an input without any valid token gives the zero vector.

Shapes: ``tokens`` [batch, length, width] float, ``mask`` [batch, length] of any numeric type with 0 at padded places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from deploykit.errors import SourceError, nearest


class Pooling(nn.Module):
    """One vector per row: the named modes side by side, [batch, len(modes) * width].

    Padding may stand left or right: the modes look at the mask, never at fixed positions.
    """

    def __init__(self, modes: Sequence[str]) -> None:
        super().__init__()
        for mode in modes:
            if mode not in MODES:
                raise SourceError(f"there is no pooling '{mode}'", hint=nearest(mode, list(MODES)))
        self.modes = tuple(modes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        valid = mask.to(tokens.dtype).unsqueeze(-1) > 0.5
        pooled = [MODES[mode](tokens, valid) for mode in self.modes]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1)


def _positions(valid: Tensor) -> Tensor:
    """0, 1, 2 … along the length, [1, length, 1], as floats: the engines reduce floats everywhere."""
    return torch.arange(valid.shape[1], device=valid.device).to(torch.float32).view(1, -1, 1)


def _first_position(valid: Tensor) -> Tensor:
    positions = _positions(valid)
    return -torch.where(valid, -positions, -positions - valid.shape[1]).amax(dim=1, keepdim=True)


def _sum(tokens: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, tokens, torch.zeros_like(tokens)).sum(dim=1)


def _count(valid: Tensor, like: Tensor) -> Tensor:
    return valid.to(like.dtype).sum(dim=1).clamp(min=1.0)


def _mean(tokens: Tensor, valid: Tensor) -> Tensor:
    return _sum(tokens, valid) / _count(valid, tokens)


def _mean_sqrt_len(tokens: Tensor, valid: Tensor) -> Tensor:
    return _sum(tokens, valid) / torch.sqrt(_count(valid, tokens))


def _weighted_mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """The n-th token weighs n (Muennighoff 2022, SGPT)."""
    rank = _positions(valid) - _first_position(valid) + 1.0
    weights = torch.where(valid, rank, torch.zeros_like(rank)).to(tokens.dtype)
    total = weights.sum(dim=1).clamp(min=1.0)
    return (torch.where(valid, tokens, torch.zeros_like(tokens)) * weights).sum(dim=1) / total


def _cls(tokens: Tensor, valid: Tensor) -> Tensor:
    return _sum(tokens, valid & (_positions(valid) == _first_position(valid)))


def _last(tokens: Tensor, valid: Tensor) -> Tensor:
    positions = _positions(valid)
    last = torch.where(valid, positions, torch.zeros_like(positions)).amax(dim=1, keepdim=True)
    return _sum(tokens, valid & (positions == last))


def _max(tokens: Tensor, valid: Tensor) -> Tensor:
    """Padded places take the first token's vector: it changes no maximum and needs no huge constant (fp16 has none)."""
    return torch.where(valid, tokens, _cls(tokens, valid).unsqueeze(1)).amax(dim=1)


MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "last": _last,
}


class Dense(nn.Module):
    """``activation(x W' + b)``, [batch, in] → [batch, out]; a residual is projected when the sizes differ."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, activation: nn.Module, residual: bool
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = activation
        self.use_residual = residual
        self.residual = (
            nn.Linear(in_features, out_features, bias=False)
            if residual and in_features != out_features
            else nn.Identity()
        )

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(vectors))
        return out + self.residual(vectors) if self.use_residual else out


class LayerNorm(nn.Module):
    """Layer normalisation of the vector, with weights named as sentence-transformers stores them."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        out: Tensor = self.norm(vectors)
        return out


class Truncate(nn.Module):
    """The first ``dim`` components (Matryoshka embeddings); ``at_most``: all of them, if there are fewer."""

    def __init__(self, dim: int, *, at_most: bool = False) -> None:
        super().__init__()
        self.dim, self.at_most = dim, at_most

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors[:, : self.dim]


class Normalize(nn.Module):
    """Length 1; the zero vector stays zero. No epsilon, because none survives fp16."""

    def forward(self, vectors: Tensor) -> Tensor:
        norm = torch.sqrt((vectors * vectors).sum(dim=-1, keepdim=True))
        return vectors / torch.where(norm > 0, norm, torch.ones_like(norm))
