"""Sounds as log-mel spectrograms: views by random parts in time and frequency, mixing and gain; elements are patches.

The spectrogram is made by the very function that the runtime uses, so the exported encoder hears what it was trained
on. Views follow BYOL-A (Niizumi et al. 2021, arXiv:2103.06695).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit.errors import InputError, RecipeError
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Patches
from deploykit.pretrain.modalities import _augment
from deploykit.runtime.manifest import TensorSpec
from deploykit.runtime.preprocess import audio
from deploykit.runtime.preprocess.logmel import LogMel, log_mel

_MEASURED = 500


@dataclass(frozen=True)
class Options:
    """``rate`` in Hz; ``seconds`` to which a sound is cut or filled; ``bins``; ``hop`` and ``window`` in samples.

    ``patch`` is the side of an element in frames and in bins. Views: ``crop_min`` of the area at least; another sound
    mixed in with a weight up to ``mix`` of the energy; ``gain`` up to so many nepers of power either way.
    """

    rate: int = 8000
    seconds: float = 1.0
    bins: int = 64
    hop: int = 128
    window: int = 256
    patch: int = 8
    crop_min: float = 0.5
    mix: float = 0.4
    gain: float = 1.0


class Adapter:
    """Facts: mean and deviation of the log-mel values."""

    modality = "audio"

    def __init__(self, options: Options, facts: dict[str, Any]) -> None:
        frames = int(options.seconds * options.rate / options.hop) // options.patch * options.patch
        if frames < 1 or options.bins % options.patch:
            hint = "bins must be a multiple of patch, and seconds long enough for one"
            raise RecipeError(f"{options.bins} bins and {frames} frames make no patches of {options.patch}", hint=hint)
        self.options, self.facts = options, facts
        self.space = Patches((1, frames, options.bins), (options.patch, options.patch))
        self.mel = LogMel(
            bins=options.bins,
            frames=frames,
            hop=options.hop,
            window=options.window,
            fft=max(256, 2 ** (options.window - 1).bit_length()),
            samples=frames * options.hop + options.window,
            high_hz=options.rate / 2,
            floor=1e-6,
            log="ln",
            mean=float(facts["mean"]),
            std=float(facts["std"]),
            layout="1-frames-bins",
        )

    @classmethod
    def fit(cls, options: Options, inputs: Sequence[Any], seed: int) -> Adapter:
        """Measure mean and deviation on some of the sounds."""
        neutral = cls(options, {"mean": 0.0, "std": 1.0})
        found = []
        for i in np.random.default_rng(seed).permutation(len(inputs))[:_MEASURED]:
            try:
                found.append(neutral.read(inputs[i])[0])
            except InputError:
                continue  # counted and named when all are read
        if not found:
            return neutral
        values = np.stack(found)
        return cls(options, {"mean": round(float(values.mean()), 5), "std": round(max(float(values.std()), 1e-3), 5)})

    def read(self, given: Any) -> tuple[np.ndarray, ...]:
        """One sound as normalised log-mel float32 [1, frames, bins]."""
        samples = audio.load(given, audio.describe(given, 0), self.options.rate)
        return (log_mel(samples, self.options.rate, self.mel),)

    def clean(self, held: tuple[Tensor, ...]) -> Input:
        """Spectrograms as they are."""
        return Input(held[0])

    def views(self, held: tuple[Tensor, ...], count: int, draws: Draws) -> list[Input]:
        """Independent augmentations of each sound."""
        return [Input(v) for v in _augment.many(count, lambda: self._augment(held[0], draws))]

    def raw(self, held: tuple[Tensor, ...]) -> Tensor:
        """The mean and the deviation over time of each mel bin."""
        return torch.cat([held[0].mean(dim=(1, 2)), held[0].std(dim=(1, 2))], dim=1)

    def card(self, folder: Path) -> dict[str, Any]:
        """The graph takes spectrograms; the runtime makes them as `read` does."""
        spec = TensorSpec("input_features", "float32", ("batch", *self.space.shape))
        options = audio.Options(sampling_rate=self.options.rate, mel=self.mel)
        preprocess = {"kind": "audio", **json.loads(json.dumps(dataclasses.asdict(options)))}
        return {"inputs": [dataclasses.asdict(spec)], "preprocess": preprocess, "files": {}}

    def _augment(self, mels: Tensor, draws: Draws) -> Tensor:
        o = self.options
        draw = draws.uniform(3)
        mean, std = self.facts["mean"], self.facts["std"]
        power = (mels * std + mean).exp()
        # The sound mixed in comes from this process's part of the batch, chosen by a draw of the sample's own.
        other = power[(draw[:, 0] * len(power)).long().clamp(max=len(power) - 1)]
        weight = (o.mix * draw[:, 1]).view(-1, 1, 1, 1)
        gain = (o.gain * (2 * draw[:, 2] - 1)).view(-1, 1, 1, 1)
        mixed = (((1 - weight) * power + weight * other).log() + gain - mean) / std
        return _augment.crop(mixed, draws, scale=(o.crop_min, 1.0), ratio=1.5, flip=False, degrees=0.0)
