"""Options that a source cannot honour are refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from deploykit.errors import SourceError
from deploykit.sources import Options

_OF_EVERY_SOURCE = ("kind", "trust_remote_code", "revision")
_WHERE = {
    "max_length": "it is the longest text in tokens, or the longest sound in samples",
    "fixed_length": "it counts the tokens of a text encoder",
    "tower": "it picks one encoder of a model that has several, as CLIP has",
    "route": "it picks one encoder of a sentence-transformers folder with a router",
    "preprocess": "only what brings preprocessing of its own can leave it to the caller",
    "prompts": "they are put before texts by a text encoder with a tokenizer",
    "architecture": "it names the class of bare weights",
    "init": "it holds the arguments of the class of bare weights",
    **dict.fromkeys(("image", "audio", "text"), "it says what a module of your own takes"),
    **dict.fromkeys(("resize", "resample", "mean", "std"), "it goes with image, for a module of your own"),
    "bind": "it makes inputs of an .onnx constants",
    "output_name": "it picks one of the outputs of an .onnx",
    "axes": "it is for what takes preprocessed tensors; the longest text is max_length",
    "example": "it is for what takes preprocessed tensors",
    "outputs": "only encoders from a transformers or sentence-transformers folder give more than one",
}


def only(options: Options, taken: Collection[str], what: str) -> None:
    """Raise `SourceError` for the first option that is set and not in ``taken``; ``what`` says what the source is."""
    for option in fields(options):
        name = option.name
        if name in taken or name in _OF_EVERY_SOURCE or getattr(options, name) is None:
            continue
        hint = _WHERE.get(name, "it has no effect there")
        raise SourceError(f"'{name}' was asked for, and {what}", hint=f"leave it out: {hint}")
