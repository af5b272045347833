"""A migration must leave the function as it is, go where it costs nothing, and take error away."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from deploykit.quantize import products, smooth  # noqa: E402
from deploykit.quantize.observe import observe  # noqa: E402
from deploykit.quantize.qdq import Scheme  # noqa: E402
from tests.quantize.made import feed_forward, random, run  # noqa: E402


def migrate(proto, which, *, allow_mul=False, scheme=None):
    """(the changed model, the migration of site ``which`` or None)."""
    model = ir.from_proto(proto)
    site = smooth.sites(products.find(model))[which]
    batches = [{"x": random(5, 6, seed=i)} for i in range(20)]
    seen = observe(proto, {site.activation: -1}, batches)[site.activation]
    found = smooth.search(model, site, seen, scheme or Scheme("int8"), allow_mul=allow_mul)
    if found is not None:
        smooth.apply(model, site, found)
    return ir.to_proto(model), found


@pytest.mark.parametrize("norm_bias", [True, False])
def test_a_normalization_takes_the_factors_in(norm_bias):
    before = feed_forward(norm_bias=norm_bias)
    after, found = migrate(before, 0)
    assert (found.way, found.after < found.before) == ("norm", True)
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]
    x = random(7, 6, seed=9)
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], rtol=1e-4, atol=1e-4)
    ratio = run(before, x, ["n"])[0] / run(after, x, ["n"])[0]
    np.testing.assert_allclose(ratio, np.broadcast_to(found.factors, ratio.shape), rtol=1e-4)


def test_a_relu_lets_the_factors_through_to_the_product_before():
    before = feed_forward("Relu")
    after, found = migrate(before, 1)
    assert found.way == "linear"
    x = random(7, 6, seed=9)
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], rtol=1e-4, atol=1e-4)


def test_a_gelu_lets_nothing_through_and_takes_a_mul_where_one_is_allowed():
    before = feed_forward("Gelu")
    assert migrate(before, 1)[1] is None
    after, found = migrate(before, 1, allow_mul=True)
    assert found.way == "mul"
    assert [n.op_type for n in after.graph.node].count("Mul") == 1
    x = random(7, 6, seed=9)
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], rtol=1e-4, atol=1e-4)


def test_an_activation_that_something_else_reads_is_not_rescaled():
    proto = feed_forward()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, None))
    assert migrate(proto, 0)[1] is None


def test_what_attention_makes_is_rescaled_in_the_values_before_it(bert):
    proto = onnx.load(bert.path)
    model = ir.from_proto(proto)
    sites = [s for s in smooth.sites(products.find(model)) if s.products[0].kind.endswith("attention.output.dense")]
    values = smooth.values_of(model)
    routes = [smooth.route(values, site, allow_mul=False) for site in sites]
    assert [r.way for r in routes] == ["linear", "linear"]
    before = {name: np.array(v.const_value.numpy()) for name, v in model.graph.initializers.items()}
    factors = np.exp(random(24)).astype(np.float32)
    smooth.apply(model, sites[0], smooth.Migration(sites[0].activation, "linear", 0.5, 1, 0, factors))
    after = {name: np.array(v.const_value.numpy()) for name, v in model.graph.initializers.items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(changed) == 3
    assert any(name.endswith("attention.self.value.bias") for name in changed)
    import onnxruntime

    feeds = {name: np.asarray(t) for name, t in bert.feeds(3, 9).items()}
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    taken = {i.name for i in session.get_inputs()}
    got = session.run(None, {name: array for name, array in feeds.items() if name in taken})[0]
    np.testing.assert_allclose(got, bert.reference(bert.feeds(3, 9)), atol=1e-5)


def test_factors_are_the_formula_up_to_a_common_one_and_leave_dead_channels_alone():
    x, w = np.array([4.0, 9.0, 0.0]), np.array([1.0, 4.0, 2.0])
    factors = smooth.factors_of(x, w, 0.5)
    assert factors[2] == 1
    np.testing.assert_allclose(factors[1] / factors[0], np.sqrt(9 / 4) / np.sqrt(4 / 1), rtol=1e-6)
    np.testing.assert_allclose(factors[0] * factors[1], 1, rtol=1e-6)
