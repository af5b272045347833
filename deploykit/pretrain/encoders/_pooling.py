"""From maps to one vector: over all places, over each quarter, or over the first axis alone, of a spectrogram time.

Importing this module imports torch. Where something stands on the second axis of a spectrogram, its frequency, says
what it is; the mean over all places forgets it. Mean and maximum over time keep it (BYOL-A, arXiv:2204.07402).
Quarters keep roughly where in a picture something is, as in Coates, Lee and Ng 2011 ("An analysis of single-layer
networks in unsupervised feature learning").
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, cat, nn
from torch.nn import functional as F

from deploykit.errors import RecipeError

Pool = Literal["mean", "time"]
MapPool = Literal["mean", "time", "quarters"]
WORDS = {"mean": "mean", "time": "mean and max over time", "quarters": "mean of each quarter"}


class Pooled(nn.Module):
    """Maps [batch, channels, time, bands] to [batch, ``dim``].

    ``mean``: over both axes. ``time``: mean and maximum over the first one, side by side, the second one kept.
    ``quarters``: the means of the four quarters side by side, which share the middle row or column of an odd number.
    """

    def __init__(self, pool: MapPool, channels: int, bands: int) -> None:
        super().__init__()
        self.pool = pool
        self.dim = channels * {"mean": 1, "time": 2 * bands, "quarters": 4}[pool]

    def forward(self, maps: Tensor) -> Tensor:
        if self.pool == "mean":
            return maps.mean(dim=(2, 3))
        if self.pool == "quarters":
            tall, wide = int(maps.shape[2]), int(maps.shape[3])
            if min(tall, wide) < 2:
                hint = 'give fewer stages, larger views, or pool = "mean"'
                raise RecipeError(f"maps of {tall} x {wide} have no quarters", hint=hint)
            return F.avg_pool2d(maps, ((tall + 1) // 2, (wide + 1) // 2), (tall // 2, wide // 2)).flatten(1)
        return cat([maps.mean(dim=2), maps.amax(dim=2)], dim=1).flatten(1)


def halved(size: int, times: int) -> int:
    """The length of an axis after so many 3-wide convolutions with stride 2 and padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
