"""The judgement in words."""

from __future__ import annotations

import pytest

from deploykit.runtime.judged import sentence

WHOLE = {
    "judged": True,
    "library": "transformers",
    "version": "5.23.0",
    "call": "AutoTokenizer(text), BertModel, mean",
    "inputs": 30,
    "compared": 28,
    "cosine_min": 0.9999991,
    "allowed": {"cosine": 0.9999},
    "overridden": ["dim 8"],
    "left_out": [{"input": "text 9 ''", "reason": "no tokens"}],
    "refused": [],
}


def test_a_judgement_names_library_call_count_and_worst_row():
    assert sentence({"judge": WHOLE}) == (
        "transformers 5.23.0 (AutoTokenizer(text), BertModel, mean): 28 of 30 raw inputs compared, worst cosine "
        "0.999999 (allowed 0.9999); not as the folder says: dim 8; left out: text 9 ''"
    )


def test_one_that_is_missing_has_a_reason():
    assert sentence({"judge": {"judged": False, "reason": "timm is not installed"}}) == (
        "not judged: timm is not installed"
    )


@pytest.mark.parametrize(
    "found",
    [None, {}, [], {"judged": False}, WHOLE | {"cosine_min": "x"}, WHOLE | {"left_out": 3}, WHOLE | {"allowed": None}],
)
def test_a_record_that_is_not_whole_says_nothing(found):
    assert sentence({} if found is None else {"judge": found}) == ""
