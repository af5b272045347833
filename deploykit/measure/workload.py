"""What is measured: batch x length x concurrency, on real inputs.

Texts are cut, or joined and cut, until the bundle's own tokenizer makes exactly the wanted number of tokens of them:
random ids would have no rare words, and every kernel would see one distribution. Images, sounds and tensors are taken
as they are. A call takes the next inputs of several drawn, so that no cache sees the same one every time.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import data
from deploykit.data import Dataset, tokens
from deploykit.errors import InputError
from deploykit.runtime.manifest import Card
from deploykit.runtime.preprocess import Preprocessor

REAL = "real"
BATCHES, LENGTHS, CONCURRENCY = (1, 8, 32), ("16", "128"), (1,)
BUILTIN = {"text": "builtin:sentences", "image": "builtin:images", "audio": "builtin:tones"}
_PLURAL = {"text": "texts", "image": "images", "audio": "sounds", "tensor": "tensors"}
# Inputs drawn for a point: so many, but 2 batches at the least and 16 at the most.
_DRAWN = 64
_TRIES = 32


@dataclass(frozen=True)
class Point:
    """One place of the grid. ``batch``: inputs in a call; ``length``: tokens of each, None for inputs as they come;
    ``concurrency``: threads that call at once.
    """

    batch: int
    length: int | None
    concurrency: int

    @property
    def name(self) -> str:
        """``b8-l128-c1``."""
        return f"b{self.batch}-l{self.length or REAL}-c{self.concurrency}"


def grid(card: Card, batches: Sequence[int], lengths: Sequence[str] | None, concurrency: Sequence[int]) -> list[Point]:
    """Every combination, in order. ``lengths`` None: the default for texts, as they come for all else.

    `InputError` for a number below 1, for a length that is no number and not ``real``, and for sizes that were not
    proven for this encoder.
    """
    for what, values in (("batch", batches), ("concurrency", concurrency)):
        for value in values:
            if value < 1:
                raise InputError(f"{what} is {value}", hint="give 1 or more")
    sizes = _lengths(card, lengths)
    low, high = card.limits.axes.get("batch", (1, 2**31))
    for batch in batches:
        if not low <= batch <= high:
            raise InputError(f"batch is {batch}, and {low} to {high} was proven for {card.name}", hint="stay inside")
    found = [Point(batch, size, c) for c in concurrency for size in sizes for batch in batches]
    if not found:
        raise InputError("there is nothing to measure", hint="give at least one batch, length and concurrency")
    return list(dict.fromkeys(found))


def read(spec: str | None, card: Card) -> Dataset:
    """The inputs that ``spec`` names, or the builtin set of the encoder's modality; blank texts are left out."""
    if spec is None and card.modality not in BUILTIN:
        hint = "name an .npz with one array per input of the graph: --data tensors.npz"
        raise InputError("there is no builtin data of ready tensors", hint=hint)
    found = data.read(spec or BUILTIN[card.modality])
    if found.modality != card.modality:
        raise InputError(
            f"the bundle encodes {_PLURAL[card.modality]}, and '{spec}' holds {_PLURAL[found.modality]}",
            hint="give data of that kind, or leave --data out",
        )
    if card.modality == "text":
        found = found.subset([i for i, text in enumerate(found.inputs) if str(text).strip()])
    if not len(found):
        raise InputError(f"'{spec}' holds nothing to encode", hint="put one text on each line")
    return found


def inputs(point: Point, dataset: Dataset, preprocessor: Preprocessor, seed: int, folder: Path) -> dict[str, Any]:
    """The worker's point: drawn inputs, as a list, or as the name of a file below ``folder``."""
    count = point.batch * max(2, min(16, _DRAWN // point.batch))
    # Every point draws alike, so that points differ in their shape and not in their texts.
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    places = [order[i % len(order)] for i in range(count)]
    if point.length is None:
        given = _as_job([dataset.inputs[place] for place in places], folder / point.name)
    else:
        texts = [str(text) for text in dataset.inputs]
        given = of_length(texts, places, point.length, lambda text: tokens.count(preprocessor, text))
    return {"name": point.name, "inputs": given, "batch": point.batch, "concurrency": point.concurrency}


def of_length(texts: Sequence[str], places: Sequence[int], length: int, tokens: Callable[[str], int]) -> list[str]:
    """A text of exactly ``length`` tokens for each place: from there on, joined and cut; ``tokens`` counts.

    `InputError` when no text comes to that length: it is shorter than the special tokens, or every cut jumps over it.
    """
    made: dict[int, str | None] = {}
    for place in places:
        if place not in made:
            made[place] = _cut(texts, place, length, tokens)
    usable = [place for place in dict.fromkeys(places) if made[place] is not None]
    if not usable:
        shortest = tokens("") if length < 8 else 0
        hint = f"an empty text already has {shortest} tokens" if shortest > length else "try another length"
        raise InputError(f"no text of exactly {length} tokens can be cut from the data", hint=hint)
    # A place whose text jumps over the length borrows from the next usable one.
    return [
        str(made[place] if made[place] is not None else made[usable[i % len(usable)]]) for i, place in enumerate(places)
    ]


def _cut(texts: Sequence[str], place: int, length: int, tokens: Callable[[str], int]) -> str | None:
    for step in range(min(_TRIES, len(texts))):
        words = _words(texts, place + step, length)
        count = bisect_left(range(len(words) + 1), length, key=lambda k: tokens(" ".join(words[:k])))
        if count > len(words):
            return None
        # The last word may bring several tokens at once; then a part of it fits.
        head = " ".join(words[: count - 1]) if count else ""
        tail = words[count - 1] if count else ""
        for end in range(len(tail), -1, -1):
            text = f"{head} {tail[:end]}".strip()
            if tokens(text) == length:
                return text
    return None


def _words(texts: Sequence[str], start: int, length: int) -> list[str]:
    """Words from text ``start`` on, round the end, as often as it takes to fill ``length`` tokens."""
    words: list[str] = []
    step = 0
    while len(words) < length + 1:
        words += texts[(start + step) % len(texts)].split()
        step += 1
    return words[: length + 1]


def _lengths(card: Card, lengths: Sequence[str] | None) -> list[int | None]:
    if card.modality != "text":
        if lengths:
            raise InputError(
                f"lengths are tokens, and this bundle encodes {_PLURAL[card.modality]}", hint="leave --length out"
            )
        return [None]
    low, high = card.limits.axes.get("length", (1, int(card.preprocess.get("max_length", 2**31))))
    high = min(high, int(card.preprocess.get("max_length", high)))
    if lengths is None:
        lengths = [size for size in LENGTHS if low <= int(size) <= high] or [REAL]
    found: list[int | None] = []
    for word in lengths:
        if word == REAL:
            found.append(None)
            continue
        if not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(f"length is '{word}'", hint=f"give numbers of tokens, or '{REAL}' for texts as they come")
        if not low <= int(word) <= high:
            raise InputError(
                f"length is {word}, and {low} to {high} tokens were proven for {card.name}",
                hint="stay inside, or export the encoder with another --max-length",
            )
        found.append(int(word))
    return found


def _as_job(found: Sequence[Any], path: Path) -> Any:
    """Inputs that JSON can hold as they are; arrays and encoded files as files."""
    first = found[0]
    if isinstance(first, str):
        return list(found)
    if isinstance(first, Path):
        return [str(item.resolve()) for item in found]
    if isinstance(first, (bytes, bytearray)):
        path.mkdir(parents=True, exist_ok=True)
        for index, item in enumerate(found):
            (path / f"{index:05d}").write_bytes(item)
        return [str(path / f"{index:05d}") for index in range(len(found))]
    if isinstance(first, Mapping):
        arrays = {name: np.stack([np.asarray(item[name]) for item in found]) for name in first}
    else:
        arrays = {f"{index:05d}": np.asarray(item) for index, item in enumerate(found)}
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)
    return str(path.with_suffix(".npz"))
