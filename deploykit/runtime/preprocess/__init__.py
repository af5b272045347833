"""Preprocessors: raw inputs (texts, images, waveforms) to the tensors of the graph.

Each needs numpy and at most one small library.

``preprocess/KIND.py`` offers ``Options`` (the keys of ``card.preprocess`` without ``kind``) and ``Preprocessor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.runtime.manifest import Card


@dataclass(frozen=True)
class Item:
    """One input, preprocessed: its tensors without the batch axis, and its cost (tokens, pixels or samples).

    Items of the same dynamic sizes stack; items of different lengths are padded by the `Preprocessor`.
    """

    tensors: dict[str, np.ndarray]
    cost: int


class Preprocessor(Protocol):
    """Turns raw inputs into items and stacks items into one batch of feeds."""

    def items(self, inputs: Sequence[Any], *, kind: str | None = None) -> list[Item]:
        """Preprocess every input; ``kind`` picks a prompt (``query``, ``passage``) where the bundle has prompts."""

    def collate(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Pad to the longest of these items and stack on a batch axis."""


def open_preprocessor(card: Card, root: Path) -> Preprocessor:
    """The preprocessor that ``card.preprocess`` names; file names in it are relative to ``root``."""
    import importlib

    from deploykit.runtime.errors import BundleError

    kind = card.preprocess.get("kind")
    if kind not in ("text", "image", "audio", "none"):
        raise BundleError(
            f"the manifest asks for the preprocessor {kind!r}", hint="this deploykit has text, image, audio and none"
        )
    module = importlib.import_module(f"{__name__}.{'tensors' if kind == 'none' else kind}")
    preprocessor: Preprocessor = module.Preprocessor.open(card, root)
    return preprocessor
