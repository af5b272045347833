"""What is decided before TensorRT is asked: profiles, refusals, what the bundle carries where nothing can be built."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from deploykit import api  # noqa: E402
from deploykit.errors import CheckError, RecipeError  # noqa: E402
from deploykit.recipe import Recipe  # noqa: E402
from deploykit.runtime.manifest import Limits, TensorSpec  # noqa: E402
from deploykit.runtime.tensorrt import recipe as build_recipe  # noqa: E402
from deploykit.targets import _tensorrt, tensorrt  # noqa: E402
from deploykit.targets._tensorrt import Options, profiles  # noqa: E402
from tests.quantize.test_lint import COLUMNS, ROWS, graph  # noqa: E402
from tests.runtime import made  # noqa: E402

TEXT = (TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("mask", "int64", ("batch", "length")))
CARD = made.card()


def shapes(found, which="largest"):
    return [getattr(profile["ids"], which) for profile in found]


def test_one_profile_spans_what_was_proven():
    found = profiles(TEXT, {"length": (1, 256)}, Options())
    assert shapes(found, "smallest") == [(1, 1)]
    assert shapes(found, "usual") == [(8, 64)]
    assert shapes(found) == [(32, 256)]
    assert set(found[0]) == {"ids", "mask"}


def test_each_bucket_of_lengths_has_a_profile_and_none_is_left_out():
    found = profiles(TEXT, {"length": (2, 256)}, Options(lengths=(32, 128, 256)))
    assert shapes(found, "smallest") == [(1, 2), (1, 33), (1, 129)]
    assert shapes(found) == [(32, 32), (32, 128), (32, 256)]


def test_fixed_axes_stay_as_they_are_and_a_fixed_model_needs_no_profile():
    image = (TensorSpec("ids", "float32", ("batch", 3, 30, 42)),)
    assert shapes(profiles(image, {}, Options(batch=(1, 2, 4)))) == [(4, 3, 30, 42)]
    assert profiles((TensorSpec("ids", "float32", (1, 3)),), {}, Options()) == []


@pytest.mark.parametrize(
    ("proven", "options", "said"),
    [
        ({}, Options(), "'length' has no bounds"),
        ({"length": (1, 64)}, Options(lengths=(32, 128)), "proven from 1 to 64"),
        ({"length": (1, 64)}, Options(lengths=(32, 16)), "lengths are"),
        ({"length": (1, 64)}, Options(batch=(4, 2, 8)), "'batch' is"),
        ({"length": (1, 64)}, Options(batch=(1, 8)), "'batch' is"),
        ({"length": (1, 64)}, Options(batch=(2, 4, 8)), "smallest batch is 2, and one input alone"),
        ({"length": (1, 64)}, Options(sizes={"width": (1, 2, 3)}), "names the axis 'width'"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(proven, options, said):
    with pytest.raises(RecipeError, match=said) as caught:
        profiles(TEXT, proven, options)
    assert caught.value.hint


def test_an_axis_without_bounds_is_bounded_by_sizes():
    assert shapes(profiles(TEXT, {}, Options(sizes={"length": (1, 16, 48)}))) == [(32, 48)]


@pytest.mark.parametrize(
    ("precision", "options", "said"),
    [
        ("int4", Options(), "no precision 'int4'"),
        ("int8", Options(sm=("7.5",)), "needs compute capability 8.0, and sm asks for 7.5"),
        ("fp8", Options(sm=("8.6",)), "needs compute capability 8.9"),
        ("fp16", Options(sm=("89",)), "sm is '89'"),
        ("fp16", Options(optimization_level=6), "optimization_level is 6"),
        ("fp16", Options(workspace_mib=0), "workspace_mib is 0"),
        ("fp16", Options(sm=("8.9",)), "builds only for the GPU that is here"),
        ("int8", Options(), "no product of it is quantized"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_built(tmp_path, precision, options, said):
    model = made.save_model(tmp_path / "in" / "model.onnx")
    with pytest.raises(RecipeError, match=said):
        tensorrt.compile(model, CARD, precision, options, tmp_path)


def test_fp32_is_the_portable_model_with_a_recipe(tmp_path):
    model = made.save_model(tmp_path / "in" / "model.onnx")
    compiled = tensorrt.compile(model, CARD, "fp32", Options(workspace_mib=512), tmp_path)
    recipe = build_recipe.Recipe.read(compiled.settings)
    assert compiled.path == ""
    assert recipe.workspace_mib == 512
    assert recipe.profiles[0]["input_ids"].largest == (32, made.MAX_LENGTH)
    assert compiled.requires == {"compute_capability": "7.5", "packages": {"tensorrt": ">=10.0"}}
    assert "no engine was built here" in compiled.notes[0]


def quantized(tmp_path, changes=None):
    import dataclasses

    (tmp_path / "in").mkdir()
    onnx.save(graph(changes), tmp_path / "in" / "model.onnx")
    inputs = (TensorSpec("x", "float32", ("batch", ROWS)),)
    card = dataclasses.replace(CARD, inputs=inputs, limits=Limits({}))
    return tmp_path / "in" / "model.onnx", card


def test_a_quantized_graph_is_linted_and_audited(tmp_path):
    model, card = quantized(tmp_path)
    compiled = tensorrt.compile(model, card, "int8", Options(), tmp_path)
    facts = tensorrt.audit(tmp_path / compiled.path, card, compiled.settings)
    assert facts["products"] == {"int8": 1}
    assert (facts["quantize"], facts["dequantize"], facts["effective"]) == (1, 2, "int8")


def test_a_graph_that_the_linter_refuses_is_not_compiled(tmp_path):
    import numpy as np

    model, card = quantized(tmp_path, {"w_scale": np.full(ROWS, 0.1, np.float32), "w_zero": None})
    with pytest.raises(CheckError, match="TensorRT cannot run this graph"):
        tensorrt.compile(model, card, "int8", Options(), tmp_path)
    assert COLUMNS != ROWS


def test_sm_reaches_the_options_of_the_targets_that_have_it():
    recipe = api.recipe("m", variants={"targets": ["tensorrt-rtx", "onnxruntime"]}, sm=["8.9"])
    assert isinstance(recipe, Recipe)
    assert recipe.options("targets", "tensorrt-rtx") == _tensorrt.Options(sm=("8.9",))
