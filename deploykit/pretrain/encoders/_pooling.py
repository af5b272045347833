"""From maps to one vector: over all places, or over the first axis alone, which of a spectrogram is time.

Importing this module imports torch. Where something stands on the second axis of a spectrogram, its frequency, says
what it is; the mean over all places forgets it. Mean and maximum over time keep it (BYOL-A, arXiv:2204.07402).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, cat, nn

Pool = Literal["mean", "time"]
WORDS = {"mean": "mean", "time": "mean and max over time"}


class Pooled(nn.Module):
    """Maps [batch, channels, time, bands] to [batch, ``dim``].

    ``mean``: over both axes. ``time``: mean and maximum over the first one, side by side, the second one kept.
    """

    def __init__(self, pool: Pool, channels: int, bands: int) -> None:
        super().__init__()
        self.pool = pool
        self.dim = channels if pool == "mean" else 2 * channels * bands

    def forward(self, maps: Tensor) -> Tensor:
        if self.pool == "mean":
            return maps.mean(dim=(2, 3))
        return cat([maps.mean(dim=2), maps.amax(dim=2)], dim=1).flatten(1)


def halved(size: int, times: int) -> int:
    """The length of an axis after so many 3-wide convolutions with stride 2 and padding 1."""
    for _ in range(times):
        size = (size + 1) // 2
    return size
