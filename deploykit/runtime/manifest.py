"""The manifest of a bundle (schema ``deploykit.bundle/1``): what it holds, how to feed it, what was measured.

`Card` is the part that belongs to the encoder and not to any variant; the export step writes it as ``card.json`` and
the bundle copies it into ``manifest.json``. Everything is frozen data; `from_json` refuses unknown or missing keys and
wrong types with a `BundleError` that names the key.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from deploykit.runtime.errors import BundleError

SCHEMA = "deploykit.bundle/1"
MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"

Modality = Literal["text", "image", "audio", "tensor"]
T = TypeVar("T")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph; an axis is a size, or a name where it is dynamic.

    Axis names in use: ``batch``, ``length`` (tokens), ``height``, ``width``, ``samples`` (waveform), ``frames``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Embedding:
    """How the vector was made. ``pooling`` is a word for people: the graph already holds it."""

    output: str
    dim: int
    pooling: str
    normalized: bool


@dataclass(frozen=True)
class Limits:
    """Bounds that the runtime enforces before the engine sees an input.

    ``axes`` maps the name of a dynamic axis to its (smallest, largest) proven size.
    """

    axes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """The encoder card: modality, tensors, embedding and preprocessing of one encoder.

    ``preprocess`` is {"kind": "text" | "image" | "audio" | "none", …options of that preprocessor…}; file names in it
    are relative to the bundle's root (``preprocess/tokenizer.json``). ``provenance`` says where the weights came from.
    """

    name: str
    modality: Modality
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    embedding: Embedding
    preprocess: dict[str, Any]
    limits: Limits = field(default_factory=Limits)
    provenance: dict[str, Any] = field(default_factory=dict)


#: The key of `Variant.lowered` that says of a precision that a vector changes with the rest of its batch.
BATCH_DEPENDENT = "batch_dependent"


@dataclass(frozen=True)
class Variant:
    """One artefact of a bundle: an engine, a precision, a file, and the evidence.

    ``settings`` go to the engine as they are (for OpenVINO: ``INFERENCE_PRECISION_HINT``). ``requires`` is what the
    device must have. ``proof``, ``audit``, ``latency`` and ``drift`` are what was measured when it was built, and
    ``lowered`` what was done to its graph.
    """

    name: str
    target: str
    precision: str
    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    requires: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    lowered: dict[str, Any] = field(default_factory=dict)

    @property
    def batch_dependent(self) -> bool:
        """Whether a vector changes with what else is in its batch: never a default where another variant will do."""
        return bool(self.lowered.get(BATCH_DEPENDENT))


@dataclass(frozen=True)
class SelfTest:
    """Raw inputs and the vectors that they must give: ``min_cosine`` per variant name."""

    inputs: str
    reference: str
    min_cosine: dict[str, float]


@dataclass(frozen=True)
class FileEntry:
    """Digest (hex) and size in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    ``refused`` keeps the variants that were asked for and did not pass, with the reason; ``candidates`` all that passed
    their proof, those that were not taken among them: figures, and why or why not. ``portable`` is False, and written,
    only where the portable fp32 model was left out on demand.
    """

    schema: str
    card: Card
    variants: tuple[Variant, ...]
    selftest: SelfTest
    files: dict[str, FileEntry]
    default: str = ""
    refused: tuple[dict[str, Any], ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    portable: bool = True

    def variant(self, name: str) -> Variant:
        """The variant of that name; `BundleError` lists what there is when it is absent."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        have = ", ".join(v.name for v in self.variants)
        raise BundleError(f"the bundle has no variant '{name}'", hint=f"it has: {have}")


def to_json(value: Any) -> Any:
    """Plain JSON data for any dataclass of this module."""
    return dataclasses.asdict(value)


def from_json(cls: type[T], data: Any, where: str = "manifest") -> T:
    """Build dataclass ``cls`` from parsed JSON; a `BundleError` names the path of the first wrong key."""
    return typing.cast(T, _convert(cls, data, where))


def _convert(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _convert_dataclass(kind, data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is Literal:
        if data not in args:
            raise BundleError(f"{where} is {data!r}", hint=f"it must be one of {', '.join(map(repr, args))}")
        return data
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, data, where)
    if origin is tuple:
        return _convert_tuple(args, data, where)
    if origin is dict:
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object", data)
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise _wrong(where, kind.__name__, data)
    return data


def _convert_dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong(where, "an object", data)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise BundleError(f"{where} has the unknown key '{key}'", hint="was the bundle made by a newer deploykit?")
    values = {}
    for name, spec in fields.items():
        if name in data:
            values[name] = _convert(hints[name], data[name], f"{where}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise BundleError(f"{where} lacks the key '{name}'", hint="the bundle is damaged: build or fetch it again")
    return cls(**values)


def _convert_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _convert(kind, data, where)
        except BundleError:
            continue
    raise _wrong(where, " or ".join(getattr(k, "__name__", str(k)) for k in kinds), data)


def _convert_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _wrong(where, "a list", data)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(data) != len(args):
        raise _wrong(where, f"a list of {len(args)}", data)
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(args, data, strict=True)))


def _wrong(where: str, want: str, data: Any) -> BundleError:
    return BundleError(f"{where} must be {want}, and is {type(data).__name__}", hint="the manifest is damaged")
