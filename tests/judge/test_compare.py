"""The comparison itself, with a library and an encoder made of a few lines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.errors import InputError, ProofError
from deploykit.judge import Raw
from deploykit.judge.compare import judge
from deploykit.judge.where import Ours
from deploykit.runtime.preprocess import Item

RAWS = [Raw(f"text {word}", word) for word in ("cat", "a dog", "the red river")]


def vector(text):
    return np.random.default_rng(len(text)).normal(size=6)


class Letters:
    """A library that embeds a text by its length; it cannot run ``fails``."""

    name, version, call, overridden = "letters", "1.0", "letters(text)", ("dim 6",)
    prompts = {"query": ""}  # noqa: RUF012

    def __init__(self, fails="", random=""):
        self.fails, self.random, self.draw = fails, random, np.random.default_rng(0)

    def encode(self, raw):
        if raw.value == self.fails:
            raise ValueError("no such word\nsecond line")
        return self.draw.normal(size=6) if raw.value == self.random else vector(raw.value)

    def decoded(self, raw):
        return None

    def tensors(self, raw):
        return {"input_ids": np.array([[len(raw.value)]])}

    def hidden(self, raw):
        return None


class Reader:
    """Our preprocessor; it refuses ``refuses``."""

    def __init__(self, refuses=""):
        self.refuses = refuses

    def items(self, inputs, *, kind=None):
        if inputs[0] == self.refuses:
            raise InputError("input 0 gives no tokens")
        return [Item({"input_ids": np.array([len(inputs[0])])}, 1)]

    def collate(self, items):
        return {"input_ids": np.stack([item.tensors["input_ids"] for item in items])}


def ours(encode=lambda texts: np.stack([vector(text) for text in texts]), refuses=""):
    encoder = SimpleNamespace(encode=lambda inputs, kind=None: encode(inputs))
    return Ours(encoder, Reader(refuses), {}, lambda feeds: None)


def test_agreement_is_told_in_figures():
    found = judge(Letters(), ours(), RAWS)
    assert found["judged"]
    assert (found["library"], found["version"], found["overridden"]) == ("letters", "1.0", ["dim 6"])
    assert (found["inputs"], found["compared"]) == (3, 3)
    assert found["cosine_min"] == pytest.approx(1)
    assert found["scale_max"] == pytest.approx(0)
    assert found["allowed"] == {"cosine": 0.9999, "scale": 1e-3}


def test_what_the_library_cannot_run_is_left_out_and_listed():
    found = judge(Letters(fails="a dog"), ours(), RAWS)
    assert found["compared"] == 2
    assert found["left_out"] == [{"input": "text a dog", "reason": "ValueError: no such word"}]


def test_what_we_refuse_is_listed():
    found = judge(Letters(), ours(refuses="cat"), RAWS)
    assert found["compared"] == 2
    assert found["refused"] == [{"input": "text cat", "reason": "input 0 gives no tokens"}]


def test_what_the_library_draws_at_random_is_left_out():
    found = judge(Letters(random="cat"), ours(), RAWS)
    assert found["compared"] == 2
    assert found["left_out"] == [{"input": "text cat", "reason": "the library gives another vector each time"}]


def test_where_nothing_can_be_compared_nothing_is_judged():
    found = judge(Letters(fails="cat"), ours(), RAWS[:1])
    assert not found["judged"]
    assert found["reason"] == "none of the 1 inputs can be compared: ValueError: no such word"


def test_one_row_that_is_wrong_refuses_with_the_row_and_the_figures():
    def encode(texts):
        return np.stack([vector(text + "s" if text == "a dog" else text) for text in texts])

    with pytest.raises(ProofError) as caught:
        judge(Letters(), ours(encode), RAWS)
    assert "letters 1.0 on 1 of 3 raw inputs (letters(text)); the worst is text a dog: cosine " in caught.value.message
    assert "--no-judge" in caught.value.hint


def test_another_scale_refuses():
    with pytest.raises(ProofError, match=r"L2 norm .*It begins at the scale of the vector"):
        judge(Letters(), ours(lambda texts: np.stack([1.01 * vector(text) for text in texts])), RAWS)


def test_other_dimensions_refuse():
    with pytest.raises(ProofError, match="5 dimensions, expected 6"):
        judge(Letters(), ours(lambda texts: np.stack([vector(text)[:5] for text in texts])), RAWS)


def test_what_is_wrong_in_company_alone_is_a_matter_of_batching():
    def encode(texts):
        return np.stack([vector(text) + (0.5 if len(texts) > 1 else 0.0) for text in texts])

    with pytest.raises(ProofError, match="It begins at batching"):
        judge(Letters(), ours(encode), RAWS)
