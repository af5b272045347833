"""Int8 for OpenVINO: what NNCF makes of a graph, what stays float, what is refused, and that it is quiet about it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import onnx

from deploykit.errors import CheckError, MissingError, RecipeError, UnknownNameError
from deploykit.precisions import Task
from deploykit.precisions.int8 import Options
from deploykit.quantize import with_nncf
from deploykit.quantize.with_nncf import quantize
from tests.cpus import ADDS_EXACTLY
from tests.quantize.made import feed_forward, model_of, random

needs_nncf = pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="NNCF is not installed")


def singles(portable):
    """12 inputs, one a batch, at several lengths."""
    return [{name: np.asarray(array) for name, array in portable.feeds(1, 5 + 3 * i).items()} for i in range(12)]


@pytest.fixture(scope="session")
def quantized(tmp_path_factory):
    """``quantized(portable, **options)`` gives (facts, model.onnx), made once for each."""
    made = {}

    def make(portable, **options):
        key = (portable.path, *sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("nncf")
            facts = quantize(Task(portable.path, portable.card, "openvino", singles(portable)), Options(**options), out)
            made[key] = facts, out / "model.onnx"
        return made[key]

    return make


@needs_nncf
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_named_with_the_input(tmp_path, value):
    onnx.save(feed_forward(), tmp_path / "portable.onnx")
    batches = [{"x": random(4, 6, seed=i)} for i in range(10)]
    batches[3]["x"][1, 2] = value
    with pytest.raises(CheckError, match="holds NaN or infinity for calibration input 13"):
        quantize(Task(tmp_path / "portable.onnx", None, "openvino", batches), Options(), tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def worst_cosine(path, portable, lengths):
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    taken = {port.any_name for port in compiled.inputs}
    cosines = []
    for length in lengths:
        feeds = portable.feeds(3, length)
        want = portable.reference(feeds)
        got = compiled({name: np.asarray(array) for name, array in feeds.items() if name in taken})[0]
        cosines.append((want * got).sum(1) / np.linalg.norm(want, axis=1) / np.linalg.norm(got, axis=1))
    return float(np.concatenate(cosines).min())


@needs_nncf
@pytest.mark.parametrize(("encoder", "transformer", "products"), [("bert", True, 14), ("resnet", False, 9)])
def test_every_product_that_can_be_is_quantized(request, quantized, encoder, transformer, products):
    portable = request.getfixturevalue(encoder)
    facts, path = quantized(portable)
    assert facts["transformer"] is transformer
    assert facts["calibration_inputs"] == 12
    assert sum(facts["quantized"].values()) == products
    assert facts["kept_fp32"] == (["attention context"] if transformer else [])
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(path).graph.node}


@needs_nncf
@pytest.mark.parametrize(("encoder", "least"), [("bert", 0.97 if ADDS_EXACTLY else 0.95), ("resnet", 0.999)])
def test_vectors_stay_close_to_torch_in_openvino(request, quantized, encoder, least):
    portable = request.getfixturevalue(encoder)
    _, path = quantized(portable)
    assert worst_cosine(path, portable, (3, 8, 17, 33) if encoder == "bert" else (1,)) >= least


@needs_nncf
@pytest.mark.parametrize(("cpu", "bits", "largest"), [("vnni", 8, 127), ("any", 7, 64)])
def test_weights_have_the_bits_that_the_cpu_adds_exactly(bert, quantized, cpu, bits, largest):
    facts, path = quantized(bert, cpu=cpu)
    assert facts["weight_bits"] == bits
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == 3]
    products = [array for array in stored if array.ndim == 2 and min(array.shape) == 24 and max(array.shape) <= 40]
    assert len(products) == 12
    assert max(int(np.abs(array.astype(int)).max()) for array in products) <= largest
    assert max(int(np.abs(array.astype(int)).max()) for array in products) > largest / 2


@needs_nncf
def test_kinds_that_are_kept_stay_float(bert, quantized):
    facts, path = quantized(bert, keep=("*.intermediate.dense",), smooth=False)
    assert facts["kept_fp32"] == ["attention context", "model.encoder.layer.*.intermediate.dense"]
    assert sum(facts["quantized"].values()) == 12
    assert "SmoothQuant" not in facts["method"]
    floats = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer if tensor.data_type == 1]
    assert floats.count((24, 40)) == 2
    assert (40, 24) not in floats


def test_an_unknown_kind_is_refused_with_the_nearest(bert, tmp_path):
    with pytest.raises(UnknownNameError, match="attention scoers") as error:
        quantize(Task(bert.path, bert.card, "openvino", singles(bert)), Options(keep=("attention scoers",)), tmp_path)
    assert "attention scores" in error.value.hint


def test_keeping_everything_is_refused(bert, tmp_path):
    with pytest.raises(RecipeError, match="no product"):
        quantize(Task(bert.path, bert.card, "openvino", singles(bert)), Options(keep=("*",)), tmp_path)


def test_calibration_inputs_are_asked_for(bert, tmp_path):
    with pytest.raises(RecipeError, match="calibrate") as error:
        quantize(Task(bert.path, bert.card, "openvino"), Options(), tmp_path)
    assert "calibration" in error.value.hint


def test_a_missing_nncf_is_named_with_what_installs_it(bert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingError, match="NNCF") as error:
        quantize(Task(bert.path, bert.card, "openvino", singles(bert)), Options(), tmp_path)
    assert error.value.hint == 'pip install "nncf>=3.4"'
    assert not list(tmp_path.iterdir())


SCRIPT = """
import pathlib, sys
import numpy as np
from deploykit.precisions import Task
from deploykit.precisions.int8 import Options
from deploykit.quantize import with_nncf
from deploykit.quantize.with_nncf import quantize
from tests.quantize.made import feed_forward, model_of, random
from deploykit.runtime.manifest import Card, Embedding, TensorSpec
inputs, outputs = (TensorSpec("x", "float32", ("n", 6)),), (TensorSpec("y", "float32", ("n", 4)),)
card = Card("m", "tensors", inputs, outputs, Embedding("y", 4, "none", False), {"kind": "none"})
batches = [{"x": np.random.default_rng(i).normal(size=(1, 6)).astype(np.float32)} for i in range(10)]
out = pathlib.Path(sys.argv[2])
quantize(Task(pathlib.Path(sys.argv[1]), card, "openvino", batches), Options(), out)
assert sys.modules["openvino_telemetry"] is None
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
import nncf.telemetry
assert type(nncf.telemetry.telemetry).__name__ == "MagicMock"
"""


@needs_nncf
def test_nothing_is_printed_and_nothing_phones_home(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (float[n, 6] x) => (float[n, 4] y) { h = MatMul(x, w)  y = Relu(h) }'
    )
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "fp32.onnx")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "fp32.onnx"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # Its node had no name.
    assert any(node.op_type == "DequantizeLinear" for node in onnx.load(tmp_path / "model.onnx").graph.node)


def answers(path, x):
    import openvino

    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})[0]


def quantize_made(model, folder, shape):
    onnx.save(model, folder / "portable.onnx")
    batches = [{"x": random(1, *shape, seed=i)} for i in range(12)]
    return quantize(Task(folder / "portable.onnx", None, "openvino", batches), Options(), folder)


@needs_nncf
def test_pooling_behind_the_last_product_stays_float(tmp_path):
    """OpenVINO answers zeros for the second row of a batch where this sum reads 8 bits."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 4),
        onnx.helper.make_node("Relu", ["a"], ["b"]),
        onnx.helper.make_node("Conv", ["b", "second"], ["c"], pads=[1] * 4),
        onnx.helper.make_node("Reshape", ["c", "rows"], ["d"]),
        onnx.helper.make_node("Mul", ["d", "weights"], ["e"]),
        onnx.helper.make_node("ReduceSum", ["e", "last"], ["y"], keepdims=0),
    ]
    constants = {"first": random(8, 3, 3, 3), "second": random(8, 8, 3, 3, seed=1), "weights": np.ones(16, np.float32)}
    constants |= {"rows": np.array([0, 8, 16]), "last": np.array([2])}
    facts = quantize_made(model_of(nodes, constants, x=("batch", 3, 4, 4)), tmp_path, (3, 4, 4))
    assert sum(facts["quantized"].values()) == 2
    made = {name: node for node in onnx.load(tmp_path / "model.onnx").graph.node for name in node.output}
    read = {node.op_type: made[node.input[0]].op_type for node in made.values() if node.input and node.input[0] in made}
    assert (read["Reshape"], read["Mul"], read["ReduceSum"]) == ("Conv", "Reshape", "Mul")
    x = random(3, 3, 4, 4, seed=40)
    got, want = answers(tmp_path / "model.onnx", x), answers(tmp_path / "portable.onnx", x)
    assert ((got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)).min() > 0.99


@needs_nncf
def test_a_product_that_keeps_openvino_from_loading_the_model_stays_float(tmp_path, monkeypatch):
    """OpenVINO names the node at which it could not move the scales; the product is the nearest one before."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 4, name="first"),
        onnx.helper.make_node("Conv", ["a", "second"], ["b"], name="second"),
        onnx.helper.make_node("Gather", ["b", "places"], ["c"], axis=2, name="unfold"),
        onnx.helper.make_node("Reshape", ["c", "maps"], ["d"], name="join"),
        onnx.helper.make_node("Conv", ["d", "third"], ["y"], name="third"),
    ]
    constants = {"first": random(8, 3, 3, 3), "second": random(16, 8, 1, 1), "third": random(4, 16, 1, 1)}
    constants |= {"places": np.arange(4).reshape(2, 2), "maps": np.array([0, 0, 4, 4])}
    model = model_of(nodes, constants, x=("batch", 3, 4, 4))
    assert quantize_made(model, tmp_path, (3, 4, 4))["quantized"] == {"first": 1, "second": 1}
    complaint = "opset8::Gather unfold (opset1::Multiply Multiply_19971[0]:f32[?,16,12,12]) CALLBACK HAS THROWN"
    complaints = [set(complaint.split()), set()]
    monkeypatch.setattr(with_nncf, "_stumbled_over", lambda quantized: complaints.pop(0))
    facts = quantize_made(model, tmp_path, (3, 4, 4))
    assert facts["notes"] == ["fp32, because OpenVINO cannot load the model with it in int8: second"]
    assert (facts["quantized"], facts["kept_fp32"], complaints) == ({"first": 1}, ["second", "third"], [])


def test_the_words_of_openvinos_complaint_are_told(monkeypatch):
    import openvino

    def refuse(*_):
        raise RuntimeError("[Gather] END: node: opset8::Gather /layer.0/unfold (opset1::Multiply [0]:f32[?,16])")

    assert with_nncf._stumbled_over(feed_forward()) == set()
    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    assert "/layer.0/unfold" in with_nncf._stumbled_over(feed_forward())
