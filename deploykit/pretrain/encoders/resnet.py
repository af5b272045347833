"""ResNet-18 for small pictures: 3 x 3 stem without pooling, four stages of basic blocks (arXiv:1512.03385)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploykit.errors import RecipeError
from deploykit.pretrain.distributed import BatchNorm2d
from deploykit.pretrain.elements import Input, Patches, Space
from deploykit.pretrain.encoders._pooling import WORDS, MapPool, Pooled, halved


@dataclass(frozen=True)
class Options:
    """``width`` channels in the first stage, doubled in each further one; ``blocks`` basic blocks a stage.

    ``stem_stride`` 2 halves the picture at once: four times less arithmetic, for pictures that can bear it.
    ``pool``: mean over all places; of each quarter, which costs nothing and tells more; or mean and maximum over time,
    for spectrograms (`_pooling`).
    """

    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem_stride: int = 1
    pool: MapPool = "mean"


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm2d(after)
        plain = before == after and stride == 1
        self.skip: nn.Module = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), BatchNorm2d(after))
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = torch.relu(self.norm1(self.first(maps)))
        return torch.relu(self.norm2(self.second(inner)) + self.skip(maps))


class Encoder(nn.Module):
    """[batch, channels, height, width] to [batch, dim]."""

    def __init__(self, space: Patches, options: Options) -> None:
        super().__init__()
        widths = [options.width * 2**i for i in range(len(options.blocks))]
        layers: list[nn.Module] = [
            nn.Conv2d(space.shape[0], widths[0], 3, options.stem_stride, 1, bias=False),
            BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        before = widths[0]
        for stage, (after, count) in enumerate(zip(widths, options.blocks, strict=True)):
            for block in range(count):
                layers.append(_Block(before, after, 2 if stage > 0 and block == 0 else 1))
                before = after
        self.body = nn.Sequential(*layers)
        times = len(options.blocks) - 1 + (options.stem_stride == 2)
        self.pool = Pooled(options.pool, before, halved(space.shape[2], times))
        self.dim, self.pooling = self.pool.dim, WORDS[options.pool]

    def forward(self, given: Input) -> Tensor:
        pooled: Tensor = self.pool(self.body(given.values))
        return pooled


def build(space: Space, options: Options) -> Encoder:
    """An encoder of pictures or spectrograms; `RecipeError` for text."""
    if not isinstance(space, Patches):
        raise RecipeError("the encoder resnet takes pictures, and the data are tokens", hint="use the transformer")
    if not options.blocks or min(options.blocks) < 1:
        raise RecipeError(f"the resnet has blocks {list(options.blocks)}", hint="give 1 or more for each stage")
    if options.stem_stride not in (1, 2):
        raise RecipeError(f"the resnet has stem_stride {options.stem_stride}", hint="give 1 or 2")
    return Encoder(space, options)
