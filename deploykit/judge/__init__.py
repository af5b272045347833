"""The second judge: raw inputs through the public call of the library that a model comes from, beside our own vectors.

The proof (`deploykit.graph.prove`) holds every engine against our reading of a folder, so it cannot see a folder that
was misread: the wrong pooling, a lost prompt, a picture that is not turned. Here the library itself reads the folder
and the files. Nothing of `deploykit.sources` is known here.

One file per library, ``judge/LIBRARY.py``::

    def open(location: str, choices: Choices) -> Library    # `NotJudged` where the library has no means for a choice
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.errors import DeploykitError

LIBRARIES = {
    "sentence-transformers": "sentence_transformers",
    "transformers": "transformers",
    "timm": "timm",
}
"""The library that reads a kind of source; the module to import has the name of the file here."""

NOT_INSTALLED = "is not installed"

_NO_LIBRARY = {
    "onnx": "an ONNX file names no library that made it; the proof compares with the original file in onnxruntime",
    "exported-program": "a .pt2 names no library that made it; the proof compares with the program itself",
    "module": "the module of a Python factory belongs to no library; the proof compares with the module itself",
    "torchscript": "TorchScript belongs to no library; the proof compares with the scripted module itself",
    "state-dict": "the class of bare weights belongs to no library; the proof compares with the module itself",
    "peft": "the adapter is merged here; the proof compares with the merged model",
    "checkpoint": "no other library reads a deploykit checkpoint",
}


class NotJudged(DeploykitError):
    """The library has no means to answer; the message is the reason."""


@dataclass(frozen=True)
class Raw:
    """One raw input: a text or the path of a file, what messages call it, and the prompt's name for a text."""

    name: str
    value: str | Path
    prompt: str | None = None


@dataclass(frozen=True)
class Choices:
    """What a folder leaves open and the export decided, or what was asked for; the library reads everything else.

    ``pooling`` is the word of the card, ``asked_pooling`` what was asked for. ``longest`` is the longest text in tokens
    that the export takes (None: no text). ``max_length`` and ``fixed_length`` are what was asked for: a width that the
    export chose by itself is not the library's. ``prompts`` are those that were asked for, ``route`` the
    way through a Router.
    """

    modality: str
    pooling: str
    asked_pooling: str | None = None
    tower: str | None = None
    route: str | None = None
    dim: int | None = None
    normalize: bool | None = None
    longest: int | None = None
    max_length: int | None = None
    fixed_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    trust_remote_code: bool = False


class Library(Protocol):
    """A model as its own library loads and calls it, in float32, one input at a time: nothing is padded for others.

    ``call`` is the public call in words, ``overridden`` what was applied beside the folder's own settings, ``prompts``
    those that it knows, by name. A method raises whatever the library does where it cannot run an input.
    """

    name: str
    version: str
    call: str
    overridden: tuple[str, ...]
    prompts: Mapping[str, str]

    def encode(self, raw: Raw) -> np.ndarray:
        """The vector, float [dim]."""

    def decoded(self, raw: Raw) -> np.ndarray | None:
        """What a file holds: uint8 [height, width, 3], or float samples; None for a text."""

    def tensors(self, raw: Raw) -> dict[str, np.ndarray]:
        """What the model is given, with a batch axis of 1."""

    def hidden(self, raw: Raw) -> np.ndarray | None:
        """The last hidden state, with a batch axis of 1; None for a model that shows none."""


def why_not(kind: str, preprocess: str | None) -> str:
    """Why a source of ``kind`` is not judged here; empty where it is. Nothing is imported."""
    if kind not in LIBRARIES:
        return _NO_LIBRARY.get(kind, f"no library is known that reads a source of kind {kind}")
    if preprocess == "none":
        return "preprocessing is left to the caller, so there are no raw inputs"
    if importlib.util.find_spec(LIBRARIES[kind]) is None:
        return f"{kind} {NOT_INSTALLED}"
    return ""


def open_library(kind: str, location: str, choices: Choices) -> Library:
    """Load what is at ``location`` with the library of that kind; `NotJudged` where it does not load."""
    module = importlib.import_module(f"{__name__}.{LIBRARIES[kind]}")
    try:
        library: Library = module.open(location, choices)
    except NotJudged:
        raise
    except Exception as error:  # a library raises anything, and a folder that it cannot load has no second reading
        raise NotJudged(f"{kind} cannot load it: {first_line(error)}") from error
    return library


def first_line(error: BaseException) -> str:
    """The first line of a message that may be pages long, with its type."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}"[:300]


def flat(tensor: Any) -> np.ndarray:
    """A vector [1, dim] of torch as float64 [dim]."""
    vector: np.ndarray = tensor.detach().float().numpy().astype(np.float64).reshape(-1)
    return vector
