"""Modules between a model and its pooling: what works on token vectors, and tables of them.

Importing this module imports torch. Token vectors are [batch, length, width]; the mask [batch, length] is 0 at padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.graph.pooling import Normalize


@dataclass(frozen=True)
class Tokens:
    """What a model gives, under the names of transformers' outputs."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: Any = None

    def get(self, name: str) -> Any:
        """An output by its name; None if there is none."""
        return getattr(self, name, None)


class Staged(nn.Module):
    """A model whose output is looked up along ``path`` and then goes through ``stages``.

    ``vector``: that is the embedding already, and else token vectors.
    """

    def __init__(
        self, body: nn.Module, method: str, path: Sequence[str | int], stages: Sequence[nn.Module], *, vector: bool
    ) -> None:
        super().__init__()
        self.body, self.method, self.path, self.vector = body, method, tuple(path), vector
        self.stages = nn.ModuleList(stages)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **named: Any) -> Tokens:
        if "hidden_states" in self.path or any(isinstance(stage, WeightedLayers) for stage in self.stages):
            named["output_hidden_states"] = True
        output = getattr(self.body, self.method)(input_ids=input_ids, attention_mask=attention_mask, **named)
        found = output
        for step in self.path:
            found = getattr(found, step) if isinstance(step, str) else found[step]
        if found.ndim == 4:  # a feature map: its places are tokens
            found = found.flatten(2).transpose(1, 2)
        states = getattr(output, "hidden_states", None)
        for stage in self.stages:
            found = stage(states) if isinstance(stage, WeightedLayers) else stage(found, attention_mask, input_ids)
        if self.vector:
            return Tokens(pooler_output=found, hidden_states=states)
        return Tokens(last_hidden_state=found, hidden_states=states)


class WordTable(nn.Module):
    """Token ids to the vectors of a table."""

    def __init__(self, weights: Tensor, stages: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.table = frozen_table(weights)
        self.stages = nn.ModuleList(stages)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        tokens = self.table(input_ids)
        for stage in self.stages:
            tokens = stage(tokens, attention_mask, input_ids)
        return Tokens(last_hidden_state=tokens)


class EachToken(nn.Module):
    """A stage for vectors, such as a dense layer, on every token."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, tokens: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        out: Tensor = self.stage(tokens)
        return out


class WeightedLayers(nn.Module):
    """The weighted mean of a model's hidden states from layer ``first`` on."""

    def __init__(self, first: int, count: int) -> None:
        super().__init__()
        self.first = first
        self.layer_weights = nn.Parameter(torch.ones(count + 1 - first))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        stacked = torch.stack(list(states)[self.first :])
        weights = self.layer_weights.view(-1, 1, 1, 1)
        out: Tensor = (stacked * weights).sum(dim=0) / self.layer_weights.sum()
        return out


class WordWeights(nn.Module):
    """Token vectors times a weight for each word, such as its idf.

    A mean then divides by the sum of the weights: ``mode`` is the pooling that follows, and the vectors are scaled so
    that dividing by what that pooling divides by gives the same.
    """

    def __init__(self, weights: Sequence[float], mode: str) -> None:
        super().__init__()
        self.weights = frozen_table(torch.tensor(list(weights)).unsqueeze(1))
        self.mode = mode

    def forward(self, tokens: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        real = mask.to(tokens.dtype)
        weights = self.weights(ids).squeeze(-1) * real
        total = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
        count = real.sum(dim=1, keepdim=True).clamp(min=1.0)
        if self.mode == "mean":
            weights = weights * (count / total)
        elif self.mode == "mean_sqrt_len":
            weights = weights * torch.sqrt(count / total)
        elif self.mode == "weighted_mean":
            weights = weights * ((real * real.cumsum(dim=1)).sum(dim=1, keepdim=True) / total)
        out: Tensor = tokens * weights.unsqueeze(-1)
        return out


class Convolutions(nn.Module):
    """Convolutions of several widths over the tokens, side by side; padding counts as nothing."""

    def __init__(self, width: int, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, channels, size, padding=(size - 1) // 2) for size in kernels)

    def forward(self, tokens: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        real = mask.unsqueeze(-1) > 0
        places = torch.where(real, tokens, torch.zeros_like(tokens)).transpose(1, 2)
        return torch.cat([conv(places) for conv in self.convs], dim=1).transpose(1, 2)


_SHUT = -1e4
"""What shuts a gate whatever else it sees: sigmoid of it is 0 in every float type."""


class Recurrent(nn.Module):
    """An LSTM over the tokens, in one direction or in both.

    Read from its end, a padded text begins with padding. That must not fill the cell: each direction gets the padding
    as a further input, which shuts the input gate, so that the state stays 0 until the text begins.
    """

    def __init__(self, width: int, hidden: int, layers: int, *, both_ways: bool) -> None:
        super().__init__()
        self.encoder = nn.LSTM(width, hidden, num_layers=layers, bidirectional=both_ways, batch_first=True)
        self.ways = ("", "_reverse") if both_ways else ("",)
        self.runs = nn.ModuleList()

    def split(self) -> Recurrent:
        """The layers and directions apart, once the weights are there."""
        for layer in range(self.encoder.num_layers):
            for way in self.ways:
                inner, outer = (getattr(self.encoder, f"weight_{part}_l{layer}{way}") for part in ("ih", "hh"))
                hidden, width = int(outer.shape[1]), int(inner.shape[1])
                shut = torch.zeros(4 * hidden, 1)
                shut[:hidden] = _SHUT  # the input gate is the first of four
                run = nn.LSTM(width + 1, hidden, batch_first=True)
                names = {"weight_ih_l0": torch.cat([inner, shut], dim=1), "weight_hh_l0": outer}
                names |= {f"bias_{p}_l0": getattr(self.encoder, f"bias_{p}_l{layer}{way}") for p in ("ih", "hh")}
                run.load_state_dict(names)
                self.runs.append(run)
        del self.encoder
        return self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        padding = (mask.unsqueeze(-1) == 0).to(tokens.dtype)
        for layer in range(len(self.runs) // len(self.ways)):
            read = torch.cat([tokens, padding], dim=-1)
            found = [self.runs[layer * len(self.ways)](read)[0]]
            if len(self.ways) == 2:
                found.append(self.runs[layer * 2 + 1](read.flip(1))[0].flip(1))
            tokens = torch.cat(found, dim=-1)
        return tokens


def on_each_token(stage: nn.Module | None) -> EachToken:
    """A stage for every token; without one, L2 normalization."""
    return EachToken(Normalize() if stage is None else stage)


def frozen_table(weights: Tensor) -> nn.Embedding:
    """A table with these rows, in float32."""
    table = nn.Embedding(*weights.shape)
    table.load_state_dict({"weight": weights.float()})
    return table.requires_grad_(False)
