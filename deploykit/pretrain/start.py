"""The encoder of a finished run as the start of another one, instead of random weights.

Importing this module imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.pretrain import checkpoint
from deploykit.pretrain.recipe import PretrainRecipe, piece

_CARD, _WEIGHTS = "card.json", "encoder.safetensors"
_FREE = ("dropout", "checkpointing")
"""Options of an encoder that change how it is trained and not what it computes afterwards."""


@dataclass(frozen=True)
class Start:
    """Weights, and the ``facts`` of the data that they were trained on: an id must stand for the same word again."""

    path: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def load_into(self, encoder: nn.Module) -> None:
        """Replace all weights; `SourceError` names the first tensor of another shape."""
        checkpoint.fit_weights(encoder, self.tensors, self.path)


def read(recipe: PretrainRecipe) -> Start:
    """What ``recipe.start`` holds; `SourceError` where it is no finished run, or of another encoder or modality."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(recipe.start)
    path = folder / _WEIGHTS
    try:
        card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
        modality, encoder, facts = card["modality"]["name"], card["encoder"], card["modality"]["facts"]
        tensors = load_file(path)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        hint = "give the folder of a run that has ended: it holds card.json and encoder.safetensors"
        raise SourceError(f"'{folder}' is no finished run to start from: {error}", hint=hint) from error
    hint = "use the same encoder and modality as that run, or leave start out"
    if modality != recipe.modality:
        raise SourceError(
            f"'{folder}' is an encoder of {modality}, the recipe's modality is {recipe.modality}", hint=hint
        )
    if encoder["name"] != recipe.encoder:
        raise SourceError(
            f"'{folder}' holds the encoder {encoder['name']}, the recipe's is {recipe.encoder}", hint=hint
        )
    _same_options(folder, encoder["options"], recipe, hint=hint)
    return Start(path, facts, tensors)


def _same_options(folder: Path, told: Mapping[str, Any], recipe: PretrainRecipe, hint: str) -> None:
    """The shapes alone would not tell: other heads have the same weights and mean something else by them."""
    from deploykit import settings

    known = settings.read(piece("encoder", recipe.encoder).Options, told, str(folder / _CARD))
    theirs, ours = settings.plain(known), settings.plain(recipe.options["encoder"])
    for key in ours:
        if key not in _FREE and theirs[key] != ours[key]:
            fact = f"its encoder.{key} is {theirs[key]}, the recipe's {ours[key]}"
            raise SourceError(f"'{folder}' holds another architecture: {fact}", hint=hint)
