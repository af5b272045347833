"""Words split at whitespace, without any library."""

import json
from dataclasses import replace

import pytest

from deploykit.runtime.errors import BundleError
from deploykit.runtime.preprocess import open_preprocessor
from tests.runtime import made

WORDS = {"vocab": ["PAD", "cat", "Dog", "dog", "don't", "over"], "stop_words": ["the"], "lowercase": False}


@pytest.fixture
def opened(tmp_path):
    """Opens the preprocessor of a table of words, with options of the text preprocessing and of the words."""

    def open_it(words=None, **options):
        path = tmp_path / "preprocess" / "words.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(WORDS | (words or {})))
        card = made.card(tokenizer="preprocess/words.json", allow_empty=True, **options)
        return open_preprocessor(replace(card), tmp_path)

    return open_it


def ids(preprocessor, text):
    return preprocessor.items([text])[0].tensors["input_ids"].tolist()


def test_a_word_is_found_as_it_is_then_without_punctuation_then_in_lower_case(opened):
    assert ids(opened(), "Dog (Dog) DOG! don't 'CAT' ca-t") == [2, 2, 3, 4, 1]


def test_stop_words_and_unknown_words_are_left_out(opened):
    assert ids(opened(), "the The, bird cat") == [1]


def test_lower_casing_comes_first(opened):
    assert ids(opened({"lowercase": True}), "Dog") == [3]


def test_long_texts_are_cut(opened):
    assert ids(opened(max_length=2), "cat dog over") == [1, 3]
    assert ids(opened(max_length=2, truncation_side="left"), "cat dog over") == [3, 5]


def test_a_text_without_a_known_word_is_padding_alone(opened):
    preprocessor = opened()
    feeds = preprocessor.collate(preprocessor.items(["bird", "cat dog"]))
    assert feeds["attention_mask"].tolist() == [[0, 0], [1, 1]]


def test_a_damaged_file_is_refused(opened):
    with pytest.raises(BundleError, match="vocab"):
        opened({"vocab": [1]})
