"""Texts padded as the model was trained on them, where its vectors depend on that.

Most encoders see no padding, behind a mask. Some were trained on rows of one width and without a mask, or pool at a
fixed place of the row (SigLIP's texts: the last one), and another width gives them other vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options, _folder
from deploykit.sources._assemble import UNCHANGED, explained

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deploykit.sources._text import TextInput

_FILES = ("processor_config.json", "tokenizer_config.json", "preprocessor_config.json")
_BLANKS = 6
"""Padded places of the row that is tried; one at the end and one inside are compared."""


@dataclass(frozen=True)
class Published:
    """How the processor pads and cuts texts if its caller says nothing: ``width`` of every row, ``longest`` text.

    ``full`` is the longest text that the model takes, as its other files say it.
    """

    width: int | None = None
    longest: int | None = None
    full: int | None = None


def published(folder: Path, tokenizer: Any, kind: str) -> Published:
    """The defaults of the processor's class in transformers, below those of the tokenizer's own files.

    ``kind`` is the ``model_type``, for folders that name no class.
    """
    settings = dict(_settings_of_class(_processor_class(folder, kind)))
    settings |= {key: value for key, value in tokenizer.init_kwargs.items() if key in ("padding", "truncation")}
    width = settings.get("max_length")
    longest = width if isinstance(width, int) and settings.get("truncation") else None
    if settings.get("padding") != "max_length":
        return Published(None, longest)
    if not isinstance(width, int):
        width = int(tokenizer.model_max_length)
    return Published(width if width < 10**6 else None, longest)


def _processor_class(folder: Path, kind: str) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    tables = (_folder.read_table(folder / name) for name in _FILES if (folder / name).exists())
    named = next((found["processor_class"] for found in tables if found.get("processor_class")), None)
    name = named or PROCESSOR_MAPPING_NAMES.get(kind) or PROCESSOR_MAPPING_NAMES.get(kind.removesuffix("_text_model"))
    return getattr(transformers, name, None) if isinstance(name, str) else None


def _settings_of_class(kind: Any) -> Mapping[str, Any]:
    found = getattr(kind, "text_kwargs", None)
    if not isinstance(found, Mapping):  # where older versions keep them
        found = getattr(getattr(kind, "valid_processor_kwargs", None), "_defaults", {}).get("text_kwargs", {})
    return found if isinstance(found, Mapping) else {}


def as_published(
    name: str, encode: nn.Module, given: TextInput, options: Options, publisher: Published | None, *, by_itself: bool
) -> TextInput:
    """``given``, padded to one width where its publisher does and the vectors depend on it.

    ``by_itself``: the model pools by itself, and may do so at a fixed place of the row. Raises `SourceError` where
    texts are to be cut below that width.
    """
    if given.fixed:
        return given
    publisher = publisher or Published()
    width, why = publisher.width, "its processor does so, and its vectors depend on it"
    if width is None and by_itself and pools_at_the_end(name, encode, given):
        width, why = publisher.full or given.max_length, "it pools at the last place of a row"
    elif width is None or not _changes(name, encode, given, width):
        return given
    if options.max_length is not None and options.max_length != width:
        raise SourceError(
            f"max_length {options.max_length} is not possible: {name} pads every text to {width} tokens ({why})",
            hint="leave it out; fixed_length sets another width for all",
        )
    note = f"every text is padded to {width} tokens, as the model was trained: {why}"
    return replace(given, fixed=True, max_length=width, notes=(*given.notes, note))


def _changes(name: str, encode: nn.Module, given: TextInput, width: int) -> bool:
    """Whether padding to ``width``, with a mask or without as the tokenizer gives it, changes a short text's vector."""
    import torch

    alone = _row(given, 0, [])
    padded = _row(given, width - alone["input_ids"].shape[1], [])
    with explained(name, padded), torch.inference_mode():
        one, other = encode(**alone).double(), encode(**padded).double()
    return torch.nn.functional.cosine_similarity(one, other).item() <= UNCHANGED


def pools_at_the_end(name: str, encode: nn.Module, given: TextInput) -> bool:
    """Whether the vector is that of the last place of the row, be it padding: other padding places do not matter."""
    import torch

    masked = replace(given, masked=True)
    if given.max_length < _BLANKS + 2:
        return False
    rows = [_row(masked, _BLANKS, changed) for changed in ([], [-1], [-3])]
    with explained(name, rows[0]), torch.inference_mode():
        plain, end, inside = (encode(**row) for row in rows)
    return torch.allclose(plain, inside, atol=1e-5) and not torch.allclose(plain, end, atol=1e-5)


def _row(given: TextInput, blanks: int, changed: Sequence[int]) -> dict[str, torch.Tensor]:
    """A short text and ``blanks`` places of padding behind it; those ``changed`` hold a token instead, masked still."""
    import torch

    count = min(max(2, len(given.prefix) + len(given.suffix) + 1), given.max_length)
    text = replace(given, masked=False, fixed=False).make(1, {"length": count}, 0)["input_ids"]
    padding = torch.full((1, max(0, blanks)), given.pad_id)
    ids = torch.cat([padding, text] if given.padding_side == "left" else [text, padding], dim=1)
    for place in changed:
        ids[0, place] = text[0, len(given.prefix)]
    if not given.masked:
        return {"input_ids": ids}
    real = [torch.zeros_like(padding), torch.ones_like(text)]
    mask = torch.cat(real if given.padding_side == "left" else real[::-1], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


def width_of_graph(home: Path, specs: Sequence[TensorSpec]) -> int | None:
    """The one width of an ONNX model's texts: its own, or what tokenizer.json pads to where no mask marks padding."""
    shape = next(spec.shape for spec in specs if spec.name == "input_ids")
    if len(shape) == 2 and isinstance(shape[1], int):
        return shape[1]
    padding = _folder.read_table(home / "tokenizer.json").get("padding")
    if not isinstance(padding, Mapping) or any(spec.name == "attention_mask" for spec in specs):
        return None
    strategy = padding.get("strategy")
    if isinstance(strategy, Mapping) and isinstance(strategy.get("Fixed"), int):
        return int(strategy["Fixed"])
    if padding.get("pad_to_multiple_of"):
        raise SourceError(
            f"{home / 'tokenizer.json'} pads to a multiple of {padding['pad_to_multiple_of']} tokens, and no mask "
            "tells the model what is padding",
            hint="export the model again with an attention_mask",
        )
    return None
