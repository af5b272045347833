"""What goes through together must give the ranges and the statistics of what goes through alone."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx_ir as ir  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.graph import ranges  # noqa: E402
from deploykit.graph.ranges import stacked  # noqa: E402
from deploykit.quantize.observe import observe  # noqa: E402

DRAW = np.random.default_rng(5)


def model(batch="batch"):
    """x [batch, length, 4] times a weight, transposed, moved about and cut."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Transpose", ["product"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["turned"], ["again"]),
        helper.make_node("Slice", ["again", "zero", "one", "axis"], ["cut"]),
        helper.make_node("Identity", ["x"], ["given"]),
        helper.make_node("Relu", ["cut"], ["y"]),
    ]
    numbers = {"zero": np.array([0]), "one": np.array([1]), "axis": np.array([1])}
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * np.float32([0.1, 1, 1])
    graph = helper.make_graph(
        nodes,
        "moved",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, "length", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "given")],
        [numpy_helper.from_array(array, name) for name, array in {"w": weight, **numbers}.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def inputs(*lengths):
    return [{"x": DRAW.normal(size=(1, length, 4)).astype(np.float32)} for length in lengths]


def places(given, **shape):
    return sorted(group for _, group in stacked(model(**shape), given))


def test_inputs_of_one_size_go_together_and_others_do_not():
    given = inputs(3, 5, 3, 3, 7)
    assert places(given) == [(0, 2, 3), (1,), (4,)]
    together = next(feeds for feeds, group in stacked(model(), given) if len(group) == 3)
    np.testing.assert_array_equal(together["x"], np.concatenate([given[i]["x"] for i in (0, 2, 3)]))


def test_a_batch_stays_small_and_a_fixed_or_a_given_one_stays_as_it_is():
    assert max(map(len, places(inputs(*[64] * 9)))) * 64 * 4 <= 1024
    assert places(inputs(200, 200)) == [(0,), (1,)]
    assert places(inputs(3, 3), batch=1) == [(0,), (1,)]
    assert places([{"x": np.zeros((2, 3, 4), np.float32)}] * 2) == [(0,), (1,)]


def test_ranges_are_the_largest_numbers_of_every_value():
    given = inputs(3, 5, 3)
    found = ranges.measure(ir.from_proto(model()), given, "three").largest
    weight = numpy_helper.to_array(model().graph.initializer[0])
    products = [feeds["x"] @ weight for feeds in given]
    whole = max(np.abs(product).max() for product in products)
    cut = max(np.abs(product[..., 0]).max() for product in products)
    for name, value in {"product": whole, "turned": whole, "again": whole, "cut": cut}.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    assert found["given"] == found["x"] == max(np.abs(feeds["x"]).max() for feeds in given)
    assert cut < whole


def test_what_is_observed_together_is_what_is_observed_alone():
    given = inputs(3, 5, 3, 9, 5)
    together = observe(model(), {"product": -1}, given)["product"]
    alone = observe(model(batch=1), {"product": -1}, given)["product"]
    assert together.count == alone.count == 25
    for name in ("low", "high", "mean"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sort(together.rows, axis=0), np.sort(alone.rows, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("allowed", "wanted"), [("1", 1), ("99", 4), ("0", 4), ("", 4), ("many", 4)])
def test_threads_are_those_that_are_allowed(monkeypatch, allowed, wanted):
    monkeypatch.setattr(ranges, "usable_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    assert ranges.threads() == wanted
