"""Texts that have no tokens at all: where a tokenizer puts nothing around a text, the empty one is such a text.

Tokenizers of many decoders frame nothing (GPT-2, Qwen), and one without an unknown token gives nothing for what it
does not know, or fails. Such a text has no vector: `encode` refuses it by its place. What deploykit chooses by itself,
or reads by the thousand, leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploykit.runtime.errors import NoTokensError
from deploykit.runtime.preprocess import Preprocessor

_PROBES = ("", "\u16a0\u16c1")
"""The empty text, and a word in a script that few vocabularies hold: with tokens for both, every text has some."""


def count(preprocessor: Preprocessor, text: str) -> int:
    """How many tokens a text has, those around it included."""
    try:
        return preprocessor.items([text])[0].cost
    except NoTokensError:
        return 0


def places_with_tokens(preprocessor: Preprocessor, texts: Sequence[Any]) -> list[int]:
    """The places of the texts that have tokens: all of them, at no cost, where even the empty text has some."""
    if all(count(preprocessor, probe) for probe in _PROBES):
        return list(range(len(texts)))
    return [place for place, text in enumerate(texts) if count(preprocessor, str(text))]
