"""Texts of which a tokenizer makes nothing, as the empty one: refused at encode, left out of what deploykit chooses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from deploykit.data import tokens
from deploykit.errors import InputError, NoTokensError, SourceError
from deploykit.graph.prove import read_cases
from deploykit.measure.workload import of_length
from deploykit.pipeline import samples, selftest_data
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.runtime.preprocess import open_preprocessor

CARD = Card(
    name="text",
    modality="text",
    inputs=tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
    outputs=(TensorSpec("y", "float32", ("batch", 4)),),
    embedding=Embedding("y", 4, "mean", False),
    preprocess={"kind": "text", "tokenizer": "preprocess/tokenizer.json", "max_length": 40, "pad_id": 0},
    limits=Limits({"length": (1, 40)}),
)


def bytes_without_frame():
    """As GPT-2's and Qwen's: every byte is a token, and nothing stands around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def words_alone(*words):
    """A WordLevel tokenizer without an unknown token: it fails on words that it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    def made(tokenizer):
        (tmp_path / "preprocess").mkdir(exist_ok=True)
        tokenizer.save(str(tmp_path / "preprocess" / "tokenizer.json"))
        return tmp_path

    return made


def vectors(feeds):
    return np.ones((len(feeds["input_ids"]), 4), np.float32)


class Opened:
    """What of a source the self-test asks for."""

    card = CARD


def test_the_empty_text_is_refused_by_its_place(folder):
    preprocessor = open_preprocessor(CARD, folder(bytes_without_frame()))
    with pytest.raises(NoTokensError, match="input 2 gives no tokens"):
        preprocessor.items(["a", "b", ""])
    assert issubclass(NoTokensError, InputError)


def letters_alone():
    """BPE of small letters without an unknown token: what else a text holds vanishes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("aeiou")}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.mark.parametrize("make", [bytes_without_frame, letters_alone])
def test_the_self_test_holds_texts_with_tokens_alone(folder, make):
    out = folder(make())
    cases = selftest_data.write(Opened, vectors, out)
    texts = json.loads((out / "selftest" / "inputs.json").read_text("utf-8"))
    assert "" not in texts
    assert len(texts) >= 5
    assert len(cases) == len(texts) + 1
    assert min(case.feeds["input_ids"].shape[1] for case in cases) >= 1
    feeds = selftest_data.latency_feeds(CARD, out)
    assert len(feeds["batch"]["input_ids"]) == 32


def test_a_word_without_a_token_is_refused_by_its_place(folder):
    preprocessor = open_preprocessor(CARD, folder(words_alone("cat", "dog")))
    with pytest.raises(NoTokensError, match="input 1 cannot be tokenized"):
        preprocessor.items(["cat", "bird", "dog"])


def test_a_tokenizer_that_knows_no_word_of_the_self_test_is_named(folder):
    with pytest.raises(SourceError, match="no token of any English sentence"):
        selftest_data.write(Opened, vectors, folder(words_alone("zzyzx")))


def test_samples_leave_out_texts_without_tokens(folder, tmp_path):
    out = folder(words_alone("cat", "dog", *map(str, range(40))))
    lines = [f"cat {i % 40} dog" if i % 3 else "unknown words" for i in range(120)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    (tmp_path / "sets").mkdir()
    options = {"calibration": str(tmp_path / "texts.txt"), "evaluation": "", "calibrates": True}
    options |= {"calibration_samples": 20, "evaluation_samples": 30}
    facts = samples.write(options, CARD, out, vectors, tmp_path / "sets")
    assert facts["calibration"]["samples"] == 20
    assert "unknown words" not in samples.read_inputs(tmp_path / "sets")["inputs"]
    lengths = [case.at["length"] for case in read_cases(tmp_path / "sets", samples.LENGTHS)]
    assert lengths[0] == 1  # nothing stands around a text, so one token is real text


def test_data_without_any_token_is_refused(folder, tmp_path):
    (tmp_path / "texts.txt").write_text("nothing that\nis known")
    options = {"calibration": str(tmp_path / "texts.txt"), "evaluation": "", "calibrates": False}
    options |= {"calibration_samples": 20, "evaluation_samples": 30}
    with pytest.raises(InputError, match=r"no text of .*texts\.txt.* gives a token"):
        samples.write(options, CARD, folder(words_alone("cat")), vectors, tmp_path)


def test_a_default_prompt_counts(folder):
    prompted = replace(CARD, preprocess={**CARD.preprocess, "prompts": {"q": "ab"}, "default_prompt": "q"})
    out = folder(bytes_without_frame())
    assert tokens.count(open_preprocessor(CARD, out), "") == 0
    assert tokens.count(open_preprocessor(prompted, out), "") == 2


def test_a_text_of_a_length_is_found_though_the_empty_one_has_no_tokens(folder):
    preprocessor = open_preprocessor(CARD, folder(words_alone("cat", "dog")))
    made = of_length(["cat dog cat", "no such word"], [0], 2, lambda text: tokens.count(preprocessor, text))
    assert tokens.count(preprocessor, made[0]) == 2
