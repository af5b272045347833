"""Int8 in OpenVINO: what it is told to compute in, what its audit counts, and what it takes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import onnx

from deploykit.errors import RecipeError
from deploykit.precisions import Task
from deploykit.runtime import hardware
from deploykit.runtime.manifest import Card, Embedding, TensorSpec
from deploykit.targets.openvino import Options, audit, compile
from tests.cpus import ADDS_EXACTLY

HAS_BF16 = bool({"amx_bf16", "avx512_bf16"} & hardware.cpu().features)
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")
CARD = Card(
    "m",
    "tensors",
    (TensorSpec("x", "float32", ("n", "length", 8)),),
    (TensorSpec("y", "float32", ("n", "length", 8)),),
    Embedding("y", 8, "none", False),
    {"kind": "none"},
)
# One attention over x itself: its softmax is quantized too, and its last product is not.
ATTENTION = """
<ir_version: 9, opset_import: ["": 20]>
g (float[n, length, 8] x) => (float[n, length, 8] y)
<float scale = {0.02}, int8 zero = {0}, float tiny = {0.004}, uint8 none = {0}>
{
  xq = QuantizeLinear(x, scale, zero)
  xd = DequantizeLinear(xq, scale, zero)
  wd = DequantizeLinear(w, scale, zero)
  values = MatMul(xd, wd)
  keys = Transpose<perm = [0, 2, 1]>(xd)
  scores = MatMul(xd, keys)
  weights = Softmax<axis = -1>(scores)
  sq = QuantizeLinear(weights, tiny, none)
  sd = DequantizeLinear(sq, tiny, none)
  mixed = MatMul(sd, values)
  y = MatMul(mixed, v)
}
"""


@pytest.fixture
def attention(tmp_path):
    model = onnx.parser.parse_model(ATTENTION)
    draw = np.random.default_rng(0)
    weights = {"w": draw.integers(-100, 100, (8, 8)).astype(np.int8), "v": draw.normal(size=(8, 8)).astype(np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, tmp_path / "lowered.onnx")
    return tmp_path / "lowered.onnx"


@pytest.fixture(scope="session")
def bert_int8(bert, tmp_path_factory):
    """The targets' BERT as the precision int8 lowers it for OpenVINO."""
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("NNCF is not installed")
    from deploykit.precisions.int8 import Options as Int8
    from deploykit.precisions.int8 import lower

    out = tmp_path_factory.mktemp("int8")
    batches = [{name: np.asarray(array) for name, array in bert.feeds(1, 4 + 4 * i).items()} for i in range(10)]
    lower(Task(bert.path, bert.card, "openvino", batches), Int8(), out)
    return out / "model.onnx"


def made(model, card, folder, **options):
    folder.mkdir(exist_ok=True)
    result = compile(model, card, "int8", Options(**options), folder)
    return result, audit(folder / result.path, card, result.settings)


def test_what_is_not_quantized_runs_in_fp32_unless_asked_otherwise(attention, tmp_path):
    result, facts = made(attention, CARD, tmp_path)
    assert result.settings == {"INFERENCE_PRECISION_HINT": "f32"}
    assert result.requires == {}
    assert "everything else in fp32" in result.notes[0]
    assert (facts["asked"], facts["effective"], facts["remainder"]) == ("int8", "int8", "fp32")


@needs_bf16
def test_a_bf16_remainder_is_stated_and_demands_the_cpu_feature(attention, tmp_path):
    result, facts = made(attention, CARD, tmp_path, int8_remainder="bf16")
    assert result.settings == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert result.requires["cpu_features"] == ["amx_bf16|avx512_bf16"]
    assert "everything else in bf16" in result.notes[0]
    assert (facts["asked"], facts["remainder"]) == ("int8", "bf16")


def test_products_are_counted_by_the_precision_that_they_run_in(attention, tmp_path):
    _, facts = made(attention, CARD, tmp_path)
    assert set(facts["products"]) == {"int8", "fp32"}
    assert facts["products"]["fp32"] >= 1
    assert "in int8" in facts["sentence"]
    assert "in fp32" in facts["sentence"]
    assert json.loads(json.dumps(facts)) == facts


def test_an_attention_is_found_behind_quantized_weights(attention, tmp_path):
    _, facts = made(attention, CARD, tmp_path)
    assert facts["attention"]["found"] == 1


@pytest.mark.parametrize("remainder", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_every_weighted_product_is_int8_and_every_attention_fused(bert, bert_int8, tmp_path, remainder):
    _, facts = made(bert_int8, bert.card, tmp_path, int8_remainder=remainder)
    assert facts["operations"]["FullyConnected"]["int8"] == 12
    # The one that ends the fp32 tail.
    assert facts["products"].get("bf16", 0) == (1 if remainder == "bf16" else 0)
    assert facts["attention"]["found"] == 2
    if ADDS_EXACTLY:
        assert facts["products"]["int8"] == 12
        assert facts["operations"]["Subgraph"]["int8"] == 2
        assert facts["attention"]["fused"] == 2
    else:  # OpenVINO fuses an attention with int8 scores on CPUs with VNNI alone
        assert facts["products"] == {"fp32": 2, "int8": 14}
        assert facts["attention"]["fused"] == 0


@needs_bf16
def test_the_fp32_tail_of_an_int8_model_is_ended_unless_asked_otherwise(bert, bert_int8, tmp_path):
    _, ended = made(bert_int8, bert.card, tmp_path / "a", int8_remainder="bf16")
    _, left = made(bert_int8, bert.card, tmp_path / "b", int8_remainder="bf16", bf16_residual=False)
    assert ended["operations"]["MVN"] == {"bf16": 5}
    assert left["operations"]["MVN"] == {"fp32": 5}


def test_openvinos_own_form_is_taken_as_well(attention, tmp_path):
    first, facts = made(attention, CARD, tmp_path / "a")
    second, again = made(tmp_path / "a" / first.path, CARD, tmp_path / "b")
    assert second.path == "model.xml"
    assert again == facts


def test_int8_of_a_model_in_which_nothing_is_quantized_is_refused(bert, tmp_path):
    with pytest.raises(RecipeError, match="nothing in it is quantized"):
        compile(bert.path, bert.card, "int8", Options(), tmp_path)


def test_weights_stored_in_fp16_are_told_from_what_products_run_in(tmp_path):
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 20]> g (float[n, length, 8] x) => (float[n, length, 8] y)
        { w = Cast<to = 1>(stored)  y = MatMul(x, w) }"""
    )
    stored = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(stored, "stored"))
    onnx.save(model, tmp_path / "fp16.onnx")
    result = compile(tmp_path / "fp16.onnx", CARD, "fp16", Options(), tmp_path)
    facts = audit(tmp_path / result.path, CARD, result.settings)
    assert (facts["asked"], facts["stored"], facts["products"]) == ("fp16", "fp16", {"fp32": 1})


def test_openvino_is_imported_without_its_telemetry():
    script = """
import sys
from deploykit.targets import openvino
openvino.without_telemetry()
import openvino
assert sys.modules["openvino_telemetry"] is None
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
