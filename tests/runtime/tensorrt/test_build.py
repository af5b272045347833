"""Every failure of the API must become an error with the logger's lines, and what was asked must reach the builder."""

from __future__ import annotations

import re

import pytest

from deploykit.errors import BundleError, InputError, MissingError
from deploykit.runtime.tensorrt.build import build, capability, refusal
from deploykit.runtime.tensorrt.recipe import Bounds, Recipe
from tests.runtime.tensorrt import fake

BOUNDS = Bounds((1, 3), (2, 3), (4, 3))
RECIPE = Recipe("int8", "8.0", ({"x": BOUNDS},), workspace_mib=64, optimization_level=2)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"an onnx")
    return tmp_path / "model.onnx"


def test_what_was_asked_for_reaches_the_builder(model):
    trt = fake.module()
    recipe = Recipe("int8", "8.0", ({"x": BOUNDS},), 64, 2, version_compatible=True, hardware_compatible=True)
    built = build(trt, "tensorrt-rtx", model, recipe, "8.9")
    config = trt.made.configs[0]
    assert trt.made.flags == 1  # strongly typed
    assert (config.workspace, config.builder_optimization_level, config.capability) == (64 << 20, 2, 89)
    assert (config.flag, config.hardware_compatibility_level) == ("version", "ampere")
    assert config.profiles[0].shapes == {"x": ((1, 3), (2, 3), (4, 3))}
    assert (built.metadata["quantize"], built.metadata["dequantize"]) == (1, 2)
    assert built.metadata["inputs"] == [{"name": "x", "dtype": "float", "shape": [-1, 3]}]


def test_where_every_network_is_strongly_typed_no_flag_is_given(model):
    trt = fake.module(strongly_typed=False)
    build(trt, "tensorrt", model, RECIPE)
    assert trt.made.flags == 0


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        ("parse", "Loop 'loop_1': UNSUPPORTED_NODE"),
        ("build", "no kernel for node 5$"),
        ("profile", "refuses the optimization profile"),
        ("capability", "refuses to build for compute capability 8.9"),
        ("shape", "min is larger than max"),
    ],
)
def test_each_failure_is_an_error_with_its_reason(model, fail, said):
    with pytest.raises(BundleError) as caught:
        build(fake.module(fail=fail), "tensorrt-rtx", model, RECIPE, "8.9")
    assert re.search(said, caught.value.message)
    assert caught.value.hint
    assert "cudaError" not in caught.value.message


@pytest.mark.parametrize("profiles", [(), ({"other": BOUNDS},)])
def test_a_dynamic_axis_without_bounds_is_refused(model, profiles):
    with pytest.raises(BundleError, match="'x' has dynamic axes without bounds"):
        build(fake.module(), "tensorrt-rtx", model, Recipe("fp16", "7.5", profiles))


def test_a_capability_that_is_not_there_lists_those_that_are():
    with pytest.raises(BundleError, match=r"no compute capability 9\.0") as caught:
        capability(fake.module(sm=(86, 89, 120)), "9.0")
    assert "8.6, 8.9, 12.0" in caught.value.hint
    with pytest.raises(BundleError, match="only for the GPU that is here"):
        capability(fake.module(sm=()), "8.9")


def test_a_long_build_says_how_far_it_is_and_a_short_one_nothing(model, monkeypatch, caplog):
    from deploykit.runtime.tensorrt import build as module

    build(fake.module(), "tensorrt", model, RECIPE)
    assert not caplog.records
    monkeypatch.setattr(module, "_PROGRESS_S", 0.0)
    build(fake.module(), "tensorrt", model, RECIPE)
    assert "building the engine of 'model.onnx': Choosing kernels, 2 of 3" in caplog.text


def test_timings_are_kept_from_build_to_build(model, tmp_path):
    trt = fake.module()
    build(trt, "tensorrt", model, RECIPE, timing=tmp_path / "timings")
    build(trt, "tensorrt", model, RECIPE, timing=tmp_path / "timings")
    assert [config.timings for config in trt.made.configs] == [b"", b"timings"]


WANTED = {
    "flavour": "tensorrt",
    "version": "11.0.0",
    "compute_capability": "8.9",
    "platform": "linux-x86_64",
    "model": "m",
    "recipe": "r",
}


def metadata(**changes):
    plain = {key: WANTED[key] for key in ("flavour", "version", "compute_capability", "platform")}
    return {**plain, "recipe": {}, "digests": {"model": "m", "recipe": "r"}, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"flavour": "tensorrt-rtx"}, "built for tensorrt-rtx"),
        ({"version": "10.9.0"}, "by tensorrt 10.9.0, and 11.0.0 is installed"),
        ({"compute_capability": "8.6"}, "capability 8.6, and this GPU has 8.9"),
        ({"platform": "windows-amd64"}, "built for windows-amd64"),
        ({"digests": {"model": "n", "recipe": "r"}}, "another model"),
        ({"digests": {"model": "m", "recipe": "s"}}, "another recipe"),
        ({"version": "11.1.0", "recipe": {"version_compatible": True}}, ""),
        ({"version": "10.1.0", "recipe": {"version_compatible": True}}, "11.0.0 is installed"),
        ({"compute_capability": "8.0", "recipe": {"hardware_compatible": True}}, ""),
        ({"compute_capability": "12.0", "recipe": {"hardware_compatible": True}}, "this GPU has 8.9"),
    ],
)
def test_the_gate_refuses_what_cannot_run(changes, reason):
    found = refusal(metadata(**changes), WANTED)
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_tightest_profile_is_chosen_and_shapes_outside_are_refused():
    wide = Bounds((1, 1), (4, 64), (32, 128))
    recipe = Recipe("fp16", "7.5", ({"x": wide}, {"x": Bounds((1, 1), (4, 8), (32, 16))}))
    assert recipe.choose({"x": (2, 16)}) == 1
    assert recipe.choose({"x": (2, 17)}) == 0
    with pytest.raises(InputError, match=r"outside the engine's profiles: x \[33, 4\]") as caught:
        recipe.choose({"x": (33, 4)})
    assert "[32, 128]" in caught.value.hint


def test_a_recipe_survives_the_manifest():
    assert Recipe.read(RECIPE.settings) == RECIPE
    assert Recipe.read(RECIPE.settings).digest == RECIPE.digest
    with pytest.raises(BundleError, match="not a TensorRT build recipe"):
        Recipe.read({})


def test_the_metadata_say_how_many_layers_compute_in_which_type(model):
    made = build(fake.module(), "tensorrt", model, RECIPE).metadata
    assert made["layers_by_type"] == {"half": 2, "int8": 1}
    assert (made["quantize"], made["dequantize"]) == (1, 2)


def test_fp32_is_no_tf32(model):
    trt = fake.module()
    build(trt, "tensorrt", model, RECIPE)
    assert trt.made.configs[0].cleared == "tf32"


def test_a_lack_of_memory_is_said_whatever_was_tried(model):
    with pytest.raises(MissingError, match=r"not enough memory on the GPU: .*requested size was 4294967296") as caught:
        build(fake.module(fail="memory"), "tensorrt", model, RECIPE)
    assert "workspace_mib" in caught.value.hint
