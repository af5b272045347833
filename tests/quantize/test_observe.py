"""What is observed must be the activations of real positions, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit.errors import CheckError  # noqa: E402
from deploykit.quantize.observe import observe  # noqa: E402
from tests.quantize.made import feed_forward, model_of, random  # noqa: E402


def lookup():
    """A model that looks ids up in a table [10, 3] and doubles them; id 0 is padding, with absurd entries."""
    table = random(10, 3)
    table[0] = 1e6
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["h"]),
            helper.make_node("Add", ["h", "h"], ["y"]),
            helper.make_node("Identity", ["attention_mask"], ["m"]),
        ],
        "lookup",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"])
            for n in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("m", TensorProto.INT64, None),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), table


def batch(*rows):
    ids = np.array(rows, np.int64)
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


@pytest.mark.parametrize("rows", [[[1, 2, 0, 0], [3, 4, 5, 6]], [[0, 0, 1, 2], [3, 4, 5, 6]]])
def test_padding_at_either_end_is_left_out(rows):
    model, table = lookup()
    seen = observe(model, {"h": -1}, [batch(*rows)])["h"]
    assert seen.count == 6
    np.testing.assert_allclose(seen.high, table[1:7].max(0))
    np.testing.assert_allclose(seen.low, table[1:7].min(0))
    np.testing.assert_allclose(seen.mean, table[1:7].mean(0), rtol=1e-6)


def test_rows_are_positions_and_come_from_every_input():
    model, table = lookup()
    batches = [batch([i] * 400) for i in range(1, 10)]
    rows = observe(model, {"h": -1}, batches)["h"].rows
    assert len(rows) < 9 * 400
    assert {tuple(row) for row in rows} == {tuple(row) for row in table[1:]}


def test_the_channels_of_an_image_are_its_second_axis():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {}, x=("batch", 3, 4, 5))
    image = random(2, 3, 4, 5)
    seen = observe(model, {"x": 1}, [{"x": image}])["x"]
    np.testing.assert_array_equal(seen.high, image.max((0, 2, 3)))
    assert seen.rows.shape == (40, 3)


def test_a_tensor_can_be_observed_as_a_whole():
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {})
    x = random(2, 6)
    seen = observe(model, {"x": None}, [{"x": x}])["x"]
    assert (seen.low.item(), seen.high.item(), seen.count) == (x.min(), x.max(), 12)


def test_nan_names_the_node_and_the_input():
    batches = [{"x": random(1, 6)} for _ in range(4)]
    batches[2]["x"][0, 3] = np.inf
    with pytest.raises(CheckError, match=r"'n' \(written by the LayerNormalization node 'norm'\).*input 2"):
        observe(feed_forward(), {"n": -1}, batches)
