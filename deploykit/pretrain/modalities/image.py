"""Pictures: uint8 in memory; views by crop, mirror, rotation, colour and blur; elements are square patches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deploykit.errors import RecipeError
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Patches
from deploykit.pretrain.modalities import _augment
from deploykit.runtime.manifest import TensorSpec
from deploykit.runtime.preprocess import image

_MEASURED = 2000
"""Pictures from which the mean and the deviation are taken."""


@dataclass(frozen=True)
class Options:
    """Every picture is brought to ``size`` x ``size``; ``patch`` is the side of an element.

    Views: ``crop_min`` to ``crop_max`` of the area, an aspect up to ``aspect``; ``degrees`` of rotation either way;
    ``jitter`` is the strength of the change of colour and ``jitter_chance`` how often; ``grey`` and ``blur`` are
    chances; ``sigma`` is the widest blur, in pixels. ``view_size``: views are smaller than the picture, which costs
    less and which an encoder of convolutions can bear; 0 for its own size.
    """

    size: int = 32
    channels: Literal["rgb", "gray"] = "rgb"
    patch: int = 4
    crop_min: float = 0.2
    crop_max: float = 1.0
    aspect: float = 4 / 3
    flip: bool = True
    degrees: float = 0.0
    jitter: float = 0.5
    jitter_chance: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    sigma: float = 1.0
    view_size: int = 0


class Adapter:
    """Facts: mean and deviation per channel, of values in 0…1."""

    modality = "image"

    def __init__(self, options: Options, facts: dict[str, Any]) -> None:
        if options.size % options.patch or options.patch < 1:
            hint = "the size must be a multiple of the patch"
            raise RecipeError(f"the pictures have size {options.size} and patches {options.patch}", hint=hint)
        if not 0 <= options.view_size <= options.size:
            hint = "give 0, or at most the size"
            raise RecipeError(f"the views have size {options.view_size} and the pictures {options.size}", hint=hint)
        self.options, self.facts = options, facts
        channels = 1 if options.channels == "gray" else 3
        self.space = Patches((channels, options.size, options.size), (options.patch, options.patch))
        self.loading = image.Options(
            channels=options.channels,
            resize={"height": options.size, "width": options.size},
            mean=tuple(facts["mean"]),
            std=tuple(facts["std"]),
        )

    @classmethod
    def fit(cls, options: Options, inputs: Sequence[Any], seed: int) -> Adapter:
        """Measure mean and deviation on some of the pictures; those that cannot be read are left to the reader."""
        channels = 1 if options.channels == "gray" else 3
        neutral = cls(options, {"mean": [0.0] * channels, "std": [1.0] * channels})
        places = np.random.default_rng(seed).permutation(len(inputs))[:_MEASURED]
        pixels = [p[0].reshape(channels, -1) for p in (neutral.try_read(inputs[i]) for i in places) if p is not None]
        if not pixels:
            return neutral
        values = np.concatenate(pixels, axis=1) / 255
        mean, std = values.mean(axis=1), np.maximum(values.std(axis=1), 1e-3)
        return cls(options, {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()})

    def try_read(self, given: Any) -> tuple[np.ndarray, ...] | None:
        """As `read`, None for what cannot be read."""
        from deploykit.errors import InputError

        try:
            return self.read(given)
        except InputError:
            return None

    def read(self, given: Any, place: int = 0) -> tuple[np.ndarray, ...]:
        """One picture, uint8 [channels, size, size], decoded and resized as the exported encoder will have it.

        Errors name it by its file or its ``place``.
        """
        where = image.describe(given, place)
        pixels = image.load(given, where, self.loading)
        if pixels.shape[:2] != (self.options.size, self.options.size):
            pixels = image.resize(pixels, self.options.size, self.options.size, self.loading)
        return (np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.uint8),)

    def clean(self, held: tuple[Tensor, ...]) -> Input:
        """Pictures, normalised."""
        return Input(self._normalised(held[0].float() / 255))

    def views(self, held: tuple[Tensor, ...], count: int, draws: Draws) -> list[Input]:
        """Independent augmentations of each picture."""
        pictures = held[0].float() / 255
        return [Input(self._normalised(v)) for v in _augment.many(count, lambda: self._augment(pictures, draws))]

    def raw(self, held: tuple[Tensor, ...]) -> Tensor:
        """The pixels."""
        return held[0].float().flatten(1) / 255

    def card(self, folder: Path) -> dict[str, Any]:
        """The graph takes normalised pixels; the runtime makes them as `read` and `clean` do."""
        spec = TensorSpec("pixel_values", "float32", ("batch", *self.space.shape))
        preprocess = {"kind": "image", **json.loads(json.dumps(dataclasses.asdict(self.loading)))}
        return {"inputs": [dataclasses.asdict(spec)], "preprocess": preprocess, "files": {}}

    def _augment(self, pictures: Tensor, draws: Draws) -> Tensor:
        o = self.options
        scale = (o.crop_min, o.crop_max)
        out = _augment.crop(
            pictures, draws, scale=scale, ratio=o.aspect, flip=o.flip, degrees=o.degrees, size=o.view_size
        )
        if o.jitter > 0:
            out = _augment.colour(out, draws, o.jitter, o.jitter_chance)
        if o.grey > 0:
            out = _augment.greyscale(out, draws, o.grey)
        return _augment.blur(out, draws, o.sigma, o.blur) if o.blur > 0 else out

    def _normalised(self, pictures: Tensor) -> Tensor:
        mean = torch.tensor(self.facts["mean"], device=pictures.device).view(1, -1, 1, 1)
        std = torch.tensor(self.facts["std"], device=pictures.device).view(1, -1, 1, 1)
        return (pictures - mean) / std
