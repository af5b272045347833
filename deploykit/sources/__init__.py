"""Sources: one file per kind of thing that can be exported.

A file ``sources/KIND.py`` offers three functions::

    def matches(spec: str) -> bool                          # does this spec look like my kind? cheap, no heavy imports
    def identify(spec: str, options: Options) -> Identity   # digest of everything that decides the weights; no torch
    def open(spec: str, options: Options) -> Source         # load it; torch is imported here

`resolve` and `open_source` pick the kind; ``kind`` in the recipe overrides it. Order of trial: `ORDER`, then third
parties. A hub id (``org/name``) is fetched first, and ``package:NAME/folder`` looked up: every kind sees a local path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from deploykit import registry
from deploykit.errors import SourceError
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import torch

ORDER = (
    *("onnx", "exported-program", "torchscript", "module", "timm", "checkpoint", "peft"),
    *("sentence-transformers", "state-dict", "transformers"),
)
_SOURCES = (
    "a source is a folder, a hub id, package:NAME/folder, timm:NAME, py:module:factory, a TorchScript file, .pt2, "
    ".onnx, or weights with --model package.module:Class"
)
_KINDS_OF_FOLDERS = (None, "sentence-transformers", "transformers")


@dataclass(frozen=True)
class Options:
    """What may be overridden for any source; ``None`` means: as the source's own files say.

    ``max_length`` is in tokens (text) or samples (waveforms). ``pooling``: mean, cls, last, max, mean_sqrt_len,
    weighted_mean, pooler (the model's own pooled output), none (the output already is the embedding). ``dim`` keeps the
    first numbers of the embedding alone (Matryoshka representations, Kusupati et al. 2022) before it is normalised.
    ``tower`` picks an encoder of a model that has several (CLIP), ``route`` one of those that a router sends its inputs
    to (query, document). ``fixed_length`` (tokens) gives a text encoder that
    one length alone: texts are padded to it, or cut. ``preprocess`` none leaves preprocessing to the caller: the bundle
    takes the model's own tensors. ``prompts`` are put before texts, by the name that ``encode(kind=…)`` gives: they are
    added to those of the source's own files, and stand in the place of one of the same name. ``outputs`` (such as
    token_embeddings, hidden:-2, pooled:-2, pooler) are given beside the embedding (`deploykit.sources._further`).
    Of an ``.onnx``: ``bind`` makes inputs constants ({"state": "zeros", "sr": "16000"}), ``output_name`` is the output
    that is the embedding. ``axes`` are sizes of dynamic axes ({"length": "1:2048"}, or one size for good), ``example``
    is an ``.npz`` of inputs to prove with: of what takes preprocessed tensors.

    A module of one's own says no more than its code: ``architecture`` is the class of bare weights
    (package.module:Class) and ``init`` its arguments; one of ``image`` (an edge in pixels, or height and width),
    ``audio`` (sampling rate in Hz) and ``text`` (a tokenizer's folder) is what it takes. ``resize`` is the shorter edge
    before the crop, ``resample`` the filter; ``mean`` and ``std`` are per channel, of values of 0 to 1
    (`deploykit.sources._own_inputs`).
    """

    kind: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    max_length: int | None = None
    fixed_length: int | None = None
    dim: int | None = None
    tower: Literal["text", "vision", "audio"] | None = None
    route: str | None = None
    preprocess: Literal["none"] | None = None
    prompts: Mapping[str, str] | None = None
    outputs: tuple[str, ...] | None = None
    architecture: str | None = None
    init: Mapping[str, Any] | None = None
    image: int | tuple[int, ...] | None = None
    resize: int | None = None
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    audio: int | None = None
    text: str | None = None
    bind: Mapping[str, str] | None = None
    output_name: str | None = None
    axes: Mapping[str, str] | None = None
    example: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class Identity:
    """What decides the result of opening a source, found without loading it.

    ``digest`` is for people and for whoever opens the source again; None where it cannot be known beforehand (a Python
    factory may load anything). The store does not rely on it: it looks at what was read (`deploykit.pipeline.reads`).
    ``location`` is the local folder or file, or the spec itself.
    """

    kind: str
    location: str
    digest: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """An encoder ready to be exported.

    ``module`` takes the tensors of ``card.inputs`` as keyword arguments and returns the embedding, float32 [batch,
    dim], with pooling and normalisation inside; where ``card.outputs`` has more, a tuple in that order.
    ``make_inputs(batch, sizes, seed)`` gives such tensors for a batch size and sizes of the other dynamic axes
    ({"length": 7}), with padding in every row but the first where the input has a mask. ``files`` maps names inside
    the bundle (``preprocess/tokenizer.json``) to files to copy; those that opening the source had to write live until
    the process ends. ``sizes`` are the sizes of each dynamic axis that the proof must cover, the largest legal one
    included. ``model_path`` replaces ``module`` where the source is ONNX.
    """

    card: Card
    module: torch.nn.Module | None
    make_inputs: Callable[[int, Mapping[str, int], int], dict[str, torch.Tensor]]
    sizes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path] = field(default_factory=dict)
    license: Path | None = None
    model_path: Path | None = None


def resolve(spec: str, options: Options | None = None) -> Identity:
    """Find what ``spec`` names and the digest of what decides it, without torch.

    Raises `SourceError` when there is no such thing, `MissingError` when a hub or a package is out of reach.
    """
    options = options or Options()
    location = _localize(spec, options)
    identity: Identity = _module(location, options).identify(location, options)
    return identity


def open_source(spec: str, options: Options | None = None) -> Source:
    """Load what ``spec`` names. Raises `SourceError` with the reason when it is no encoder that can be exported."""
    options = options or Options()
    location = _localize(spec, options)
    source: Source = _module(location, options).open(location, options)
    return source


def _module(location: str, options: Options) -> ModuleType:
    from deploykit.sources import _formats

    _formats.refuse_foreign(location)
    if options.kind is not None:
        return registry.module("sources", options.kind)
    if options.architecture is not None and not location.startswith("py:"):
        return registry.module("sources", "state-dict")
    others = [name for name in registry.names("sources") if name not in ORDER]
    for name in (*ORDER, *others):
        module = registry.module("sources", name)
        if module.matches(location):
            return module
    if Path(location).expanduser().is_file():
        raise SourceError(f"'{location}' is a file of a kind that is not read", hint=_SOURCES)
    raise SourceError(f"'{location}' is no file or folder here, and no hub id (org/name)", hint=_SOURCES)


def _localize(spec: str, options: Options) -> str:
    from deploykit.sources import _hub, _package

    if _package.is_package_spec(spec):
        return str(_package.folder_of(spec))
    if options.kind in _KINDS_OF_FOLDERS and _hub.is_hub_id(spec):
        return str(_hub.snapshot(spec, options.revision))
    return spec
