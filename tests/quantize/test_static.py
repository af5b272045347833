"""The quantized graph must hold the pairs that were asked for, keep every name, and give nearly the same vectors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from deploykit.errors import ExportError, RecipeError, UnknownNameError  # noqa: E402
from deploykit.graph.multi_head import fuse_multi_head_attention  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.quantize.fuse import fuse_bias  # noqa: E402
from deploykit.quantize.qdq import Scheme  # noqa: E402
from deploykit.quantize.static import Method, quantize  # noqa: E402
from tests.cpus import ADDS_EXACTLY  # noqa: E402
from tests.quantize.made import feed_forward, model_of, random, run  # noqa: E402

#: Sums of products of 8 bits are exact on this CPU.
EXACT = Scheme(reduce_range=not ADDS_EXACTLY)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture
def lowered(tmp_path, calibration):
    def make(portable, scheme=None, method=None):
        task = Task(portable.path, portable.card, "onnxruntime", calibration(portable))
        return quantize(task, scheme or Scheme(), method or Method(), tmp_path), tmp_path / "model.onnx"

    return make


def made(tmp_path, proto, scheme=None, method=None, count=10):
    onnx.save(proto, tmp_path / "portable.onnx")
    batches = [{"x": random(4, 6, seed=i)} for i in range(count)]
    facts = quantize(
        Task(tmp_path / "portable.onnx", None, "", batches), scheme or Scheme(), method or Method(), tmp_path
    )
    return facts, onnx.load(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_an_encoder_gives_nearly_the_same_vectors(name, lowered, cosine, request):
    portable = request.getfixturevalue(name)
    facts, path = lowered(portable, EXACT)
    assert cosine(path, portable) > 0.98
    assert sum(facts["quantized"].values()) >= 7


def test_every_weighted_product_reads_integers_and_one_quantizer_serves_all_readers(bert, lowered):
    facts, path = lowered(bert)
    model = onnx.load(path)
    assert operators(model)["QuantizeLinear"] == 8  # of 12 products: queries, keys and values share
    assert operators(model)["DequantizeLinear"] == 8 + 12
    assert sum(facts["quantized"].values()) == 12
    stored = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(stored) == 12


def test_every_value_keeps_its_name_and_no_fp32_weight_is_left(bert, lowered):
    _, path = lowered(bert)
    before, after = onnx.load(bert.path), onnx.load(path)
    names = [{out for node in model.graph.node for out in node.output} for model in (before, after)]
    assert names[0] < names[1]
    floats = {tuple(t.dims) for t in after.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert (24, 40) not in floats
    assert (40, 24) not in floats


def test_attention_is_quantized_only_when_asked_for(bert, lowered, cosine):
    _, path = lowered(bert, replace(EXACT, attention=True))
    assert operators(onnx.load(path))["QuantizeLinear"] == 8 + 8
    assert cosine(path, bert) > 0.97


def test_kept_kinds_stay_fp32_and_are_listed(bert, lowered):
    facts, path = lowered(bert, Scheme(keep=("*.self.*",)))
    assert len(facts["kept_fp32"]) == 3
    assert sum(facts["quantized"].values()) == 6
    assert operators(onnx.load(path))["QuantizeLinear"] == 6


@pytest.mark.parametrize("kind", ["int8", "float8e4m3fn"])
def test_symmetric_schemes_have_no_zero_point(kind, tmp_path):
    _, model = made(tmp_path, feed_forward(), Scheme(kind))
    zeros = [t for t in model.graph.initializer if t.name.endswith("_zero_point")]
    assert zeros
    assert all(not np.any(onnx.numpy_helper.to_array(t).astype(np.float32)) for t in zeros)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_feed_forward_block_is_close_in_every_way_of_rounding(kind, rounding, tmp_path):
    proto = feed_forward()
    _, model = made(tmp_path, proto, Scheme(kind), Method(rounding=rounding))
    x = random(50, 6, seed=77)
    want, got = run(proto, x)[0], run(model, x)[0]
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).mean()


def test_a_corrected_bias_takes_the_mean_error_away(tmp_path):
    proto = feed_forward()
    x = np.concatenate([random(4, 6, seed=i) for i in range(10)])
    want = run(proto, x)[0]
    off = []
    for correct in (False, True):
        _, model = made(tmp_path, proto, Scheme(reduce_range=True), Method("off", False, "nearest", correct))
        off.append(np.abs((run(model, x)[0] - want).mean(0)).sum())
    assert off[1] < 0.5 * off[0]


def test_multi_head_attention_is_still_fused_and_biases_then_join_the_integer_products(bert, lowered, cosine, tmp_path):
    _, path = lowered(bert)
    model = ir.from_proto(onnx.load(path))
    assert fuse_multi_head_attention(model) == 2
    assert fuse_bias(model) == 6
    proto = ir.to_proto(model)
    onnx.save(proto, tmp_path / "fused.onnx")
    assert operators(proto)["MatMulIntegerToFloat"] == 6
    assert cosine(tmp_path / "fused.onnx", bert) == pytest.approx(cosine(path, bert), abs=1e-4)


def test_a_weight_that_two_products_share_is_stored_once(tmp_path):
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    _, model = made(tmp_path, model_of(nodes, {"w": random(6, 6)}))
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in model.graph.initializer) == 1


def test_a_weight_behind_a_transpose_is_stored_as_it_is_read(tmp_path):
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        onnx.helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    proto = model_of(nodes, {"w": random(4, 6)})
    _, model = made(tmp_path, proto)
    assert "Transpose" not in operators(model)
    x = random(9, 6, seed=3)
    assert np.abs(run(model, x)[0] - run(proto, x)[0]).mean() < 0.1


@pytest.mark.parametrize(("count", "words"), [(0, "there are none"), (1, "4 calibration inputs")])
def test_too_little_to_calibrate_on_is_an_error(count, words, tmp_path):
    with pytest.raises(RecipeError, match=words):
        made(tmp_path, feed_forward(), count=count)


def test_a_model_without_products_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="no product"):
        made(tmp_path, model_of([onnx.helper.make_node("Relu", ["x"], ["y"])], {}))


def test_keeping_everything_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="keep leaves no product"):
        made(tmp_path, feed_forward(), Scheme(keep=("*",)))


def test_an_unknown_kind_is_an_error_that_names_the_nearest(tmp_path):
    with pytest.raises(UnknownNameError, match="frist") as caught:
        made(tmp_path, feed_forward(), Scheme(keep=("frist",)))
    assert "first" in caught.value.hint


def test_an_opset_without_per_channel_scales_is_an_error(tmp_path):
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    with pytest.raises(ExportError, match="opset 12"):
        made(tmp_path, model_of(nodes, {"w": random(6, 6)}, opset=12))
