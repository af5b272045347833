"""Whether a plan judges, and what the manifest keeps where it does not."""

from __future__ import annotations

import importlib.util

import pytest

from deploykit import judge
from deploykit.pipeline import judging
from deploykit.pipeline.plan import plan
from deploykit.recipe import Recipe
from deploykit.runtime.manifest import Card, Embedding
from deploykit.sources import Options
from tests import tiny


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("transformers")
    return tiny.tiny_bert(tmp_path / "bert")


def made(folder, **sections):
    return plan(Recipe.from_data({"source": {"model": str(folder)}, **sections}))


def test_a_folder_is_judged_beside_the_other_steps(folder):
    found = made(folder)
    step = found.step("judge")
    assert step.parents == ("export",)
    assert step.required
    assert step.reusable
    assert not step.alone
    assert not found.unjudged


def test_it_can_be_switched_off_which_is_recorded(folder):
    found = made(folder, proof={"judge": False})
    assert not [step for step in found.steps if step.name == "judge"]
    assert judging.record(found.unjudged, None) == {"judged": False, "reason": "it was switched off (judge = false)"}


def test_a_library_that_is_not_installed_is_said(folder, monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == "transformers" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(judge.importlib.util, "find_spec", hidden)
    found = made(folder)
    assert found.unjudged == "transformers is not installed"
    assert "not judged: transformers is not installed" in found.notes


@pytest.mark.parametrize("kind", ["onnx", "module", "exported-program", "checkpoint"])
def test_what_no_other_library_reads_is_not_judged(kind):
    assert judge.why_not(kind, None)


def test_an_option_that_the_library_is_not_asked_for_is_no_ground_to_judge_on(monkeypatch):
    embedding = Embedding("y", 3, "mean", False)
    card = Card("m", "text", (), (), embedding, {"kind": "text", "max_length": 40})
    found = judging.choices(card, Options(fixed_length=16, outputs=("pooler",), prompts={"q": "a "}))
    assert (found.longest, found.fixed_length, found.max_length) == (40, 16, None)
    monkeypatch.setattr(judging, "_CARRIED", judging._CARRIED - {"dim"})
    with pytest.raises(judge.NotJudged, match="'dim' was asked for"):
        judging.choices(card, Options(dim=2))


def test_without_preprocessing_there_is_nothing_to_judge():
    assert judge.why_not("transformers", "none") == "preprocessing is left to the caller, so there are no raw inputs"
