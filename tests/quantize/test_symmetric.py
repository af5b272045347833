"""Int8 for TensorRT must be what its parser takes, near the fp32 vectors, and fp16 in between."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper  # noqa: E402

from deploykit.errors import CheckError, RecipeError, UnknownNameError  # noqa: E402
from deploykit.graph import half  # noqa: E402
from deploykit.precisions import Task, int8  # noqa: E402
from deploykit.quantize import lint, symmetric  # noqa: E402
from tests.graph import hazard_graphs as graphs  # noqa: E402
from tests.quantize.conftest import as_arrays  # noqa: E402


def lower(portable, batches, out, **options):
    """(facts, the lowered model)."""
    task = Task(portable.path, portable.card, "symmetric", batches)
    facts = symmetric.quantize(task, int8.Options(**options), out)
    lowered = onnx.load(out / "model.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    return facts, lowered


def worst_cosine(proto, portable):
    """Against torch over several shapes, every fp16 result rounded, nothing fused."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(half.rounded(proto).SerializeToString(), options)
    taken = {value.name for value in session.get_inputs()}
    scores = []
    for batch, length in ((1, 7), (3, 12)):
        feeds = portable.feeds(batch, length)
        want = portable.reference(feeds)
        got = session.run(None, {name: array for name, array in as_arrays(feeds).items() if name in taken})[0]
        scores.append(np.sum(got * want, 1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1))
    return float(np.concatenate(scores).min())


@pytest.fixture(scope="module")
def lowered_bert(bert, calibration, tmp_path_factory):
    return lower(bert, calibration(bert), tmp_path_factory.mktemp("int8"))


def test_tensorrt_takes_it_and_its_vectors_are_near(lowered_bert, bert):
    facts, lowered = lowered_bert
    assert lint.check(lowered) == ()
    assert worst_cosine(lowered, bert) > 0.99
    assert facts["requires"] == {"compute_capability": "8.0"}


def test_every_weighted_product_reads_int8_and_biases_are_float(lowered_bert):
    facts, lowered = lowered_bert
    assert sum(facts["quantized"].values()) == 12
    constants = {tensor.name: tensor for tensor in lowered.graph.initializer}
    weights = [n for n in lowered.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(weights) == 12
    for node in weights:
        values, scale = constants[node.input[0]], numpy_helper.to_array(constants[node.input[1]])
        assert values.data_type == TensorProto.INT8
        assert scale.shape == (values.dims[1],)
    assert not [tensor for tensor in lowered.graph.initializer if tensor.data_type == TensorProto.INT32]


def test_what_is_not_quantized_is_fp16_but_for_the_hazards(lowered_bert):
    facts, lowered = lowered_bert
    assert facts["remainder"] == "fp16"
    assert facts["rest"]["nodes_half"] > 40
    assert {h["what"] for h in facts["rest"]["hazards"]} <= {"sum", "square", "constant"}
    large = [t for t in lowered.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 24]
    assert not large


def test_kinds_that_are_kept_stay_in_the_remainder(bert, calibration, tmp_path):
    facts, lowered = lower(bert, calibration(bert), tmp_path, keep=("*layer.*.output.dense",))
    assert sum(facts["quantized"].values()) in (8, 10)
    assert any(kind.endswith("output.dense") for kind in facts["kept_fp32"])
    assert worst_cosine(lowered, bert) > 0.99


def test_migration_saves_an_activation_with_an_outlier_channel(tmp_path):
    onnx.save(graphs.model(*outlier_layers()), tmp_path / "portable.onnx")
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((4, graphs.WIDTH)).astype(np.float32)} for _ in range(6)]
    want = onnxruntime.InferenceSession(str(tmp_path / "portable.onnx")).run(None, batches[0])[0]
    cosine = {}
    for smooth in (True, False):
        task = Task(tmp_path / "portable.onnx", graphs.card(), "symmetric", batches)
        symmetric.quantize(task, int8.Options(smooth=smooth), tmp_path)
        got = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, batches[0])[0]
        cosine[smooth] = (np.sum(got * want, 1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)).min()
    assert cosine[True] > 0.999
    assert 1 - cosine[True] < 0.5 * (1 - cosine[False])


def outlier_layers():
    """LayerNormalization with one channel a hundred times the others, whose weights are small, and a product."""
    scale, weight = np.ones(graphs.WIDTH, np.float32), graphs.weight()
    scale[3], weight[3] = 100.0, weight[3] / 100
    nodes = [
        ("LayerNormalization", ["x", "scale", "zero"], ["normed"], {"axis": -1}),
        ("MatMul", ["normed", "w"], ["embedding"], {}),
    ]
    return nodes, {"scale": scale, "zero": np.zeros(graphs.WIDTH, np.float32), "w": weight}


def test_too_little_to_calibrate_on_and_unknown_kinds_are_errors(bert, calibration, tmp_path):
    with pytest.raises(RecipeError, match="calibrat"):
        lower(bert, (), tmp_path)
    with pytest.raises(UnknownNameError, match="nothing"):
        lower(bert, calibration(bert), tmp_path, keep=("nothing",))
    assert list(tmp_path.iterdir()) == []


def test_a_source_with_operators_of_an_engine_is_refused_before_it_is_written(tmp_path):
    nodes, constants = outlier_layers()
    nodes[1] = ("MatMul", ["normed", "w"], ["h"], {})
    nodes.append(("Gelu", ["h"], ["embedding"], {}))
    proto = graphs.model(nodes, constants)
    proto.graph.node[2].domain = "com.microsoft"
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, tmp_path / "portable.onnx")
    batches = [{"x": np.random.default_rng(0).standard_normal((9, graphs.WIDTH)).astype(np.float32)}]
    with pytest.raises(CheckError, match=r"com\.microsoft"):
        symmetric.quantize(
            Task(tmp_path / "portable.onnx", graphs.card(), "symmetric", batches), int8.Options(), tmp_path
        )
    assert not (tmp_path / "model.onnx").exists()
