"""A text encoder that no exporter keeps dynamic is exported with one length, which is announced; nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploykit.errors import ExportError, ProofError
from deploykit.graph.export import Exported, ExportOptions
from deploykit.pipeline import narrowing
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.sources import Options, Source


def a_source(modality="text", longest=64):
    card = Card(
        name="it",
        modality=modality,
        inputs=(TensorSpec("input_ids", "int64", ("batch", "length")),),
        outputs=(TensorSpec("sentence_embedding", "float32", ("batch", 3)),),
        embedding=Embedding("sentence_embedding", 3, "mean", False),
        preprocess={},
        limits=Limits({"length": (1, longest)}),
        provenance={},
    )
    return Source(card, None, lambda batch, sizes, seed: {}, {"length": (1, 2, longest)})


def frozen(axis):
    error = ExportError(f"axis '{axis}' was fixed at 8 by modeling_odd.py:3", hint="one size")
    error.frozen = axis
    return error


def wrong_at(*lengths):
    error = ProofError("it disagrees with torch", hint="look")
    error.wrong_at = [{"batch": 2, "length": length} for length in lengths]
    return error


@pytest.fixture
def made(monkeypatch):
    """``made(source, failure)``: exporting ``source`` fails unless one length is asked for; gives the options seen."""

    def prepare(source, failure, then=None):
        asked = []

        def open_source(model, options):
            asked.append(options)
            return source

        def export(given, how, out):
            error = then if asked[-1].fixed_length is not None else failure
            if error is not None:
                raise error
            return Exported(out / "model.onnx", "dynamo", {"cases": 3}, ("before",)), []

        monkeypatch.setattr(narrowing.sources, "open_source", open_source)
        monkeypatch.setattr(narrowing, "export", export)
        return asked

    return prepare


def test_a_frozen_length_becomes_the_only_one_and_is_announced(made, tmp_path):
    asked = made(a_source(), frozen("length"))
    _, exported, _ = narrowing.export_or_narrow("it", Options(max_length=64), ExportOptions(), tmp_path)
    assert [options.fixed_length for options in asked] == [None, 64]
    assert asked[1].max_length is None
    assert exported.notes[0] == "before"
    assert "padded or cut to 64 tokens" in exported.notes[1]
    assert "modeling_odd.py:3" in exported.notes[1]


def test_what_is_wrong_at_some_lengths_alone_gets_one_that_is_proven(made, tmp_path):
    asked = made(a_source(), wrong_at(2))
    _, exported, _ = narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)
    assert asked[1].fixed_length == 64
    assert "it disagrees with torch" in exported.notes[1]


def test_where_one_exporter_fails_and_the_other_is_wrong_at_some_lengths_too(made, tmp_path):
    error = ExportError("the model cannot be exported", hint="look")
    error.wrong_at = wrong_at(2).wrong_at
    error.__cause__ = wrong_at(2)
    asked = made(a_source(), error)
    _, exported, _ = narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)
    assert asked[1].fixed_length == 64
    assert "it disagrees with torch" in exported.notes[1]


def test_an_export_that_works_is_left_as_it_is(made, tmp_path):
    asked = made(a_source(), None)
    _, exported, _ = narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)
    assert len(asked) == 1
    assert exported.notes == ("before",)


@pytest.mark.parametrize(
    ("source", "failure", "options"),
    [
        (a_source(), frozen("batch"), Options()),
        (a_source(), ExportError("an operator is missing", hint="look"), Options()),
        (a_source("audio"), frozen("length"), Options()),
        (a_source(), wrong_at(1, 2, 64), Options()),
        (a_source(), wrong_at(), Options()),
    ],
    ids=["another axis", "another reason", "another modality", "wrong everywhere", "wrong in another way"],
)
def test_nothing_else_is_narrowed(made, tmp_path, source, failure, options):
    asked = made(source, failure)
    with pytest.raises(type(failure)) as caught:
        narrowing.export_or_narrow("it", options, ExportOptions(), tmp_path)
    assert caught.value is failure
    assert len(asked) == 1


def test_where_one_length_fails_too_the_first_reason_stands(made, tmp_path):
    failure = frozen("length")
    made(a_source(), failure, then=ProofError("wrong", hint="look"))
    with pytest.raises(ExportError) as caught:
        narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)
    assert caught.value is failure


@pytest.mark.parametrize("sees", [False, True])
def test_a_length_is_no_way_out_where_padding_changes_the_vectors(made, tmp_path, sees):
    torch = pytest.importorskip("torch")

    def module(input_ids, attention_mask=None):
        mask = 1 if sees or attention_mask is None else attention_mask
        total = (input_ids * mask).sum(dim=1, keepdim=True).double()
        return torch.cat([torch.cos(total), torch.sin(total)], dim=1)

    def make(batch, sizes, seed):
        length = sizes["length"]
        mask = (torch.arange(length)[None] < length - 5 * torch.arange(batch)[:, None]).long()
        return {"input_ids": torch.full((batch, length), 2), "attention_mask": mask}

    made(replace(a_source(), module=module, make_inputs=make), failure := frozen("length"))
    if not sees:
        assert narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)[1].notes[0] == "before"
        return
    with pytest.raises(ExportError) as caught:
        narrowing.export_or_narrow("it", Options(), ExportOptions(), tmp_path)
    assert caught.value is failure
    assert "fixed_length = 64" in failure.hint
