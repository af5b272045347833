"""Change of sampling rate: a windowed sinc, evaluated polyphase, numpy alone.

J. O. Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/. The constants are those of the
response that soxr calls HQ, with which librosa and transformers read files: flat up to 0.913 of the lower Nyquist
frequency, down by 120 dB from that frequency on, and between the two as steep. Noise differs from soxr's by -60 dB.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, gcd

import numpy as np

_ZERO_CROSSINGS = 88
_CUTOFF = 0.95682
"""The middle of the transition band, as a share of the lower Nyquist frequency."""
_KAISER_BETA = 11.6


def resample(samples: np.ndarray, rate: int, target: int) -> np.ndarray:
    """float32 [n] at ``rate`` Hz to float32 [ceil(n * target / rate)]; time 0 stays at sample 0.

    The signal counts as silent before its first and after its last sample.
    """
    if rate == target or samples.size == 0:
        return samples
    common = gcd(rate, target)
    up, down = target // common, rate // common
    filters, half = _filters(up, down)
    count = ceil(samples.size * up / down)
    padded = np.concatenate([np.zeros(half, np.float32), samples, np.zeros(half + down, np.float32)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1])
    result = np.empty(count, np.float32)
    for phase in range(min(up, count)):
        # Output n = phase + k * up lies at input position n * down / up: between the same two samples for every k.
        start, offset = divmod(phase * down, up)
        outputs = result[phase::up]
        np.matmul(windows[start::down][: outputs.size], filters[offset], out=outputs)
    return result


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> tuple[np.ndarray, int]:
    """Taps float32 [up, 2 * half + 1]: row r weighs the input around a point r / up after a sample."""
    cutoff = _CUTOFF * min(1.0, up / down)
    half = ceil(_ZERO_CROSSINGS / cutoff)
    distance = np.arange(-half, half + 1)[None, :] - np.arange(up)[:, None] / up
    inside = np.clip(1 - (distance * cutoff / _ZERO_CROSSINGS) ** 2, 0, None)
    window = np.i0(_KAISER_BETA * np.sqrt(inside)) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window * (inside > 0)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32), half
