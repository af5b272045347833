"""Files in, vectors out: gathers inputs, encodes them in pieces, writes ``.npy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deploykit import data, output
from deploykit.data import Dataset, texts
from deploykit.errors import InputError
from deploykit.runtime.manifest import Modality

if TYPE_CHECKING:
    import numpy as np

    from deploykit.runtime import Encoder

STDIN = "-"
# Large enough that sorting by length pays, small enough that memory and the progress line stay in hand.
_PIECE = 4096


def gather(specs: Sequence[str], modality: Modality, *, column: str | None, stdin: BinaryIO) -> Dataset:
    """All inputs that ``specs`` name, in order; ``-`` is ``stdin``, one text a line. ``column`` is for every table.

    `InputError` for what is not there, is empty, or is not what an encoder of ``modality`` takes.
    """
    inputs: list[Any] = []
    for spec in specs:
        found = _read(spec, modality, column, stdin)
        if found.modality != modality:
            raise InputError(
                f"the bundle encodes {_PLURAL[modality]}, and '{spec}' holds {_PLURAL[found.modality]}",
                hint="give a bundle of that kind",
            )
        inputs += found.inputs
    return Dataset(", ".join(specs), modality, inputs)


def encode(
    encoder: Encoder, inputs: Sequence[Any], *, kind: str | None, on_progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Vectors float32 [n, dim] in the order of ``inputs``; ``on_progress`` hears how many are done.

    `InputError` says which of ``inputs``, counted from 0, is the first that cannot be encoded.
    """
    import numpy as np

    pieces = []
    for start in range(0, len(inputs), _PIECE):
        piece = inputs[start : start + _PIECE]
        try:
            pieces.append(encoder.encode(list(piece), kind=kind))
        except InputError as error:
            raise _placed(error, encoder, inputs, start, kind) from error
        on_progress(start + len(piece))
    return np.concatenate(pieces)


def _placed(error: InputError, encoder: Encoder, inputs: Sequence[Any], start: int, kind: str | None) -> InputError:
    """The same error with the place among all inputs: the encoder counts within the piece that begins at ``start``."""
    first, last = start, min(start + _PIECE, len(inputs))
    single = _failure(encoder, inputs[first:last], kind)
    while last - first > 1 and single is not None:
        middle = (first + last) // 2
        before = _failure(encoder, inputs[first:middle], kind)
        first, last = (first, middle) if before is not None else (middle, last)
        single = before or _failure(encoder, inputs[first:last], kind)
    if single is None or (start == 0 and single.message == error.message):  # true of all, or it names a file
        return error
    return InputError(f"of {len(inputs)} inputs, number {first} fails: {single.message}", hint=single.hint)


def _failure(encoder: Encoder, inputs: Sequence[Any], kind: str | None) -> InputError | None:
    try:
        encoder.encode(list(inputs), kind=kind)
    except InputError as error:
        return error
    return None


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before the work is done for nothing."""
    if path.suffix != ".npy":
        raise InputError(f"vectors are written as .npy, and the output is '{path}'", hint=f"call it {path.name}.npy")
    output.check_output(path, "vectors.npy")


def save(vectors: np.ndarray, path: Path) -> None:
    """Write ``vectors`` to ``path`` in one rename: a reader sees the old file or the whole new one."""
    import numpy as np

    with output.replacing(path) as file:
        np.save(file, vectors, allow_pickle=False)


_PLURAL: dict[Modality, str] = {"text": "texts", "image": "images", "audio": "sounds", "tensor": "tensors"}


def _read(spec: str, modality: Modality, column: str | None, stdin: BinaryIO) -> Dataset:
    if spec == STDIN:
        lines = tuple(texts.numbered("stdin", stdin.read()))
        if not lines:
            raise InputError(
                "nothing came in on stdin", hint="pipe texts in, one a line: echo 'hello' | deploykit embed …"
            )
        return Dataset("stdin", "text", lines)
    if modality == "text" and " " in spec.strip() and not Path(spec).exists():
        hint = "to embed a text itself, pipe it in: echo 'the text' | deploykit embed BUNDLE -"
        raise InputError(f"there is no file '{spec}'", hint=hint)
    if column is not None and "#" not in spec and Path(spec).suffix.lower() in data.TABLE_SUFFIXES:
        return data.read(f"{spec}#{column}")
    return data.read(spec)
