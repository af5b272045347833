"""Random numbers of one training step, the same however many processes share it.

Importing this module imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """One independent draw per sample of the global batch, of which this process sees its own rows.

    Every process draws for the whole batch from the same seed and keeps rows ``start`` to ``stop``: two processes
    then augment and mask exactly as one would. Everything follows from the seed, so there is no state to save.
    """

    def __init__(self, seed: int, total: int, start: int, stop: int, device: torch.device | str = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._total, self._rows, self._device = total, slice(start, stop), device

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), [rows, *shape]."""
        drawn = torch.rand(self._total, *shape, generator=self._generator)
        return drawn[self._rows].to(self._device)

    def columns(self, most: int, count: int) -> Tensor:
        """Uniform in [0, 1), [rows, count]: the first of ``most``, so that a process whose longest text is a short one
        leaves the others' draws where they are."""
        return self.uniform(most)[:, :count]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, [rows, *shape]."""
        drawn = torch.randn(self._total, *shape, generator=self._generator)
        return drawn[self._rows].to(self._device)

    def shared_normal(self, *shape: int) -> Tensor:
        """Standard normal, the same for all samples and processes."""
        return torch.randn(*shape, generator=self._generator).to(self._device)


def step_seed(seed: int, *places: int) -> int:
    """A seed for one place in a run (epoch, step, micro-batch), far from its neighbours' (splitmix64)."""
    state = seed & 0xFFFFFFFFFFFFFFFF
    for place in places:
        state = (state + 0x9E3779B97F4A7C15 * (place + 1)) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
