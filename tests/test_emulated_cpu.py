"""int8 built for any CPU must give the same vectors on one without VNNI, which is emulated here.

Kernels of such CPUs add two products of 8 bits in 16 bits and saturate. Emulation shows numerics, never speed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit import registry  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime import hardware  # noqa: E402
from deploykit.runtime.manifest import Card, Embedding, TensorSpec  # noqa: E402

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
WITHOUT_VNNI = "Haswell"
TIMEOUT_S = 120
WIDTH, INNER, WORDS, LAYERS = 96, 224, 300, 2
EXACT = not hardware.cpu().features.isdisjoint({"avx512_vnni", "avx_vnni"})

pytestmark = [
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 is not installed (Debian: qemu-user-static)"),
    pytest.mark.skipif(hardware.cpu().architecture != "x86_64", reason="it emulates an x86 CPU for this Python"),
]

# All that a device has: numpy and onnxruntime.
CHILD = """
import sys
import numpy as np
import onnxruntime

model, feeds, answer = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
with np.load(feeds) as arrays:
    np.save(answer, session.run(None, {name: arrays[name] for name in arrays.files})[0])
"""

CARD = Card(
    "m",
    "text",
    tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
    (TensorSpec("sentence_embedding", "float32", ("batch", WIDTH)),),
    Embedding("sentence_embedding", WIDTH, "mean", False),
    {},
)


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """Token embeddings, feed-forward blocks with residuals and norms, a masked sum; initialised as torch's Linear is:
    uniformly, so that many weights are near the largest one.
    """
    rng = np.random.default_rng(0)

    def uniform(rows, columns, bound):
        return rng.uniform(-bound, bound, (rows, columns)).astype(np.float32)

    constants = {
        "words.weight": rng.standard_normal((WORDS, WIDTH)).astype(np.float32),
        "norm.scale": np.ones(WIDTH, np.float32),
        "norm.bias": np.zeros(WIDTH, np.float32),
        "last": np.array([-1], np.int64),
        "length_axis": np.array([1], np.int64),
    }
    nodes = [helper.make_node("Gather", ["words.weight", "input_ids"], ["x0"], "lookup")]
    for i in range(LAYERS):
        constants[f"layer.{i}.up.weight"] = uniform(WIDTH, INNER, 0.2)
        constants[f"layer.{i}.up.bias"] = uniform(1, INNER, 0.1)[0]
        constants[f"layer.{i}.down.weight"] = uniform(INNER, WIDTH, 0.2)
        constants[f"layer.{i}.down.bias"] = uniform(1, WIDTH, 0.1)[0]
        nodes += [
            helper.make_node("MatMul", [f"x{i}", f"layer.{i}.up.weight"], [f"p{i}"], f"up{i}"),
            helper.make_node("Add", [f"p{i}", f"layer.{i}.up.bias"], [f"a{i}"], f"up_bias{i}"),
            helper.make_node("Gelu", [f"a{i}"], [f"g{i}"], f"gelu{i}"),
            helper.make_node("MatMul", [f"g{i}", f"layer.{i}.down.weight"], [f"q{i}"], f"down{i}"),
            helper.make_node("Add", [f"q{i}", f"layer.{i}.down.bias"], [f"b{i}"], f"down_bias{i}"),
            helper.make_node("Add", [f"b{i}", f"x{i}"], [f"r{i}"], f"residual{i}"),
            helper.make_node("LayerNormalization", [f"r{i}", "norm.scale", "norm.bias"], [f"x{i + 1}"], f"norm{i}"),
        ]
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["mask"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["columns"], "columns"),
        helper.make_node("Mul", [f"x{LAYERS}", "columns"], ["masked"], "masked"),
        helper.make_node("ReduceSum", ["masked", "length_axis"], ["sentence_embedding"], "sum", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(s.name, TensorProto.INT64, list(s.shape)) for s in CARD.inputs],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path_factory.mktemp("portable") / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def texts(count, seed):
    """Token ids and masks, [4, length] at a time."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(count):
        length = int(rng.integers(5, 20))
        mask = (np.arange(length) < rng.integers(3, length + 1, (4, 1))).astype(np.int64)
        batches.append({"input_ids": rng.integers(0, WORDS, (4, length)) * mask, "attention_mask": mask})
    return batches


def artifact(precision, cpu, portable, folder):
    """Lowered for ``cpu`` and compiled for onnxruntime."""
    lowering, target = registry.module("precisions", precision), registry.module("targets", "onnxruntime")
    calibration = texts(24, seed=1) if lowering.CALIBRATED else ()
    task = Task(portable, CARD, lowering.FORMS.get("onnxruntime", ""), calibration)
    facts = lowering.lower(task, lowering.Options(cpu=cpu), folder)
    out = folder / "compiled"
    out.mkdir()
    compiled = target.compile(folder / "model.onnx", CARD, precision, target.Options(), out)
    return out / compiled.path, facts


def here(model, feeds):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def emulated(model, feeds, folder):
    """The answer of a process on a CPU without VNNI."""
    np.savez(folder / "feeds.npz", **feeds)
    (folder / "child.py").write_text(CHILD)
    command = [QEMU, "-cpu", WITHOUT_VNNI, sys.executable, folder / "child.py", model]
    command += [folder / "feeds.npz", folder / "answer.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "answer.npy")


def cosine(a, b):
    return float((np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).mean())


@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_int8_for_any_cpu_is_as_close_to_fp32_without_vnni_as_with_it(precision, portable, tmp_path):
    model, facts = artifact(precision, "any", portable, tmp_path)
    feeds = texts(1, seed=2)[0]
    reference = here(portable, feeds)
    with_it, without_it = here(model, feeds), emulated(model, feeds, tmp_path)
    assert not facts.get("requires")
    assert cosine(reference, without_it) > 0.98
    assert cosine(reference, without_it) == pytest.approx(cosine(reference, with_it), abs=0.001)
    assert cosine(with_it, without_it) > 0.99999  # nothing saturates, not even now and then


@pytest.mark.skipif(not EXACT, reason="this CPU saturates itself")
@pytest.mark.parametrize("precision", ["int8", "int8-dynamic"])
def test_full_weights_saturate_without_vnni_and_require_it(precision, portable, tmp_path):
    model, facts = artifact(precision, "vnni", portable, tmp_path)
    feeds = texts(1, seed=2)[0]
    reference = here(portable, feeds)
    lost = cosine(reference, here(model, feeds)) - cosine(reference, emulated(model, feeds, tmp_path))
    assert lost > 0.001  # otherwise the test above proves nothing
    assert "avx512_vnni" in facts["requires"]["cpu_features"][0]
