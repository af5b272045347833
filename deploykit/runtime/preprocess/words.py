"""Texts to the ids of words: split at whitespace, looked up as they are, then without punctuation, then in lower case.

Words that are found in none of these forms are left out, as stop words are. It has the methods of a tokenizer of the
``tokenizers`` library that texts are preprocessed with.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import from_json

FILE = "words.json"


@dataclass(frozen=True)
class Words:
    """The file: ``vocab`` in the order of its ids, of words given twice the last counts."""

    vocab: tuple[str, ...]
    stop_words: tuple[str, ...] = ()
    lowercase: bool = False


@dataclass(frozen=True)
class Encoded:
    """The ids of one text; their types are all 0."""

    ids: list[int]

    @property
    def type_ids(self) -> list[int]:
        """A zero for each id."""
        return [0] * len(self.ids)


@dataclass
class WordTokenizer:
    """Words of texts by their place in a vocabulary."""

    words: Words
    _ids: dict[str, int] = field(init=False)
    _left_out: frozenset[str] = field(init=False)
    _longest: int | None = None
    _side: str = "right"

    def __post_init__(self) -> None:
        self._ids = {word: index for index, word in enumerate(self.words.vocab)}
        self._left_out = frozenset(self.words.stop_words)

    @classmethod
    def open(cls, path: Path) -> WordTokenizer:
        """Read the file; `BundleError` names what is wrong with it."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"'{path.name}' cannot be read: {error}", hint="build the bundle again") from error
        return cls(from_json(Words, data, path.name))

    def no_padding(self) -> None:
        """Nothing is padded here."""

    def enable_truncation(self, max_length: int, *, direction: Literal["right", "left"] = "right") -> None:
        """Cut texts to their first words, or with "left" to their last."""
        self._longest, self._side = max_length, direction

    def encode(self, text: str) -> Encoded:
        """The ids of the words that are known."""
        found = (self._id_of(word) for word in (text.lower() if self.words.lowercase else text).split())
        ids = [index for index in found if index is not None]
        if self._longest is None:
            return Encoded(ids)
        return Encoded(ids[: self._longest] if self._side == "right" else ids[-self._longest :])

    def encode_batch_fast(self, texts: Sequence[str]) -> list[Encoded]:
        """As `encode`, for several texts."""
        return [self.encode(text) for text in texts]

    def _id_of(self, word: str) -> int | None:
        bare = word.strip(string.punctuation)
        for form in (word, bare, bare.lower()):
            if form in self._left_out:
                return None
            if form in self._ids:
                return self._ids[form]
        return None
