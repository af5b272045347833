"""Float8 must be stored as float8, scaled to its largest number, near the fp32 vectors, and what TensorRT takes."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, numpy_helper  # noqa: E402

from deploykit.errors import ExportError, RecipeError  # noqa: E402
from deploykit.precisions import Task, fp8  # noqa: E402
from deploykit.quantize import lint  # noqa: E402
from tests.graph import hazard_graphs as graphs  # noqa: E402
from tests.quantize.conftest import bert, calibration  # noqa: F401, E402
from tests.quantize.test_symmetric import worst_cosine  # noqa: E402


@pytest.fixture(scope="module")
def lowered(bert, calibration, tmp_path_factory):  # noqa: F811
    """``lowered(**options)``: (facts, model) of the BERT, once for each set of options."""
    made = {}

    def make(**options):
        key = tuple(options.items())
        if key not in made:
            out = tmp_path_factory.mktemp("fp8")
            task = Task(bert.path, bert.card, "symmetric", calibration(bert))
            facts = fp8.lower(task, fp8.Options(**options), out)
            model = onnx.load(out / "model.onnx")
            onnx.checker.check_model(model, full_check=True)
            made[key] = facts, model
        return made[key]

    return make


@pytest.mark.parametrize("remainder", ["fp16", "fp32"])
def test_vectors_are_near_and_tensorrt_takes_it(lowered, bert, remainder):  # noqa: F811
    facts, model = lowered(remainder=remainder)
    assert lint.check(model) == ()
    assert worst_cosine(model, bert) > 0.98
    assert facts["remainder"] == remainder
    assert facts["requires"] == {"compute_capability": "8.9"}


@pytest.mark.parametrize(("remainder", "kind"), [("fp16", TensorProto.FLOAT16), ("fp32", TensorProto.FLOAT)])
def test_weights_are_stored_in_fp8_by_output_channel(lowered, remainder, kind):
    _, model = lowered(remainder=remainder)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(weights) == 12
    for node in weights:
        values, scale = constants[node.input[0]], constants[node.input[1]]
        assert values.data_type == TensorProto.FLOAT8E4M3FN
        assert scale.data_type == kind
        assert list(scale.dims) == [values.dims[1]]
        # The largest weight of every channel takes the largest number that there is.
        assert (np.abs(numpy_helper.to_array(values).astype(np.float32)).max(0) == 448).all()


def test_an_activation_has_one_scale_its_largest_value_over_448(tmp_path):
    onnx.save(graphs.model([("MatMul", ["x", "w"], ["embedding"], {})], {"w": graphs.weight()}), tmp_path / "fp32.onnx")
    x = np.random.default_rng(0).standard_normal((9, graphs.WIDTH)).astype(np.float32)
    task = Task(tmp_path / "fp32.onnx", graphs.card(), "symmetric", [{"x": x}])
    fp8.lower(task, fp8.Options(remainder="fp32"), tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    scale = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == quantize.input[1])
    assert scale.shape == ()
    assert scale == pytest.approx(np.abs(x).max() / 448)


def test_attention_products_and_biases_are_not_quantized(lowered):
    _, model = lowered(remainder="fp32")
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 8  # four activations of each of the two blocks
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    made = {node.output[0]: node.op_type for node in model.graph.node}
    assert not [node for node in adds if any(made.get(name) == "DequantizeLinear" for name in node.input)]


def test_an_opset_without_float8_is_an_error(tmp_path):
    proto = graphs.model([("MatMul", ["x", "w"], ["embedding"], {})], {"w": graphs.weight()})
    proto.opset_import[0].version = 18
    onnx.save(proto, tmp_path / "fp32.onnx")
    x = np.ones((9, graphs.WIDTH), np.float32)
    with pytest.raises(ExportError, match="opset 18"):
        fp8.lower(Task(tmp_path / "fp32.onnx", graphs.card(), "symmetric", [{"x": x}]), fp8.Options(), tmp_path)


def test_nothing_to_calibrate_on_is_an_error(tmp_path):
    onnx.save(graphs.model([("MatMul", ["x", "w"], ["embedding"], {})], {"w": graphs.weight()}), tmp_path / "fp32.onnx")
    with pytest.raises(RecipeError, match="calibrat"):
        fp8.lower(Task(tmp_path / "fp32.onnx", graphs.card(), "symmetric"), fp8.Options(), tmp_path)
