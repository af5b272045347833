"""Bundles, or vectors in files, against each other: encode the data with both, compare, judge, and say where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import data, runtime, vectors
from deploykit.budget import Budget
from deploykit.data import Dataset
from deploykit.drift.comparison import Drift, Size, compare
from deploykit.drift.judging import Verdict, check_budget, verdict
from deploykit.drift.where import Where, check, where
from deploykit.errors import CheckError, InputError, MissingError
from deploykit.output import write_text
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.loading import split_variant
from deploykit.runtime.manifest import Card, Modality, TensorSpec
from deploykit.runtime.preprocess import open_preprocessor

if TYPE_CHECKING:
    from deploykit.runtime.manifest import Variant

SCHEMA = "deploykit.drift/1"
VECTORS_SUFFIX = ".npy"

_PLURAL: dict[Modality, str] = {"text": "texts", "image": "images", "audio": "sounds", "tensor": "tensors"}
_WORST_FOR_WHERE = 4
# Preprocessed at once to learn their sizes: texts are small, images are not.
_PIECE = {"text": 4096}


@dataclass(frozen=True)
class Side:
    """Reference or candidate: what was asked for, what ran, and the digest of its bundle (empty for vectors)."""

    name: str
    runs: str
    digest: str = ""


@dataclass(frozen=True)
class Result:
    """What a comparison found. ``size`` names what the buckets count (tokens, height x width)."""

    reference: Side
    candidate: Side
    data: str
    size: str
    drift: Drift
    verdict: Verdict | None = None
    where: Where | None = None
    where_note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, schema ``deploykit.drift/1``."""
        return {
            "schema": SCHEMA,
            "reference": vars(self.reference),
            "candidate": vars(self.candidate),
            "data": self.data,
            "size": self.size,
            "drift": self.drift.to_json(),
            "verdict": self.verdict.to_json() if self.verdict else None,
            "where": self.where.to_json() if self.where else None,
            "where_note": self.where_note,
        }


@dataclass(frozen=True)
class Choices:
    """How to compare. ``labels`` None: where the data has them; True: it must. ``where`` None: when the budget fails;
    True: always. ``kind`` picks a prompt; ``threads`` None: every core.
    """

    budget: Budget | None = None
    labels: bool | None = None
    where: bool | None = None
    kind: str | None = None
    threads: int | None = None


@dataclass(frozen=True)
class _Encoded:
    """Vectors float32 [n, dim], and the bundle and variant that made them, unless a file held them."""

    side: Side
    vectors: np.ndarray
    bundle: Bundle | None = None
    variant: Variant | None = None


def drift(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    choices: Choices | None = None,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Result:
    """Compare two bundles (``NAME.bundle@variant``), or ``.npy`` files of vectors, over the data that ``source`` names.

    ``source`` may be left out when both are vectors. `InputError` says what does not fit together, `CheckError` names
    the first vector that is not finite.
    """
    choices = choices or Choices()
    if choices.budget:
        check_budget(choices.budget)
    specs = (os.fspath(reference), os.fspath(candidate))
    if source is None and not all(_is_vectors(spec) for spec in specs):
        raise InputError("a bundle needs data to encode", hint="name it: --data texts.txt")
    found = None if source is None else _labelled(data.read(os.fspath(source)), choices.labels)
    if found is None and choices.labels:
        raise InputError("labels were asked for, and there is no data to hold them", hint="name it with --data")
    named = list(zip(("reference", "candidate"), specs, strict=True))
    for word, spec in named:
        _check(spec, word, found)
    sides = []
    for word, spec in named:
        on_progress(f"encoding with the {word}")
        sides.append(_vectors(spec, word, found, choices, on_progress))
    before, after = sides
    _refuse_same(before, after, specs)
    size, sizes = _sizes(before.bundle or after.bundle, found, choices.kind, on_progress)
    on_progress("comparing")
    result = compare(
        before.vectors,
        after.vectors,
        inputs=found.inputs if found else None,
        labels=found.labels if found else None,
        pairs=found.pairs if found else None,
        sizes=sizes,
    )
    judged = verdict(result, choices.budget) if choices.budget else None
    place, note = _where(after, result, found, judged, choices, on_progress)
    return Result(before.side, after.side, found.name if found else "", size, result, judged, place, note)


def save(result: Result, path: Path) -> None:
    """Write the result as JSON in one rename."""
    write_text(path, dumps(result.to_json(), indent=1, ensure_ascii=False, default=str) + "\n")


def _is_vectors(spec: str) -> bool:
    return spec.endswith(VECTORS_SUFFIX)


def _labelled(found: Dataset, labels: bool | None) -> Dataset:
    """The data with its labels and pairs, or without where they are not wanted."""
    if labels is False:
        return Dataset(found.name, found.modality, found.inputs)
    if labels and found.labels is None and found.pairs is None:
        hint = "name them: FILE#text=COLUMN,label=COLUMN, FILE#a=COLUMN,b=COLUMN,score=COLUMN, or use class folders"
        raise InputError(f"labels were asked for, and '{found.name}' has none", hint=hint)
    return found


def _check(spec: str, word: str, found: Dataset | None) -> None:
    """What can be known of a side before either is encoded: the file, the variant, the modality."""
    if _is_vectors(spec):
        _read(Path(spec), word, found)
        return
    assert found is not None
    place, name = split_variant(spec)
    bundle = Bundle.open(place)
    if name is not None:
        bundle.variant(name)
    modality = bundle.manifest.card.modality
    if modality != found.modality:
        raise InputError(
            f"the {word} '{spec}' encodes {_PLURAL[modality]}, and '{found.name}' holds {_PLURAL[found.modality]}",
            hint=f"give --data with {_PLURAL[modality]}",
        )


def _vectors(
    spec: str, word: str, found: Dataset | None, choices: Choices, on_progress: Callable[[str], None]
) -> _Encoded:
    if _is_vectors(spec):
        return _Encoded(Side(spec, "vectors from a file"), _read(Path(spec), word, found))
    assert found is not None
    total = len(found)
    with runtime.load(spec, threads=choices.threads) as encoder:
        rows = vectors.encode(
            encoder,
            found.inputs,
            kind=choices.kind,
            on_progress=lambda done: on_progress(f"encoding with the {word}: {done:,} of {total:,}"),
        )
        name = f"{split_variant(spec)[0]}@{encoder.variant.name}"
        return _Encoded(
            Side(name, _running(encoder.effective), encoder.bundle.digest), rows, encoder.bundle, encoder.variant
        )


def _running(effective: Mapping[str, Any]) -> str:
    """What an engine says of itself that may move a vector."""
    said = {key: str(effective[key]) for key in ("engine", "version", "device", "precision") if key in effective}
    return f"{said.pop('engine', '')} {', '.join(f'{key} {value}' for key, value in said.items())}".strip()


def _read(path: Path, word: str, found: Dataset | None) -> np.ndarray:
    """The vectors in a file, float32 [n, dim], as many as the data has inputs."""
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", hint="`deploykit embed` writes vectors: -o vectors.npy")
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"'{path}' holds no vectors: {error}", hint="`deploykit embed -o` writes them") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        shape = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "several arrays"
        raise InputError(f"'{path}' holds {shape}", hint="give floating-point vectors [n, dim]")
    if found is not None and len(rows) != len(found):
        raise InputError(
            f"the {word} '{path}' holds {len(rows):,} vectors, and '{found.name}' {len(found):,} inputs",
            hint="give the data that was embedded, whole and in its order",
        )
    return np.asarray(rows, np.float32)


def _refuse_same(before: _Encoded, after: _Encoded, specs: tuple[str, str]) -> None:
    """Two names for one variant say nothing, unless it was named twice on purpose."""
    same = (
        before.bundle and after.bundle and before.side.digest == after.side.digest and before.variant == after.variant
    )
    if same and not all(split_variant(spec)[1] for spec in specs):
        raise InputError(
            f"reference and candidate are the same: '{before.side.name}' is what '{specs[0]}' chooses here",
            hint=f"name the variants: {split_variant(specs[0])[0]}@portable is the fp32 reference",
        )


def _sizes(
    bundle: Bundle | None, found: Dataset | None, kind: str | None, on_progress: Callable[[str], None]
) -> tuple[str, list[Size] | None]:
    """What varies in an input's size, and each input's; None where nothing varies or no bundle can tell."""
    if bundle is None or found is None:
        return "", None
    axes = _dynamic(bundle.manifest.card)
    if axes is None:
        return "", None
    spec, places = axes
    on_progress("measuring the inputs")
    preprocessor = open_preprocessor(bundle.manifest.card, bundle.root)
    sizes: list[Size] = []
    for piece in _pieces(found):
        for item in preprocessor.items(piece, kind=kind):
            shape = item.tensors[spec.name].shape
            sizes.append(shape[places[0]] if len(places) == 1 else (shape[places[0]], shape[places[1]]))
    names = [str(spec.shape[place + 1]) for place in places]
    return "tokens" if found.modality == "text" else " x ".join(names), sizes


def _dynamic(card: Card) -> tuple[TensorSpec, list[int]] | None:
    """The first input with axes that vary besides the batch, and which (at most two), counted without the batch."""
    for spec in card.inputs:
        places = [place for place, axis in enumerate(spec.shape[1:]) if isinstance(axis, str)]
        if places:
            return spec, places[:2]
    return None


def _pieces(found: Dataset) -> Iterator[Sequence[Any]]:
    step = _PIECE.get(found.modality, 64)
    for start in range(0, len(found), step):
        yield list(found.inputs[start : start + step])


def _where(
    after: _Encoded,
    result: Drift,
    found: Dataset | None,
    judged: Verdict | None,
    choices: Choices,
    on_progress: Callable[[str], None],
) -> tuple[Where | None, str]:
    """Where the drift enters, or why that was not looked at; asked for and impossible is an `InputError`."""
    failed = judged is not None and judged.status == "FAIL"
    if choices.where is False or not (choices.where or failed):
        return None, ""
    if after.bundle is None or after.variant is None or found is None:
        if choices.where:
            raise InputError("--where needs a candidate that is a bundle", hint="vectors in a file have no layers")
        return None, "where it enters cannot be told: the candidate is vectors in a file"
    try:
        check(after.bundle, after.variant)
        on_progress("looking for where it enters")
        inputs = [found.inputs[worst.index] for worst in result.worst[:_WORST_FOR_WHERE]]
        return where(after.bundle, after.variant, inputs, kind=choices.kind, threads=choices.threads), ""
    except (InputError, MissingError, CheckError) as error:
        if choices.where:
            raise
        return None, f"where it enters cannot be told: {error.message}"
