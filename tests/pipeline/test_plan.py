"""Which variants a plan has on which CPU."""

import types

import pytest

from deploykit.errors import MissingError
from deploykit.pipeline.plan import Wanted, plan, variant_name
from deploykit.recipe import Recipe
from deploykit.sources import Identity
from tests import cpus
from tests.cpus import AVX2, BF16, VNNI


@pytest.fixture
def planned(monkeypatch):
    """The names of the planned variants and the notes, for precisions on a CPU with such features."""
    monkeypatch.setattr("deploykit.sources.resolve", lambda spec, options=None: Identity("x", spec, "d"))

    def make(features, *precisions, targets=("onnxruntime", "openvino"), limits=""):
        cpus.put(monkeypatch, features)
        given = {"source": {"model": "m"}, "variants": {"targets": list(targets), "precisions": list(precisions)}}
        made = plan(Recipe.from_data(given | ({"budget": {"limits": limits}} if limits else {})))
        return [s.name.partition(":")[2] for s in made.steps if s.kind == "compile"], list(made.notes)

    return make


@pytest.mark.parametrize("features", [AVX2, VNNI])
def test_what_the_cpu_has_no_arithmetic_for_is_a_note_among_other_precisions(planned, features):
    names, notes = planned(features, "fp32", "bf16")
    assert names == ["onnxruntime-fp32", "openvino-fp32"]
    assert "openvino-bf16 is not built here: the CPU lacks amx_bf16 or avx512_bf16" in notes


def test_the_same_recipe_has_it_on_a_cpu_with_the_arithmetic(planned):
    names, notes = planned(BF16, "fp32", "bf16")
    assert names == ["onnxruntime-fp32", "openvino-fp32", "openvino-bf16"]
    assert notes == ["onnxruntime has no bf16: not built"]


def test_auto_leaves_out_what_the_cpu_has_no_arithmetic_for(planned):
    assert "openvino-bf16" in planned(BF16, "auto")[0]
    names, notes = planned(AVX2, "auto")
    assert "openvino-bf16" not in names
    assert {"openvino-int8", "onnxruntime-int8"} < set(names)
    assert any(note.startswith("openvino-bf16 is not built here") for note in notes)


@pytest.mark.parametrize("limits", ["", "drift<=0.01"])  # a budget builds fp32 to compare with, which nobody asked for
def test_a_precision_that_is_asked_for_alone_is_an_error(planned, limits):
    with pytest.raises(MissingError, match="openvino-bf16: the CPU lacks amx_bf16 or avx512_bf16") as caught:
        planned(AVX2, "bf16", limits=limits)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("target", "precision", "name"),
    [
        ("openvino", "int8", "openvino-int8"),
        ("int8", "int8", "int8"),
        ("tiny-int8", "int8", "tiny-int8"),
        ("openvino", "openvino-ternary", "openvino-ternary"),
        ("onnxruntime", "int8-dynamic", "onnxruntime-int8-dynamic"),
    ],
)
def test_no_word_of_a_variants_name_stands_twice(target, precision, name):
    assert variant_name(target, precision) == Wanted(target, precision).name == name


def test_a_precision_that_names_its_targets_is_planned_for_them(planned, monkeypatch):
    from deploykit import registry
    from deploykit.precisions import fp16

    module, names = registry.module, registry.names
    ternary = types.SimpleNamespace(**vars(fp16), TARGETS={"onnxruntime": "fp16"})
    monkeypatch.setattr(registry, "module", lambda kind, name: ternary if name == "ternary" else module(kind, name))
    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), *(["ternary"] * (kind == "precisions"))])
    built, notes = planned(VNNI, "fp32", "ternary")
    assert built == ["onnxruntime-fp32", "onnxruntime-ternary", "openvino-fp32"]
    assert notes == ["openvino has no ternary: not built"]
