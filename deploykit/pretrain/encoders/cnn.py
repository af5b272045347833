"""A small convolutional network: four stages of 3 x 3 convolutions, mean over the places."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from deploykit.errors import RecipeError
from deploykit.pretrain.distributed import BatchNorm2d
from deploykit.pretrain.elements import Input, Patches, Space

POOLING = "mean"


@dataclass(frozen=True)
class Options:
    """``width`` channels in the first stage, twice as many in each further one of ``stages``."""

    width: int = 32
    stages: int = 3


class Encoder(nn.Module):
    """[batch, channels, height, width] to [batch, dim]."""

    def __init__(self, channels: int, options: Options) -> None:
        super().__init__()
        widths = [options.width * 2**i for i in range(options.stages)]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip([channels, *widths], widths, strict=False)):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.dim = widths[-1]

    def forward(self, given: Input) -> Tensor:
        maps: Tensor = self.body(given.values)
        return maps.mean(dim=(2, 3))


def build(space: Space, options: Options) -> Encoder:
    """An encoder of pictures or spectrograms; `RecipeError` for text."""
    if not isinstance(space, Patches):
        raise RecipeError("the encoder cnn takes pictures, and the data are tokens", hint="use the transformer")
    return Encoder(space.shape[0], options)
