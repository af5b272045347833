"""Image processors that our tables do not know: their settings are read from the class in transformers, and what
follows from them is believed once it gives that class's own tensors for pictures of several shapes.

A class that crops, pads or cuts tiles in a way of its own fails the comparison and is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import InputError, SourceError
from deploykit.runtime.manifest import Card, Embedding, TensorSpec

_SHAPES = ((37, 53), (301, 200), (224, 224), (31, 433), (480, 640))
"""Height and width of the pictures: small, large, square, flat."""
_NEEDED = {"size", "resample", "image_mean", "image_std"}
_CLOSE = 1e-4
"""Of values that are about 1: both resize with Pillow, and round in float32."""


def settings(name: str, keys: Collection[str]) -> dict[str, Any] | None:
    """What the class says of ``keys`` where a checkpoint is silent; None where transformers has no such class."""
    made = _class(name)
    if made is None:
        return None
    said = json.loads(made.to_json_string())
    found = {key: said[key] for key in keys if said.get(key) is not None}
    return found if set(found) >= _NEEDED else None


def refuse_difference(folder: Path, name: str, preprocess: dict[str, Any], spec: TensorSpec, hint: str) -> None:
    """`SourceError` unless our runtime makes the tensors that the class of transformers makes of the same pictures."""
    from deploykit.runtime.preprocess import open_preprocessor

    theirs = _class(name, folder)
    ours = open_preprocessor(Card("it", "image", (spec,), (), Embedding("e", 1, "none", False), preprocess), folder)
    draw = np.random.default_rng(0)
    for height, width in _SHAPES:
        coarse = draw.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
        picture = _enlarged(coarse, height, width)
        try:
            want = np.asarray(theirs(picture, return_tensors="np")["pixel_values"], np.float32)
        except Exception as error:
            raise SourceError(f"{name} fails on a picture by itself: {error}", hint=hint) from error
        try:
            got = ours.collate(ours.items([picture]))[spec.name]
        except InputError as error:
            raise SourceError(f"the processor class {name} is not understood: {error.message}", hint=hint) from error
        if got.shape != want.shape or not np.allclose(got, want, atol=_CLOSE):
            what = f"{list(want.shape)}, not {list(got.shape)}," if got.shape != want.shape else "other values"
            fact = f"it makes {what} of a picture of {height} x {width} pixels"
            raise SourceError(f"the processor class {name} prepares pictures in a way of its own: {fact}", hint=hint)


def _class(name: str, folder: Path | None = None) -> Any:
    """The processor with its own settings, or with those of ``folder``: the form that needs no torchvision."""
    import transformers

    kind = getattr(transformers, f"{name}Pil", None) if name.isidentifier() else None
    if kind is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind() if folder is None else kind.from_pretrained(folder, local_files_only=True)


def _enlarged(coarse: np.ndarray, height: int, width: int) -> Any:
    from PIL import Image

    return Image.fromarray(coarse).resize((width, height))
