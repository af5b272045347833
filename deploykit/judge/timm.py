"""timm as judge: its model and its evaluation transform; files are opened as its own readers open them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.judge import Choices, Library, Raw, flat

NAME = "timm"
_GLOBAL_POOL = {"mean": "avg", "cls": "token", "max": "max"}
"""timm's words for the poolings that can be asked for."""


def open(location: str, choices: Choices) -> Library:
    """Create the model named by ``timm:NAME``, and the transform that belongs to it."""
    import timm

    changes: dict[str, Any] = {}
    if choices.asked_pooling not in (None, "pooler"):
        changes["global_pool"] = _GLOBAL_POOL[str(choices.asked_pooling)]
    model = timm.create_model(location.removeprefix("timm:"), pretrained=True, num_classes=0, **changes).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    return _Encoder(model, transform, choices, str(timm.__version__))


class _Encoder:
    """See `Library`."""

    name = NAME
    call = "Image.open(path).convert('RGB'), timm.data.create_transform, timm.create_model(name)"

    def __init__(self, model: Any, transform: Any, choices: Choices, version: str) -> None:
        self._model, self._transform, self._choices, self.version = model, transform, choices, version
        asked = {"pooling": choices.asked_pooling, "dim": choices.dim, "normalize": choices.normalize}
        self.overridden = tuple(f"{name} {value}" for name, value in asked.items() if value is not None)
        self.prompts: Mapping[str, str] = {}

    def encode(self, raw: Raw) -> np.ndarray:
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            vector = self._model(self._pixels(raw)).flatten(1)[:, : self._choices.dim]
        return flat(normalize(vector, dim=-1) if self._choices.normalize else vector)

    def decoded(self, raw: Raw) -> np.ndarray | None:
        return np.asarray(_opened(raw))

    def tensors(self, raw: Raw) -> dict[str, np.ndarray]:
        return {"pixel_values": np.asarray(self._pixels(raw))}

    def hidden(self, raw: Raw) -> np.ndarray | None:
        return None

    def _pixels(self, raw: Raw) -> Any:
        return self._transform(_opened(raw)).unsqueeze(0)


def _opened(raw: Raw) -> Any:
    from PIL import Image

    with Image.open(raw.value) as image:
        return image.convert("RGB")
