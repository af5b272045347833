"""The hazard lint must name what fp16 breaks, with the number, and leave alone what it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402

from deploykit.graph import half, hazards, ranges  # noqa: E402
from deploykit.runtime.manifest import Limits  # noqa: E402
from tests.graph import hazard_graphs as graphs  # noqa: E402

X = np.random.default_rng(3).standard_normal((4, graphs.WIDTH)).astype(np.float32)


def found(proto, feeds=None):
    """{node: (what, why)} of a model, with ranges where there are feeds."""
    model = half.typed(proto)
    measured = None if feeds is None else ranges.measure(model, [feeds], "these inputs")
    return {hazard.node: (hazard.what, hazard.why) for hazard in hazards.find(model, measured)}


def chain(*operators, **constants):
    """One operator after another on x: ``(op_type, further inputs)``."""
    names = ["x", *(f"h{i}" for i in range(len(operators) - 1)), "embedding"]
    nodes = [(op, [names[i], *more], [names[i + 1]], {}) for i, (op, *more) in enumerate(operators)]
    return graphs.model(nodes, constants)


def test_a_written_out_layer_norm_is_kept_whole_and_the_products_around_it_are_not():
    nodes = set(found(graphs.written_out_norm()))
    names = ("mean", "centred", "square", "variance", "safe", "deviation", "normed")
    assert nodes == {f"n_{name}" for name in names}


def test_a_layer_normalization_of_ordinary_values_is_no_hazard():
    constants = {"scale": np.ones(graphs.WIDTH, np.float32)}
    assert found(chain(("LayerNormalization", "scale"), **constants), {"x": X}) == {}


def test_a_product_by_itself_counts_as_a_square():
    nodes = [
        ("Mul", ["x", "x"], ["square"], {}),
        ("ReduceSum", ["square", "axes"], ["sum"], {}),
        ("Sqrt", ["sum"], ["norm"], {}),
        ("Div", ["x", "norm"], ["embedding"], {}),
    ]
    hazard = found(graphs.model(nodes, {"axes": np.array([1], np.int64)}))
    assert {what for what, _ in hazard.values()} == {"square"}
    assert set(hazard) == {"n_square", "n_sum", "n_norm", "n_embedding"}


def test_measured_ranges_name_the_value_its_size_and_the_inputs():
    hazard = found(graphs.large_residual(), {"x": X})
    assert set(hazard) == {"n_stream", "n_normed", "n_sum", "n_embedding"}
    what, why = hazard["n_stream"]
    assert what == "range"
    assert "stream" in why
    assert "these inputs" in why
    assert found(graphs.large_residual()) == {}


def test_values_that_are_all_subnormal_are_found():
    what, why = found(chain(("Mul", "c"), ("Relu",), c=np.float32(1e-4)), {"x": X * 1e-3})["n_embedding"]
    assert what == "range"
    assert "loses its digits" in why


@pytest.mark.parametrize(("number", "why"), [(1e5, "beyond fp16"), (1e-12, "2^-14"), (np.inf, "infinity")])
def test_constants_that_fp16_cannot_hold_are_found(number, why):
    hazard = found(chain(("Max", "c"), c=np.float32(number)))
    assert hazard["n_embedding"][0] == "constant"
    assert why in hazard["n_embedding"][1]


def test_ordinary_constants_and_a_few_tiny_weights_are_no_hazard():
    weight = graphs.weight()
    weight[0, :5] = 1e-6
    assert found(chain(("MatMul", "w"), ("Add", "c"), w=weight, c=np.float32(0.5))) == {}


def test_weights_that_are_tiny_throughout_are_found():
    hazard = found(chain(("MatMul", "w"), w=graphs.weight(scale=1e-6)))
    assert hazard["n_embedding"][0] == "constant"


@pytest.mark.parametrize("masked", [np.finfo(np.float32).min, -np.inf, -1e9])
def test_masks_are_clamped_and_are_then_no_hazard(masked):
    model = half.typed(graphs.masked_softmax(masked))
    assert {h.what for h in hazards.find(model)} == {"mask"}
    assert hazards.clamp_masks(model) == {"masked": float(np.float32(masked))}
    feeds = {"x": X, "mask": np.tile(np.arange(graphs.WIDTH) % 3 > 0, (4, 1)).astype(np.int64)}
    assert hazards.find(model, ranges.measure(model, [feeds], "these")) == ()


def test_the_same_number_that_goes_to_no_softmax_is_a_constant():
    hazard = found(chain(("Add", "c"), ("Tanh",), c=np.float32(-3e38)))
    assert hazard["n_h0"][0] == "constant"


def test_angles_and_what_makes_them_are_kept():
    hazard = found(graphs.rotary())
    assert {node: what for node, (what, _) in hazard.items()} == {
        "n_real": "angle",
        "n_angle": "angle",
        "n_cosine": "angle",
    }


def test_float_arithmetic_on_the_way_to_an_index_is_kept():
    nodes = [
        ("Cast", ["position"], ["real"], {"to": TensorProto.FLOAT}),
        ("Mul", ["real", "third"], ["scaled"], {}),
        ("Cast", ["scaled"], ["index"], {"to": TensorProto.INT64}),
        ("Gather", ["table", "index"], ["embedding"], {}),
    ]
    inputs = (("position", TensorProto.INT64, ["batch"]),)
    hazard = found(graphs.model(nodes, {"third": np.float32(1 / 3), "table": graphs.weight()}, inputs))
    assert {node: what for node, (what, _) in hazard.items()} == {"n_real": "index", "n_scaled": "index"}


@pytest.mark.parametrize(("shape", "expected"), [(["batch", "length"], True), (["batch", 5000], True), ([1, 9], False)])
def test_sums_over_long_or_unbounded_axes_are_found(shape, expected):
    nodes = [("ReduceSum", ["x", "axes"], ["embedding"], {})]
    proto = graphs.model(nodes, {"axes": np.array([1], np.int64)}, (("x", TensorProto.FLOAT, shape),), ("batch", 1))
    assert ({what for what, _ in found(proto).values()} == {"sum"}) is expected


def test_seeded_inputs_stay_inside_the_table_and_mask_the_ends_of_rows():
    nodes = [
        ("Gather", ["table", "ids"], ["rows"], {}),
        ("Cast", ["mask"], ["real"], {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["real", "axes"], ["wide"], {}),
        ("Mul", ["rows", "wide"], ["embedding"], {}),
    ]
    integers = ("ids", TensorProto.INT64, ["batch", "length"]), ("mask", TensorProto.INT64, ["batch", "length"])
    constants = {"table": graphs.weight(7), "axes": np.array([2], np.int64)}
    model = half.typed(graphs.model(nodes, constants, integers, ("batch", "length", graphs.WIDTH)))
    card = graphs.card([("ids", "int64", ("batch", "length")), ("mask", "int64", ("batch", "length"))])
    card = dataclasses.replace(card, limits=Limits({"length": (1, 40)}))
    first, second = ranges.seeded_inputs(model, card)
    assert (first["ids"].shape, second["ids"].shape) == ((3, 16), (3, 40))
    assert 3 <= first["ids"].max() < 7
    assert first["mask"][0].all()
    assert not first["mask"][1].all()
    again = ranges.seeded_inputs(model, card)[0]
    np.testing.assert_array_equal(first["ids"], again["ids"])
    assert ranges.measure(model, [first, second], "seeded").largest["rows"] <= np.abs(constants["table"]).max()
