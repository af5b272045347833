"""Reads inputs to embed, calibrate and evaluate with, from files, folders, or sets that deploykit brings along.

::

    texts.txt                  one text a line; line n is input n, blank lines included
    rows.jsonl                 one object (or one string) a line
    rows.csv, rows.tsv         with a header, or none when the column is given as a number from 1
    rows.parquet               needs pyarrow
    folder/                    images, or sounds; the folders directly below it are the labels where there are any
    photo.jpg, voice.wav       one input
    tensors.npz                ready tensors by input name, the first axis counts the inputs
    builtin:NAME               sentences, images, tones, digits

Columns are named after a ``#``: ``rows.csv#text=body,label=topic``, or in short ``rows.csv#body``. Scored pairs
name two: ``rows.tsv#a=6,b=7,score=5``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, nearest
from deploykit.runtime.manifest import Modality

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff")
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
SUFFIXES = (".txt", *TABLE_SUFFIXES, ".npz", *IMAGE_SUFFIXES, *AUDIO_SUFFIXES)


@dataclass(frozen=True)
class Dataset:
    """Inputs in their order, as an `Encoder` takes them.

    A text is a ``str``; an image a `Path`, encoded ``bytes`` or uint8 [height, width, 3]; a waveform a `Path`, encoded
    ``bytes`` or float32 [samples]; a tensor input a dict of arrays without the batch axis. ``labels`` are as many.
    ``pairs`` are (place, place, score): how alike people found two of the inputs.
    """

    name: str
    modality: Modality
    inputs: Sequence[Any]
    labels: Sequence[Any] | None = None
    pairs: Sequence[tuple[int, int, float]] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, places: Sequence[int]) -> Dataset:
        """The inputs at ``places`` with their labels; scored pairs stay where both of their inputs do."""
        new = {place: i for i, place in enumerate(places)}
        labels = None if self.labels is None else [self.labels[place] for place in places]
        pairs = None
        if self.pairs is not None:
            pairs = [(new[a], new[b], score) for a, b, score in self.pairs if a in new and b in new]
        return Dataset(self.name, self.modality, [self.inputs[place] for place in places], labels, pairs)


def read(spec: str | Path) -> Dataset:
    """Read what ``spec`` names (see the module's table); an `InputError` says what is wrong with it."""
    text = str(spec)
    if text.startswith("builtin:"):
        from deploykit.data import builtin

        return builtin.read(text.removeprefix("builtin:"))
    path, columns = split(text)
    if path.is_dir():
        from deploykit.data import folders

        return folders.read(path)
    if not path.exists():
        raise InputError(f"there is no file or folder '{path}'", hint=_beside(path))
    return _read_file(path, columns)


def _read_file(path: Path, columns: dict[str, str]) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        from deploykit.data import tables

        return tables.read(path, columns)
    if columns:
        raise InputError(f"'{path.name}' has no columns", hint=f"columns belong to {', '.join(TABLE_SUFFIXES)}")
    if suffix == ".txt":
        from deploykit.data import texts

        return Dataset(path.name, "text", texts.lines(path))
    if suffix == ".npz":
        from deploykit.data import tensors

        return tensors.read(path)
    if suffix in IMAGE_SUFFIXES:
        return Dataset(path.name, "image", (path,))
    if suffix in AUDIO_SUFFIXES:
        return Dataset(path.name, "audio", (path,))
    raise InputError(f"'{path.name}' is of no kind that can be read", hint=f"readable: {', '.join(SUFFIXES)}, a folder")


def split(spec: str) -> tuple[Path, dict[str, str]]:
    """The path, and the columns named after the last ``#`` (unless a file really is called that)."""
    if Path(spec).exists() or "#" not in spec:
        return Path(spec).expanduser(), {}
    path, _, part = spec.rpartition("#")
    columns = {}
    for item in part.split(","):
        role, equals, column = item.partition("=")
        columns[role.strip() if equals else "input"] = (column if equals else role).strip()
    if "" in columns or "" in columns.values():
        raise InputError(
            f"the columns '{part}' cannot be read", hint="write FILE#column, or FILE#text=column,label=column"
        )
    return Path(path).expanduser(), columns


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"nor is there a folder '{folder}'"
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in SUFFIXES)
    hint = nearest(path.name, names)
    return hint if hint.startswith("did you mean") else f"looked in {folder.resolve()}"
