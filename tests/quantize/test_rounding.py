"""Searched ranges and rounded weights must be no worse than the plain ones, on what they are searched for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")

from deploykit.quantize.products import Product
from deploykit.quantize.qdq import Range, Scheme, quantize_array, range_of
from deploykit.quantize.rounding import CLIPS, compensate, round_weight, search_range
from tests.quantize.made import random


def product(*shape):
    return Product("n", "k", "MatMul", "x", "y", shape, axis=1, weight="w")


def given_back(stored):
    return stored.values.astype(np.float32) * stored.scale[None, :]


@pytest.mark.parametrize("kind", ["uint8", "int8", "float8e4m3fn"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-7.0, -2.0), (0.0, 0.0)])
def test_a_range_holds_its_ends_and_zero(kind, low, high):
    scheme = Scheme(kind)
    at = range_of(low, high, scheme)
    assert at.zero_point == 0 or not scheme.symmetric
    values = np.array([low, 0.0, high], np.float32)
    off = 0.07 * np.abs(values).max() if kind == "float8e4m3fn" else at.scale * 0.51
    got = quantize_array(values, at, scheme)
    assert np.abs(got - values).max() <= off + 1e-30
    assert got[1] == 0


def test_a_fake_quantized_array_is_what_the_engine_gives():
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    constants = [numpy_helper.from_array(np.float32(0.03), "s"), numpy_helper.from_array(np.uint8(77), "z")]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    x = random(1000) * 3
    got = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(quantize_array(x, Range(0.03, 77), Scheme()), got, atol=1e-6)


def test_a_lone_outlier_is_clipped_where_the_rest_gains_more():
    rows = random(4000, 8)
    rows[0, 0] = 60
    weight = random(5, 8, seed=1)
    plain = search_range(rows, float(rows.min()), float(rows.max()), weight, Scheme(), clips=(1.0,))
    found = search_range(rows, float(rows.min()), float(rows.max()), weight, Scheme())
    assert found.error <= plain.error
    heavy = random(512, 8)
    heavy[:, 0] *= 50  # not a lone one: every row has it
    kept = search_range(heavy, float(heavy.min()), float(heavy.max()), weight, Scheme())
    assert kept.range.scale * 255 > 0.5 * (heavy.max() - heavy.min())


@pytest.mark.parametrize(("reduce_range", "most"), [(False, 127), (True, 63)])
def test_weights_use_their_bits_by_channel_and_no_more(reduce_range, most):
    weight = random(16, 5) * np.array([1, 10, 0.1, 1e-3, 0], np.float32)
    stored = round_weight(product(16, 5), weight, None, Scheme(reduce_range=reduce_range))
    assert np.abs(stored.values).max(0)[:4].tolist() == [most] * 4
    off = np.square(given_back(stored) - weight).mean(0)
    assert (off <= 0.02**2 * np.square(weight).mean(0)).all()
    assert not stored.values[:, 4].any()


def test_rounding_with_compensation_changes_the_product_less():
    rows = random(600, 24) @ random(24, 24, seed=1)  # correlated inputs: errors can be made up for
    weight = random(24, 10, seed=2)
    scheme = Scheme(reduce_range=True)
    moments = np.square(rows, dtype=np.float64).mean(0)
    nearest = round_weight(product(24, 10), weight, moments, scheme)
    better = compensate(product(24, 10), weight, nearest, rows, scheme)
    errors = [np.square(rows @ (given_back(stored) - weight)).mean() for stored in (nearest, better)]
    assert errors[1] < 0.8 * errors[0]
    np.testing.assert_array_equal(better.scale, nearest.scale)
    assert np.abs(better.values).max() <= 63


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
def test_what_a_range_costs_is_the_mean_square_of_what_the_product_loses(shape):
    weight, rows, scheme = random(*shape), random(300, shape[1]), Scheme("int8")
    found = search_range(rows, float(rows.min()), float(rows.max()), weight, scheme)
    lost = (quantize_array(rows, found.range, scheme) - rows) @ weight.T
    exact = np.square(lost, dtype=np.float64).mean() / np.square(rows @ weight.T, dtype=np.float64).mean()
    assert found.error == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("kind", ["int8", "float8e4m3fn"])
@pytest.mark.parametrize("outlier", [1.0, 5.0, 60.0])
def test_no_range_that_was_not_tried_is_better(kind, outlier):
    weight, rows, scheme = random(12, 16), random(400, 16), Scheme(kind)
    rows[7, 3] *= outlier
    low, high = float(rows.min()), float(rows.max())
    found = search_range(rows, low, high, weight, scheme)

    def lost(clip):
        changed = quantize_array(rows, range_of(low * clip, high * clip, scheme), scheme) - rows
        return float(np.square(changed @ weight.T, dtype=np.float64).mean())

    best = min(lost(clip) for clip in CLIPS)
    changed = quantize_array(rows, found.range, scheme) - rows
    assert float(np.square(changed @ weight.T, dtype=np.float64).mean()) <= best * 1.0001
