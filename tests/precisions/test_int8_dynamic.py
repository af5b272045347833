"""int8-dynamic must round as its contract says, leave what it cannot help in fp32 with a reason, and fit the CPU."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx_ir")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploykit import registry  # noqa: E402
from deploykit.errors import RecipeError, UnknownNameError  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime import hardware, selection  # noqa: E402
from deploykit.runtime.manifest import Card, Embedding, Variant  # noqa: E402
from tests.cpus import EXACT_HERE  # noqa: E402

int8 = registry.module("precisions", "int8-dynamic")
CARD = Card("m", "tensors", (), (), Embedding("y", 5, "mean", False), {})


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(folder, nodes, constants, x=(TensorProto.FLOAT, ["batch", 24]), y=("batch", 5)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "portable.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def lower(folder, path, **options):
    out = folder / "out"
    out.mkdir(exist_ok=True)
    facts = int8.lower(Task(path, CARD), int8.Options(**({"cpu": "vnni"} | options)), out)
    onnx.checker.check_model(out / "model.onnx", full_check=not facts["blockwise"])
    return facts, out / "model.onnx"


def run(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def initializers(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def one_product(folder):
    w = weight(24, 5)
    w[:, 2] *= 30  # a range per tensor would ruin the other columns
    return save(folder, [helper.make_node("MatMul", ["x", "w"], ["y"], "one")], {"w": w}), w


def two_layers(folder):
    """``y = gelu(x @ first + b) @ second``: the kinds follow the names."""
    nodes = [
        helper.make_node("MatMul", ["x", "layer.0.first.weight"], ["h"], "node_first"),
        helper.make_node("Add", ["h", "b"], ["hb"]),
        helper.make_node("Gelu", ["hb"], ["g"]),
        helper.make_node("MatMul", ["g", "layer.0.second.weight"], ["y"], "node_second"),
    ]
    constants = {
        "layer.0.first.weight": weight(24, 300),
        "b": weight(300),
        "layer.0.second.weight": weight(300, 5, seed=1),
    }
    return save(folder, nodes, constants)


def rounded(x):
    """Onnx's DynamicQuantizeLinear, there and back."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize(("cpu", "limit"), [("vnni", 127), ("any", 63)])
def test_a_product_is_rounded_by_output_channel_and_by_activation(tmp_path, cpu, limit):
    path, w = one_product(tmp_path)
    facts, lowered = lower(tmp_path, path, cpu=cpu)
    steps = np.abs(w).max(0) / limit
    x = weight(7, 24, seed=2)
    want = rounded(x) @ (np.rint(w / steps) * steps)
    # A machine that saturates cannot show what 8-bit weights should give.
    if cpu == "any" or not hardware.cpu().features.isdisjoint(int8.EXACT_INT8.split("|")):
        np.testing.assert_allclose(run(lowered, x), want, rtol=1e-4, atol=1e-4)
    stored = initializers(lowered)["w_int8"]
    assert stored.dtype == np.int8
    assert np.abs(stored).max(0).tolist() == [limit] * 5
    assert facts["weight_bits"] == {127: 8, 63: 7}[limit]
    assert "w" not in initializers(lowered)


def test_two_7_bit_weights_times_two_8_bit_activations_fit_into_16_bits():
    assert 2 * 255 * 63 < 2**15 <= 2 * 255 * 127


def test_products_of_one_activation_share_its_rounding(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], "one"),
        helper.make_node("MatMul", ["x", "b"], ["q"], "two"),
        helper.make_node("Add", ["p", "q"], ["y"]),
    ]
    path = save(tmp_path, nodes, {"a": weight(24, 5), "b": weight(24, 5, seed=1)})
    facts, lowered = lower(tmp_path, path)
    assert facts["quantized"] == 2
    assert operators(lowered).count("DynamicQuantizeLinear") == 1
    assert operators(lowered).count("MatMulInteger") == 2


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_keeps_its_factor_its_bias_and_its_orientation(tmp_path, transposed):
    w, b = weight(24, 5), weight(5, seed=1)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc", alpha=0.5, transB=transposed)
    path = save(tmp_path, [node], {"w": w.T.copy() if transposed else w, "b": b})
    facts, lowered = lower(tmp_path, path, cpu=EXACT_HERE)
    assert facts["quantized"] == 1
    x = weight(7, 24, seed=2)
    np.testing.assert_allclose(run(lowered, x), 0.5 * (x @ w) + b, atol=0.15)
    assert "Gemm" not in operators(lowered)


def test_what_cannot_be_quantized_stays_fp32_with_the_reason(tmp_path):
    w = weight(24, 5)
    w[3, 1] = np.inf
    nodes = [
        helper.make_node("Gemm", ["x", "a", "b"], ["p"], "scaled_bias", beta=0.5),
        helper.make_node("MatMul", ["x", "w"], ["q"], "infinite"),
        helper.make_node("MatMul", ["x", "c"], ["r"], "fine"),
        helper.make_node("Sum", ["p", "q", "r"], ["y"]),
    ]
    path = save(tmp_path, nodes, {"a": weight(24, 5), "b": weight(5), "w": w, "c": weight(24, 5, seed=3)})
    facts, lowered = lower(tmp_path, path)
    assert facts["kept_fp32"]["scaled_bias"] == "its bias is multiplied by a beta other than 1"
    assert sum(facts["kinds"].values()) == 1
    assert "infinity" in facts["kept_fp32"]["infinite"]
    assert (facts["quantized"], sorted(facts["kept_fp32"])) == (1, ["infinite", "scaled_bias"])
    assert {"Gemm", "MatMul", "MatMulInteger"} <= set(operators(lowered))


@pytest.mark.parametrize("pattern", ["node_second", "*_second", "layer.*.second", "*.second"])
def test_products_are_kept_by_kind_by_node_and_by_glob(tmp_path, pattern):
    facts, lowered = lower(tmp_path, two_layers(tmp_path), keep=(pattern,))
    assert facts["kept_fp32"] == {"node_second": "named in keep"}
    assert "layer.0.second.weight" in initializers(lowered)


@pytest.mark.parametrize("option", ["keep", "blockwise"])
def test_a_pattern_that_names_nothing_gives_the_nearest_kind(tmp_path, option):
    with pytest.raises(UnknownNameError, match=f"{option} names 'layer") as caught:
        lower(tmp_path, two_layers(tmp_path), **{option: ("layer.*.secnd",)})
    assert "layer.*.second" in caught.value.hint


def test_keeping_everything_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="every product"):
        lower(tmp_path, two_layers(tmp_path), keep=("*",))


def test_rows_do_not_disturb_each_other_blockwise_and_do_otherwise(tmp_path):
    path = two_layers(tmp_path)
    x = weight(3, 24, seed=4)
    loud = x.copy()
    loud[2] *= 40
    _, dynamic = lower(tmp_path, path)
    assert np.abs(run(dynamic, x)[:2] - run(dynamic, loud)[:2]).max() > 0.05
    facts, blocks = lower(tmp_path, path, blockwise=("*",))
    np.testing.assert_allclose(run(blocks, x)[:2], run(blocks, loud)[:2], atol=1e-4)
    assert facts["notes"] == []
    assert facts["requires"] == {"packages": {"onnxruntime": ">=1.23"}}


def test_blockwise_products_are_closer_to_fp32(tmp_path):
    path = two_layers(tmp_path)
    x = weight(9, 24, seed=5) * np.linspace(0.1, 4, 9, dtype=np.float32)[:, None]
    want = run(path, x)

    def error(lowered):
        return np.linalg.norm(run(lowered, x) - want, axis=1)[0]

    dynamic = error(lower(tmp_path, path)[1])
    facts, lowered = lower(tmp_path, path, blockwise=("*second",))
    assert facts["blockwise"] == ["node_second"]
    assert operators(lowered).count("MatMulNBits") == operators(lowered).count("MatMulInteger") == 1
    assert error(lowered) < 0.5 * dynamic


def lookup(folder, rows, **gather):
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h"], "lookup", **gather),
        helper.make_node("MatMul", ["h", "w"], ["y"], "one"),
    ]
    table = weight(rows, 24) * np.linspace(0.01, 3, rows, dtype=np.float32)[:, None]
    path = save(folder, nodes, {"table": table, "w": weight(24, 5)}, (TensorProto.INT64, ["n"]), ("n", 5))
    return path, table


def test_an_embedding_table_is_stored_with_a_scale_per_row(tmp_path):
    path, table = lookup(tmp_path, 300)
    facts, lowered = lower(tmp_path, path, cpu=EXACT_HERE)
    assert facts["embeddings"] == ["table"]
    stored = initializers(lowered)
    assert "table" not in stored
    restored = stored["table_int8"] * stored["table_scale"]
    np.testing.assert_allclose(restored, table, atol=float(np.abs(table).max()) / 250)
    np.testing.assert_allclose(restored[0], table[0], atol=float(np.abs(table[0]).max()) / 250)
    ids = np.array([0, 7, 299])
    np.testing.assert_allclose(run(lowered, ids), run(path, ids), atol=0.3)
    assert facts["bytes_after"] < 0.5 * facts["bytes_before"]


def test_tables_stay_fp32_when_asked_and_when_they_are_small(tmp_path):
    assert lower(tmp_path, lookup(tmp_path, 300)[0], embeddings=False)[0]["embeddings"] == []
    assert lower(tmp_path, lookup(tmp_path, 20)[0])[0]["embeddings"] == []


def test_a_model_of_convolutions_alone_is_refused_and_sent_to_int8(tmp_path):
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    path = save(tmp_path, [node], {"w": weight(5, 3, 2, 2)}, (TensorProto.FLOAT, ["b", 3, 8, 9]), ("b", 5, 7, 8))
    with pytest.raises(RecipeError, match="1 convolutions and no matrix product") as caught:
        lower(tmp_path, path)
    assert "int8" in caught.value.hint


def test_a_model_with_nothing_to_multiply_is_refused(tmp_path):
    path = save(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {}, y=("batch", 24))
    with pytest.raises(RecipeError, match="nothing to quantize"):
        lower(tmp_path, path)


def test_convolutions_stay_fp32_beside_products_and_the_user_is_told(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["h"], "conv"),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"], "head"),
    ]
    constants = {"k": weight(4, 3, 2, 2), "w": weight(4 * 7 * 8, 5)}
    facts, lowered = lower(tmp_path, save(tmp_path, nodes, constants, (TensorProto.FLOAT, ["batch", 3, 8, 9])))
    assert facts["quantized"] == 1
    assert "convolution" in facts["kept_fp32"]["conv"]
    assert any("1 convolutions stay fp32" in note for note in facts["notes"])
    assert "Conv" in operators(lowered)


@pytest.mark.parametrize(
    ("features", "cpu"),
    [
        ({"avx2", "avx512_vnni"}, "vnni"),
        ({"avx2", "avx_vnni"}, "vnni"),
        ({"asimd"}, "vnni"),
        ({"avx2", "avx512bw"}, "any"),
        ({"sse4_1"}, "any"),
        (set(), "any"),
    ],
)
def test_auto_is_decided_by_the_machine_that_builds(monkeypatch, features, cpu):
    monkeypatch.setattr(hardware, "cpu", lambda: hardware.Cpu("x86_64", "test", frozenset(features)))
    assert int8.resolve(int8.Options()) == int8.Options(cpu=cpu)


@pytest.mark.parametrize("cpu", ["vnni", "any"])
def test_what_was_asked_for_is_not_decided_again(monkeypatch, cpu):
    monkeypatch.setattr(hardware, "cpu", lambda: pytest.fail("the machine does not matter"))
    assert int8.resolve(int8.Options(cpu=cpu)).cpu == cpu


@pytest.mark.parametrize(
    ("cpu", "features", "unmet"),
    [
        ("vnni", {"avx2"}, "the CPU lacks avx512_vnni or avx_vnni or asimd"),
        ("vnni", {"avx2", "avx_vnni"}, ""),
        ("any", {"avx2"}, ""),
    ],
)
def test_full_weights_are_not_chosen_on_a_cpu_that_saturates(tmp_path, cpu, features, unmet):
    facts, _ = lower(tmp_path, one_product(tmp_path)[0], cpu=cpu)
    variant = Variant("v", "onnxruntime", "int8-dynamic", "models/v.onnx", requires=facts["requires"])
    device = selection.Device(hardware.Cpu("x86_64", "test", frozenset(features)))
    assert selection.unmet(variant, device) == unmet


def test_the_same_model_gives_the_same_file(tmp_path):
    path = two_layers(tmp_path)
    first = lower(tmp_path, path)[1].read_bytes()
    assert lower(tmp_path, path)[1].read_bytes() == first
