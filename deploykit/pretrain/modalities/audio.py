"""Sounds as log-mel spectrograms: views by windows in time and frequency, mixing and gain; elements are patches.

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

    ``patch`` is the side of an element in frames and in bins. ``range``: what is more nepers of power below the
    loudest value is lifted to there, so that the silence around a sound does not decide the deviation; 0 for none.

    Views: a window of ``time`` (least, most) of the frames and of ``bands`` of the bins, drawn apart: speed and pitch
    vary by little, and a part of a word is another word. Another sound is mixed in, at the same energy, with a weight
    up to ``mix``; ``gain`` and ``tilt`` (towards either end of the bins) are up to so many nepers of power either way.
    """

    rate: int = 8000
    seconds: float = 1.0
    bins: int = 64
    hop: int = 128
    window: int = 256
    patch: int = 8
    range: float = 11.5
    time: tuple[float, ...] = (0.7, 1.15)
    bands: tuple[float, ...] = (0.9, 1.1)
    mix: float = 0.4
    gain: float = 1.0
    tilt: float = 0.0


class Adapter:
    """Facts: mean and deviation of the log-mel values."""

    modality = "audio"

    def __init__(self, options: Options, facts: dict[str, Any]) -> None:
        frames = int(options.seconds * options.rate / options.hop) // options.patch * options.patch
        if frames < 1 or options.bins % options.patch:
            hint = "bins must be a multiple of patch, and seconds long enough for one"
            raise RecipeError(f"{options.bins} bins and {frames} frames make no patches of {options.patch}", hint=hint)
        for name, span in (("time", options.time), ("bands", options.bands)):
            if len(span) != 2 or not 0 < span[0] <= span[1]:
                raise RecipeError(f"modality.{name} is {list(span)}", hint="give the least and the most: [0.7, 1.15]")
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
            dynamic_range=options.range or None,
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

    def read(self, given: Any, place: int = 0) -> tuple[np.ndarray, ...]:
        """One sound as normalised log-mel float32 [1, frames, bins]; errors name it by its file or its ``place``."""
        samples = audio.load(given, audio.describe(given, place), self.options.rate)
        return (log_mel(samples, self.options.rate, self.mel),)

    def clean(self, held: tuple[Tensor, ...]) -> Input:
        """Spectrograms as they are."""
        return Input(held[0])

    def views(self, held: tuple[Tensor, ...], count: int, draws: Draws) -> list[Input]:
        """Independent augmentations of each sound."""
        return [Input(v) for v in _augment.many(count, lambda: self._augment(held[0], draws))]

    @property
    def mixes(self) -> bool:
        """Whether views of one sound are made with other sounds of the batch too."""
        return self.options.mix > 0

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
        draw = draws.uniform(4)
        if o.mix:
            mels = self._mixed(mels, draw[:, 0], o.mix * draw[:, 1])
        gain = (o.gain * (2 * draw[:, 2] - 1)).view(-1, 1, 1, 1)
        slope = (o.tilt * (2 * draw[:, 3] - 1)).view(-1, 1, 1, 1)
        shift = gain + slope * torch.linspace(-1, 1, mels.shape[3], device=mels.device)
        time, bands = (o.time[0], o.time[1]), (o.bands[0], o.bands[1])
        return _augment.window(mels + shift / self.facts["std"], draws, time, bands)

    def _mixed(self, mels: Tensor, draw: Tensor, weights: Tensor) -> Tensor:
        """Each sound with another one at its own energy, of which it takes the share ``weights`` [batch]."""
        mean, std = self.facts["mean"], self.facts["std"]
        power = (mels * std + mean).exp()
        other = power[(draw * len(power)).long().clamp(max=len(power) - 1)]
        energy = power.mean(dim=(1, 2, 3), keepdim=True)
        other = other * energy / other.mean(dim=(1, 2, 3), keepdim=True)
        share = weights.view(-1, 1, 1, 1)
        mixed: Tensor = (((1 - share) * power + share * other).log() - mean) / std
        return mixed
