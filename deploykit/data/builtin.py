"""The sets that deploykit brings along: small, ours, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources

import numpy as np

from deploykit.data import Dataset
from deploykit.errors import MissingError, UnknownNameError, nearest
from deploykit.runtime.install import pip_install

SAMPLE_RATE = 16_000
_COUNT = 32


def read(name: str) -> Dataset:
    """The builtin set of that name; `UnknownNameError` gives the nearest."""
    if name not in SETS:
        raise UnknownNameError(f"there is no builtin set '{name}'", hint=nearest(name, list(SETS)))
    return SETS[name]()


def sentences() -> Dataset:
    """English sentences, questions, searches and paragraphs of 1 to about 200 words."""
    text = resources.files("deploykit.data").joinpath("sentences.txt").read_text(encoding="utf-8")
    return Dataset("builtin:sentences", "text", tuple(text.splitlines()))


def images() -> Dataset:
    """Pictures of many sizes, uint8 [height, width, 3]: gradients, waves and shapes, drawn from formulas."""
    return Dataset("builtin:images", "image", tuple(_image(i) for i in range(_COUNT)))


def tones() -> Dataset:
    """Sounds of 0.3 to 3 s at 16 kHz, float32 [samples] in [-1, 1]: chirps with overtones, an envelope and noise."""
    return Dataset("builtin:tones", "audio", tuple(_tone(i) for i in range(_COUNT)))


def fitted(sounds: Sequence[np.ndarray], low: int, high: int) -> list[np.ndarray]:
    """The sounds as an encoder that takes ``low`` to ``high`` samples can hear them: repeated, or cut."""
    return [np.resize(sound, min(max(sound.size, low), high)) for sound in sounds]


def digits(part: str = "") -> Dataset:
    """1,797 handwritten digits of 43 people, uint8 [8, 8] with labels: the test half of UCI's set, in scikit-learn.

    ``train`` is the first four fifths, ``test`` the rest, which other people wrote for the most part.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        hint = pip_install("pretrain")
        raise MissingError("builtin:digits lies inside scikit-learn, which is not installed", hint=hint) from error
    found = load_digits()
    pictures = np.round(found.images * (255 / 16)).astype(np.uint8)
    border = len(pictures) * 4 // 5
    rows = {"": slice(None), "train": slice(border), "test": slice(border, None)}[part]
    name = f"builtin:digits-{part}" if part else "builtin:digits"
    return Dataset(name, "image", tuple(pictures[rows]), [int(label) for label in found.target[rows]])


SETS: dict[str, Callable[[], Dataset]] = {
    "sentences": sentences,
    "images": images,
    "tones": tones,
    "digits": digits,
    "digits-train": partial(digits, "train"),
    "digits-test": partial(digits, "test"),
}


def _image(index: int) -> np.ndarray:
    rng = np.random.default_rng(1000 + index)
    height, width = (int(v) for v in rng.integers(48, 400, size=2))
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = []
    for _ in range(3):
        angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(0.5, 12), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        channels.append(0.35 * wave + rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y)
    picture = np.stack(channels, axis=-1)
    for _ in range(int(rng.integers(1, 5))):
        centre_y, centre_x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        picture[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] += rng.uniform(-0.8, 0.8, size=3)
    picture += rng.normal(0, 0.03, size=picture.shape)
    return np.asarray(np.clip(127.5 + 127.5 * picture, 0, 255), dtype=np.uint8)


def _tone(index: int) -> np.ndarray:
    rng = np.random.default_rng(2000 + index)
    seconds = rng.uniform(0.3, 3.0)
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    low, high = rng.uniform(80, 400), rng.uniform(200, 2000)
    phase = 2 * np.pi * (low * time + (high - low) * time**2 / (2 * seconds))
    sound = sum(rng.uniform(0.1, 1) / k * np.sin(k * phase) for k in (1, 2, 3, 5))
    envelope = np.minimum(1, time / 0.02) * np.exp(-rng.uniform(0, 2) * time)
    sound = sound * envelope * (0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(1, 6) * time))
    sound = sound / np.abs(sound).max() * rng.uniform(0.2, 0.9) + rng.normal(0, 0.01, size=time.shape)
    return np.asarray(np.clip(sound, -1, 1), dtype=np.float32)
