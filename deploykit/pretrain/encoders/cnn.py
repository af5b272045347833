"""A small convolutional network: stages of two 3 x 3 convolutions, then pooling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from deploykit.errors import RecipeError
from deploykit.pretrain.distributed import BatchNorm2d
from deploykit.pretrain.elements import Input, Patches, Space
from deploykit.pretrain.encoders._pooling import WORDS, MapPool, Pooled, halved


@dataclass(frozen=True)
class Options:
    """``width`` channels in the first stage, twice as many in each further one of ``stages``.

    ``pool``: mean over all places; of each quarter, which costs nothing and tells more; or mean and maximum over time,
    for spectrograms (`_pooling`).
    """

    width: int = 32
    stages: int = 3
    pool: MapPool = "mean"


class Encoder(nn.Module):
    """[batch, channels, height, width] to [batch, dim]."""

    def __init__(self, space: Patches, options: Options) -> None:
        super().__init__()
        widths = [options.width * 2**i for i in range(options.stages)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([space.shape[0], *widths], widths, strict=False)):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.pool = Pooled(options.pool, widths[-1], halved(space.shape[2], options.stages - 1))
        self.dim, self.pooling = self.pool.dim, WORDS[options.pool]

    def forward(self, given: Input) -> Tensor:
        pooled: Tensor = self.pool(self.body(given.values))
        return pooled


def build(space: Space, options: Options) -> Encoder:
    """An encoder of pictures or spectrograms; `RecipeError` for text."""
    if not isinstance(space, Patches):
        raise RecipeError("the encoder cnn takes pictures, and the data are tokens", hint="use the transformer")
    return Encoder(space, options)
