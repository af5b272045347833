"""onnxruntime's audit must count as int8 what its kernels multiply in int8, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit import audit as audits  # noqa: E402
from deploykit import registry  # noqa: E402
from deploykit.errors import RecipeError  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime.manifest import Card, Embedding  # noqa: E402

target = registry.module("targets", "onnxruntime")
dynamic = registry.module("precisions", "int8-dynamic")
CARD = Card("m", "tensors", (), (), Embedding("y", 5, "mean", False), {})


def constants():
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((24, 5)).astype(np.float32),
        "w_int8": rng.integers(-127, 128, (24, 5)).astype(np.int8),
        "w_scale": np.full(5, 0.01, np.float32),
        "w_zero": np.zeros(5, np.int8),
        "x_scale": np.array(0.03, np.float32),
        "x_zero": np.array(117, np.uint8),
        "y_scale": np.array(0.2, np.float32),
    }


def save(folder, *nodes, name="lowered.onnx"):
    """A model from x [batch, 24] to y [batch, 5]; nodes are (operator, inputs, outputs, attributes)."""
    read = {value for _, inputs, _, _ in nodes for value in inputs}
    graph = helper.make_graph(
        [helper.make_node(op, inputs, outputs, **attributes) for op, inputs, outputs, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, key) for key, array in constants().items() if key in read],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / name)
    return folder / name


STORED_X = ("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"], {})
LOADED_X = ("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"], {})
LOADED_W = ("DequantizeLinear", ["w_int8", "w_scale", "w_zero"], ["wd"], {"axis": 1})


def compile_and_audit(model, precision, folder):
    out = folder / "compiled"
    out.mkdir()
    compiled = target.compile(model, CARD, precision, target.Options(), out)
    artifact = out / compiled.path if compiled.path else model
    return compiled, target.audit(artifact, CARD, compiled.settings)


def test_a_product_between_quantized_values_is_int8(tmp_path):
    nodes = [STORED_X, LOADED_X, LOADED_W, ("MatMul", ["xd", "wd"], ["y"], {})]
    _, facts = compile_and_audit(save(tmp_path, *nodes), "int8", tmp_path)
    assert (facts["products"], facts["asked"], facts["effective"]) == ({"int8": 1}, "int8", "int8")
    assert "asked for int8, runs 1 matrix product in int8" in facts["sentence"]


def test_a_product_with_a_quantized_weight_alone_counts_as_what_the_kernel_computes_in(tmp_path):
    """ONNX Runtime turns it into MatMulNBits, which rounds the activations too, unless it may not optimise so far."""
    path = save(tmp_path, LOADED_W, ("MatMul", ["x", "wd"], ["y"], {}))
    assert target.audit(path, CARD, {})["operations"] == {"MatMulNBits": {"int8": 1}}
    facts = target.audit(path, CARD, {"graph_optimization": "basic"})
    assert (facts["products"], facts["effective"], facts["stored"]) == ({"fp32": 1}, "fp32", "int8")
    assert "1 matrix product in fp32, none in int8; only the storage of the weights is int8" in facts["sentence"]


def test_without_its_optimisation_the_same_graph_runs_in_fp32(tmp_path):
    nodes = [STORED_X, LOADED_X, LOADED_W, ("MatMul", ["xd", "wd"], ["y"], {})]
    path = save(tmp_path, *nodes)
    before = target.audit(path, CARD, {})
    after = target.audit(path, CARD, {"graph_optimization": "off"})
    assert after["products"] == {"fp32": 1}
    worse = [change.what for change in audits.diff(before, after) if change.worse]
    assert worse == ["effective", "products"]


def test_the_dynamic_chain_is_one_int8_kernel(tmp_path):
    path = save(tmp_path, ("MatMul", ["x", "w"], ["y"], {}))
    dynamic.lower(Task(path, CARD), dynamic.Options(cpu="any"), tmp_path)
    _, facts = compile_and_audit(tmp_path / "model.onnx", "int8-dynamic", tmp_path)
    assert facts["operations"] == {"DynamicQuantizeMatMul": {"int8": 1}}
    assert (facts["asked"], facts["products"], facts["effective"]) == ("int8-dynamic", {"int8": 1}, "int8")
    assert facts["device"] == "CPUExecutionProvider"
    assert "on CPUExecutionProvider" in facts["sentence"]


@pytest.mark.parametrize(("level", "precision"), [(4, "int8"), (0, "fp32")])
def test_blocks_of_int8_weights_compute_in_what_their_level_says(tmp_path, level, precision):
    path = save(tmp_path, ("MatMul", ["x", "w"], ["y"], {}))
    dynamic.lower(Task(path, CARD), dynamic.Options(cpu="any", blockwise=("*",)), tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(a for a in node.attribute if a.name == "accuracy_level").i = level
    onnx.save(model, tmp_path / "model.onnx")
    assert target.audit(tmp_path / "model.onnx", CARD, {})["products"] == {precision: 1}


def test_what_was_asked_for_is_noted_though_the_graph_shows_nothing_of_it(tmp_path):
    path = save(tmp_path, ("MatMul", ["x", "w"], ["y"], {}))
    _, facts = compile_and_audit(path, "int8", tmp_path)
    assert facts["asked"] == "int8"
    assert "1 matrix product in fp32, none in int8." in facts["sentence"]


def test_an_fp32_model_with_nothing_to_fuse_is_asked_for_fp32(tmp_path):
    path = save(tmp_path, ("MatMul", ["x", "w"], ["y"], {}))
    compiled, facts = compile_and_audit(path, "fp32", tmp_path)
    assert compiled.path == ""
    assert (facts["asked"], facts["stored"], facts["products"]) == ("fp32", "fp32", {"fp32": 1})


def test_casts_are_of_the_type_that_they_make(tmp_path):
    nodes = [
        ("Cast", ["x"], ["xh"], {"to": TensorProto.DOUBLE}),
        ("Neg", ["xh"], ["xn"], {}),
        ("Cast", ["xn"], ["xf"], {"to": TensorProto.FLOAT}),
        ("MatMul", ["xf", "w"], ["y"], {}),
    ]
    facts = target.audit(save(tmp_path, *nodes), CARD, {})
    assert facts["operations"]["Cast"] == {"double": 1, "fp32": 1}


@pytest.mark.parametrize("encoder", ["bert", "vit"])
def test_dynamic_int8_keeps_the_fused_attention_and_runs_every_product_in_int8(request, tmp_path, encoder):
    from deploykit.runtime.engines import EngineOptions, open_engine

    portable = request.getfixturevalue(encoder)
    options = dynamic.Options(cpu="any", embeddings=False)
    facts = dynamic.lower(Task(portable.path, portable.card), options, tmp_path)
    out = tmp_path / "compiled"
    out.mkdir()
    compiled = target.compile(tmp_path / "model.onnx", portable.card, "int8-dynamic", target.Options(), out)
    found = target.audit(out / compiled.path, portable.card, compiled.settings)
    assert found["attention"] == {"found": 2, "fused": 2}
    convolutions = 1 if encoder == "vit" else 0
    assert found["products"] == ({"int8": 12} | ({"fp32": convolutions} if convolutions else {}))
    assert (facts["quantized"], len(facts["kept_fp32"])) == (12, convolutions)
    assert json.loads(json.dumps(found)) == found
    engine = open_engine("onnxruntime", out / compiled.path, portable.card, compiled.settings, EngineOptions(1))
    try:
        feeds = portable.feeds(3, 11)
        got = engine.run({name: np.asarray(t) for name, t in feeds.items()})[portable.card.embedding.output]
    finally:
        engine.close()
    want = portable.reference(feeds)
    cosines = (want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1)
    assert cosines.min() > 0.95


def test_attention_with_quantized_weights_of_its_own_is_found_and_not_fused(bert, tmp_path):
    """Quantizing the softmax's output leaves the attention written out: it must still be counted as one."""
    model = onnx.load(bert.path)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    weights = softmax.output[0]
    for node in model.graph.node:
        node.input[:] = ["again" if value == weights else value for value in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "p_scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(0), "p_zero"))
    at = list(model.graph.node).index(softmax) + 1
    model.graph.node.insert(at, helper.make_node("DequantizeLinear", ["stored", "p_scale", "p_zero"], ["again"], "dq"))
    model.graph.node.insert(at, helper.make_node("QuantizeLinear", [weights, "p_scale", "p_zero"], ["stored"], "q"))
    onnx.save(model, tmp_path / "quantized.onnx")
    out = tmp_path / "out"
    out.mkdir()
    compiled = target.compile(tmp_path / "quantized.onnx", bert.card, "int8", target.Options(), out)
    facts = target.audit(out / compiled.path, bert.card, compiled.settings)
    assert facts["attention"] == {"found": 2, "fused": 1}


def test_a_precision_that_the_provider_does_not_run_is_refused_with_those_that_it_does(tmp_path):
    with pytest.raises(RecipeError, match="'fp8'") as caught:
        target.compile(tmp_path / "model.onnx", CARD, "fp8", target.Options(), tmp_path)
    assert all(precision in caught.value.hint for precision in target.PRECISIONS)
