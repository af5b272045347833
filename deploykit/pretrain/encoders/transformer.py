"""A pre-norm transformer over elements: patches of pictures and spectrograms, or tokens; the embedding is a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deploykit.errors import RecipeError
from deploykit.graph.pooling import Pooling
from deploykit.pretrain.elements import Input, Patches, Space
from deploykit.pretrain.encoders._pooling import Pool


@dataclass(frozen=True)
class Options:
    """Sizes of the network. ``causal``: a token sees those before it alone, which the prediction of the next one needs.

    ``dropout`` acts on the residual branches. ``checkpointing`` computes activations again in the backward pass: less
    memory, a third more time. ``pool``: the mean of all elements, or of each column of patches by itself, which of a
    spectrogram is the mean over time.
    """

    width: int = 192
    depth: int = 6
    heads: int = 3
    ratio: float = 4.0
    dropout: float = 0.0
    causal: bool = False
    checkpointing: bool = False
    pool: Pool = "mean"


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a residual."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, inner = options.width, int(options.width * options.ratio)
        self.heads, self.causal = options.heads, options.causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop = nn.Dropout(options.dropout)

    def forward(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        tokens = tokens + self.drop(self._attend(self.norm1(tokens), bias))
        inner: Tensor = self.drop(self.down(F.gelu(self.up(self.norm2(tokens)))))
        return tokens + inner

    def _attend(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, width = tokens.shape
        cut = self.qkv(tokens).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attention(cut[0], cut[1], cut[2], bias)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class Encoder(nn.Module):
    """Elements to token vectors [batch, length, width], and their mean [batch, dim]."""

    def __init__(self, space: Space, options: Options) -> None:
        super().__init__()
        self.space, self.options, self.width = space, options, options.width
        self.dim = options.width * (space.grid[1] if options.pool == "time" else 1)
        self.pooling = {"mean": "mean", "time": "mean over time"}[options.pool]
        self.stem = space.stem(options.width)
        # Places must be heard beside the elements: a fresh patch's vector has deviation 1, a fresh token's 0.1.
        heard = 0.1 if isinstance(self.stem, nn.Embedding) else 1.0
        self.positions = nn.Parameter(heard * positions(space.grid, options.width))
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)
        self.pool = Pooling(["mean"])
        _initialise(self)

    def forward(self, given: Input) -> Tensor:
        return self.embed(self.tokens(self.space.split(given), given.valid), given.valid)

    def embed(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        """The embedding [batch, dim] of all the token vectors of an input."""
        if self.options.pool == "time":
            return tokens.reshape(-1, *self.space.grid, self.width).mean(dim=1).flatten(1)
        pooled: Tensor = tokens.mean(dim=1) if valid is None else self.pool(tokens, valid)
        return pooled

    def tokens(self, elements: Tensor, valid: Tensor | None, places: Tensor | None = None) -> Tensor:
        """Vectors of all elements, or of those at ``places`` [batch, kept] alone: the others cost nothing."""
        tokens = self.stem(elements) + self.positions[: elements.shape[1]]
        if places is not None:
            tokens = tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        bias = attention_bias(tokens, valid, self.options.causal)
        return run_blocks(self.blocks, self.norm, tokens, bias, self.options.checkpointing)


def attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of [batch, heads, length, width], torch's fused kernel where that is the faster one.

    Its backward pass in bfloat16 on CPUs takes two to eight times as long as these products one after the other (torch
    2.13, lengths of 16 to 128), which leaves little of what bfloat16 gains elsewhere.
    """
    if queries.device.type != "cpu" or queries.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    shares = (scores if bias is None else scores + bias).softmax(dim=-1)
    mixed: Tensor = shares.to(values.dtype) @ values
    return mixed


def attention_bias(tokens: Tensor, valid: Tensor | None, causal: bool = False) -> Tensor | None:
    """What attention adds to its scores, [batch or 1, 1, length or 1, length]: -1e4 where it may not look."""
    length = tokens.shape[1]
    if valid is None and not causal:
        return None
    seen = torch.ones(1, 1, 1, length, device=tokens.device) if valid is None else valid[:, None, None, :].float()
    if causal:
        order = torch.arange(length, device=tokens.device)
        seen = seen * (order[None, :] <= order[:, None]).float()
    return ((1.0 - seen) * -1e4).to(tokens.dtype)


def run_blocks(blocks: nn.ModuleList, norm: nn.Module, tokens: Tensor, bias: Tensor | None, again: bool) -> Tensor:
    """All blocks, then the norm; ``again``: keep no activations between them."""
    for block in blocks:
        tokens = (
            checkpoint(block, tokens, bias, use_reentrant=False)
            if again and tokens.requires_grad
            else block(tokens, bias)
        )
    out: Tensor = norm(tokens)
    return out


def positions(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines [elements, width], each axis of the grid in its share of the width (arXiv:1706.03762)."""
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in grid], indexing="ij")
    share = width // len(grid) // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(share) / share)
    waves = [f(axis.reshape(-1, 1) * rates) for axis in axes for f in (torch.sin, torch.cos)]
    table = torch.cat(waves, dim=1)
    return F.pad(table, (0, width - table.shape[1]))


def _initialise(encoder: Encoder) -> None:
    for part in encoder.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(part.weight, std=0.1 if isinstance(part, nn.Embedding) else part.in_features**-0.5)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    shrink = (2 * encoder.options.depth) ** -0.5  # the sum of all residuals is then as large as a token (GPT-2)
    with torch.no_grad():
        for part in encoder.modules():
            if isinstance(part, Block):
                part.out.weight.mul_(shrink)
                part.down.weight.mul_(shrink)


def build(space: Space, options: Options) -> Encoder:
    """An encoder of any elements."""
    if options.width % options.heads or min(options.width, options.depth, options.heads) < 1:
        raise RecipeError(
            f"the transformer has width {options.width} for {options.heads} heads",
            hint="width must be a multiple of heads",
        )
    if options.pool == "time" and not isinstance(space, Patches):
        raise RecipeError("texts have no columns to pool by", hint='set encoder.pool = "mean"')
    return Encoder(space, options)
