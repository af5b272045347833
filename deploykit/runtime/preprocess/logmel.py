"""Log-mel spectrograms as data: one description covers Whisper (OpenAI), AST (Kaldi's filter bank) and CLAP.

The mel scales are those of M. Slaney's Auditory Toolbox (1998), of HTK and of Kaldi; their filters are triangles that
rise and fall linearly in hertz, for Kaldi in mel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class LogMel:
    """What is computed, in the order of the fields; lengths are in samples unless said otherwise.

    ``samples``: the waveform is cut or filled to this length (with zeros, or with repetitions of itself and then zeros
    when ``repeat``); None leaves it as it is. ``center`` puts frame t around sample t * hop, with mirrored ends. The
    result is cut or filled to ``frames`` with ``fill`` (None: the value of silence). ``dynamic_range`` lifts what is
    further below the loudest value. Last comes (x - mean) / std.
    """

    bins: int
    frames: int
    hop: int
    window: int
    fft: int
    samples: int | None = None
    repeat: bool = False
    center: bool = True
    remove_dc: bool = False
    preemphasis: float = 0.0
    periodic: bool = True
    scale: Literal["slaney", "htk", "kaldi"] = "slaney"
    area_norm: bool = False
    low_hz: float = 0.0
    high_hz: float = 8000.0
    floor: float = 1e-10
    log: Literal["log10", "ln"] = "log10"
    fill: float | None = None
    dynamic_range: float | None = None
    mean: float = 0.0
    std: float = 1.0
    layout: Literal["bins-frames", "frames-bins", "1-frames-bins"] = "bins-frames"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `log_mel`."""
        frames_first = (self.frames, self.bins)
        return {"bins-frames": frames_first[::-1], "frames-bins": frames_first}.get(self.layout, (1, *frames_first))

    @property
    def shortest(self) -> int:
        """The fewest samples that make a frame."""
        return 1 if self.samples else self.window


def log_mel(samples: np.ndarray, rate: int, spec: LogMel) -> np.ndarray:
    """Waveform float32 [n], n >= ``spec.shortest``, to features float32 of ``spec.shape``."""
    energy = _power(samples, spec) @ mel_filters(rate, spec)
    features = np.full((spec.frames, spec.bins), 0.0 if spec.fill is None else spec.fill, np.float32)
    log = np.log10 if spec.log == "log10" else np.log
    count = min(len(energy), spec.frames)
    features[:count] = log(np.maximum(energy[:count], spec.floor))
    if spec.fill is None:
        features[count:] = log(spec.floor)
    if spec.dynamic_range is not None:
        np.maximum(features, features.max() - spec.dynamic_range, out=features)
    features -= spec.mean
    features /= spec.std
    return np.ascontiguousarray(features.T) if spec.layout == "bins-frames" else features.reshape(spec.shape)


def _power(samples: np.ndarray, spec: LogMel) -> np.ndarray:
    """Power spectra [frames, fft // 2 + 1]; frames that lie in the silence after the waveform are left out."""
    half = spec.window // 2
    wanted = spec.frames
    if spec.samples is not None:
        samples = samples[: spec.samples]
        if spec.repeat:
            samples = np.tile(samples, spec.samples // samples.size)
        if spec.center:
            wanted = min(wanted, ceil((samples.size + half) / spec.hop))
        samples = np.pad(samples, (0, min(spec.samples - samples.size, spec.window)))
    if spec.center:
        samples = np.pad(samples, half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(samples, spec.window)[:: spec.hop][:wanted].astype(np.float64)
    if spec.remove_dc:
        frames -= frames.mean(axis=1, keepdims=True)
    if spec.preemphasis:
        frames[:, 1:] -= spec.preemphasis * frames[:, :-1]
        frames[:, 0] *= 1 - spec.preemphasis
    frames *= np.hanning(spec.window + 1)[:-1] if spec.periodic else np.hanning(spec.window)
    spectrum = np.fft.rfft(frames, spec.fft)
    return spectrum.real**2 + spectrum.imag**2


@lru_cache(maxsize=8)
def mel_filters(rate: int, spec: LogMel) -> np.ndarray:
    """Triangular filters float64 [fft // 2 + 1, bins] for a waveform of ``rate`` Hz."""
    low, high = (float(_mel(np.array(hertz), spec.scale)) for hertz in (spec.low_hz, spec.high_hz))
    corners = np.linspace(low, high, spec.bins + 2)
    hertz = _hertz(corners, spec.scale)
    points = np.linspace(0, rate / 2, spec.fft // 2 + 1)
    if spec.scale == "kaldi":
        points = _mel(points, spec.scale)
    else:
        corners = hertz
    rise = (points[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - points[:, None]) / np.diff(corners)[1:]
    filters = np.maximum(0, np.minimum(rise, fall))
    return filters * 2 / (hertz[2:] - hertz[:-2]) if spec.area_norm else filters


_LINEAR_MEL = 3 / 200
"""Slaney's scale is linear up to 1 kHz (15 mel) and has 27 mel per factor 6.4 above."""


def _mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "slaney":
        above = 15 + 27 / np.log(6.4) * np.log(np.maximum(hertz, 1000) / 1000)
        return np.where(hertz < 1000, hertz * _LINEAR_MEL, above)
    return 2595 * np.log10(1 + hertz / 700) if scale == "htk" else 1127 * np.log(1 + hertz / 700)


def _hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "slaney":
        return np.where(mel < 15, mel / _LINEAR_MEL, 1000 * np.exp(np.log(6.4) / 27 * (np.maximum(mel, 15) - 15)))
    return 700 * (10 ** (mel / 2595) - 1) if scale == "htk" else 700 * (np.exp(mel / 1127) - 1)
