"""ONNX as other exporters write it; the judge is the file itself, run by onnxruntime one input at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import RecipeError, SourceError
from deploykit.sources import Options, open_source, resolve

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from tests.sources.onnx_files import I64, D, F, H, exported, floats, given, tensor, write  # noqa: E402


def linear(path, dims, opset=17, kind=F):
    dtype = np.float16 if kind == H else np.float64 if kind == D else np.float32
    out = [dims[0], 3]
    return write(
        path,
        [("MatMul", ["x", "w"], ["h"], {}), ("Tanh", ["h"], ["y"], {})],
        [("x", kind, dims)],
        [("y", kind, out)],
        [tensor("w", 4, 3, dtype=dtype)],
        opset,
    )


def test_a_batch_of_minus_one_is_dynamic(tmp_path):
    spec = linear(tmp_path / "paddle.onnx", [-1, 4])
    x = floats(5, 4)
    source, _, got = exported(spec, tmp_path, {"x": x})
    assert source.card.inputs[0].shape == ("batch", 4)
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), atol=1e-6)


def test_a_batch_fixed_at_one_is_made_dynamic_and_told(tmp_path):
    target = numpy_helper.from_array(np.array([1, -1], np.int64), "target")
    spec = write(
        tmp_path / "one.onnx",
        [("Reshape", ["x", "target"], ["flat"], {}), ("MatMul", ["flat", "w"], ["y"], {})],
        [("x", F, [1, 2, 6])],
        [("y", F, [1, 3])],
        [target, tensor("w", 12, 3)],
    )
    x = floats(5, 2, 6)
    source, found, got = exported(spec, tmp_path, {"x": x})
    assert source.card.inputs[0].shape == ("batch", 2, 6)
    assert any("fixed at 1" in note for note in found.notes)
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), atol=1e-5)


def mixed(path):
    """What it gives for an input depends on the others of its batch."""
    return write(
        path,
        [
            ("ReduceMax", ["x"], ["largest"], {"axes": [0, 1], "keepdims": 1}),
            ("Div", ["x", "largest"], ["scaled"], {}),
            ("MatMul", ["scaled", "w"], ["y"], {}),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 3])],
        [tensor("w", 4, 3)],
    )


def test_what_mixes_a_batch_runs_one_input_at_a_time(tmp_path):
    spec = mixed(tmp_path / "mixed.onnx")
    source, found, got = exported(spec, tmp_path, {"x": (x := floats(1, 4))})
    assert source.card.inputs[0].shape == (1, 4)
    assert any("one input at a time" in note for note in found.notes)
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), rtol=1e-4)


def test_a_bundle_of_one_input_at_a_time_encodes_many(tmp_path, monkeypatch):
    import deploykit

    monkeypatch.setenv("DEPLOYKIT_STORE", str(tmp_path / "store"))
    spec = mixed(tmp_path / "mixed.onnx")
    np.savez(tmp_path / "x.npz", x=(x := 2 + np.abs(floats(12, 4))))
    bundle = deploykit.export(spec, output=tmp_path / "b", calibration=tmp_path / "x.npz", precisions=["fp32"])
    with deploykit.load(bundle.root) as encoder:
        got = encoder.encode({"x": x})
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), rtol=1e-4, atol=1e-5)


def test_a_batch_of_four_that_cannot_be_freed_is_refused(tmp_path):
    spec = write(
        tmp_path / "four.onnx",
        [("Mul", ["x", "m"], ["y"], {})],
        [("x", F, [4, 3])],
        [("y", F, [4, 3])],
        [tensor("m", 4, 3)],
    )
    with pytest.raises(SourceError, match="fixed at 4") as caught:
        open_source(spec)
    assert "dynamic batch" in caught.value.hint


def test_the_batch_is_found_on_another_axis(tmp_path):
    spec = write(
        tmp_path / "second.onnx",
        [("MatMul", ["x", "w"], ["h"], {}), ("ReduceMean", ["h"], ["y"], {"axes": [0], "keepdims": 0})],
        [("x", F, ["time", "batch", 4])],
        [("y", F, ["batch", 3])],
        [tensor("w", 4, 3)],
    )
    x = floats(5, 7, 4)
    source, _, got = exported(spec, tmp_path, {"x": x})
    assert source.card.inputs[0].shape[0] == "batch"
    np.testing.assert_allclose(got, given(spec, {"x": x.transpose(1, 0, 2)}, "y", rows=False), atol=1e-5)


def recurrent(path, state_batch):
    """A GRU that begins with ``h``, scaled by one over a sampling rate."""
    return write(
        path,
        [
            ("Cast", ["sr"], ["rate"], {"to": F}),
            ("Div", ["x", "rate"], ["scaled"], {}),
            ("Transpose", ["scaled"], ["first"], {"perm": [1, 0, 2]}),
            ("GRU", ["first", "W", "R", "", "", "h"], ["all", "last"], {"hidden_size": 5}),
            ("Squeeze", ["last", "zero"], ["y"], {}),
        ],
        [("x", F, ["batch", 6, 4]), ("h", F, [1, state_batch, 5]), ("sr", I64, [])],
        [("y", F, ["batch", 5]), ("last", F, [1, "batch", 5])],
        [tensor("W", 1, 15, 4), tensor("R", 1, 15, 5), numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )


@pytest.mark.parametrize("state_batch", ["batch", None, 1])
def test_states_and_scalars_are_bound(tmp_path, state_batch):
    spec = recurrent(tmp_path / "gru.onnx", state_batch)
    x = floats(5, 6, 4)
    _, found, got = exported(spec, tmp_path, {"x": x}, bind={"h": "zeros", "sr": "2"})
    want = [
        given(spec, {"x": row, "h": np.zeros((1, 1, 5), np.float32), "sr": np.array(2)}, "y", rows=False)
        for row in x[:, None]
    ]
    np.testing.assert_allclose(got, np.concatenate(want), atol=1e-5)
    assert any("sr 2" in note for note in found.notes)


def test_a_scalar_input_asks_to_be_bound(tmp_path):
    with pytest.raises(SourceError, match="single number") as caught:
        open_source(recurrent(tmp_path / "gru.onnx", "batch"), Options(bind={"h": "zeros"}))
    assert "--bind sr=" in caught.value.hint


@pytest.mark.parametrize(("bind", "said"), [({"k": "1"}, "no input"), ({"sr": "fast"}, "fast"), ({"sr": "1.5"}, "1.5")])
def test_what_cannot_be_bound_is_named(tmp_path, bind, said):
    with pytest.raises(SourceError, match=said):
        open_source(recurrent(tmp_path / "gru.onnx", "batch"), Options(bind={"h": "zeros", "sr": "1"} | bind))


def two_outputs(path):
    return write(
        path,
        [
            ("MatMul", ["x", "w"], ["first"], {}),
            ("MatMul", ["x", "v"], ["second"], {}),
            ("ArgMax", ["first"], ["label"], {"axis": 1, "keepdims": 1}),
            ("Unsqueeze", ["second", "two"], ["wide"], {}),
        ],
        [("x", F, ["batch", 4])],
        [
            ("label", I64, ["batch", 1]),
            ("first", F, ["batch", 3]),
            ("second", F, ["batch", 2]),
            ("wide", F, ["batch", 2, 1]),
        ],
        [tensor("w", 4, 3), tensor("v", 4, 2), numpy_helper.from_array(np.array([2], np.int64), "two")],
    )


@pytest.mark.parametrize("name", ["first", "second", "wide"])
def test_an_output_is_chosen_by_name(tmp_path, name):
    spec = two_outputs(tmp_path / "two.onnx")
    x = floats(5, 4)
    _, _, got = exported(spec, tmp_path, {"x": x}, output_name=name)
    np.testing.assert_allclose(got, given(spec, {"x": x}, name).reshape(5, -1), atol=1e-5)


def test_several_outputs_ask_for_a_name_and_integers_are_no_embedding(tmp_path):
    spec = two_outputs(tmp_path / "two.onnx")
    with pytest.raises(SourceError, match=r"first .float32") as caught:
        open_source(spec)
    assert "--output-name first" in caught.value.hint
    with pytest.raises(SourceError, match="int64"):
        open_source(spec, Options(output_name="label"))


@pytest.mark.parametrize("opset", [9, 11, 12, 17, 21])
def test_an_old_opset_is_raised(tmp_path, opset):
    spec = linear(tmp_path / "old.onnx", ["N", 4], opset)
    x = floats(5, 4)
    _, found, got = exported(spec, tmp_path, {"x": x})
    model = onnx.load(found.model)
    assert model.opset_import[0].version == max(opset, 20)
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), atol=1e-6)


def test_a_pooling_is_appended_to_an_old_opset(tmp_path):
    spec = write(
        tmp_path / "tokens.onnx",
        [("MatMul", ["x", "w"], ["last_hidden_state"], {})],
        [("x", F, ["N", "T", 4])],
        [("last_hidden_state", F, ["N", "T", 3])],
        [tensor("w", 4, 3)],
        opset=11,
    )
    x = floats(5, 7, 4)
    _, found, got = exported(spec, tmp_path, {"x": x}, pooling="mean")
    assert [entry.version for entry in onnx.load(found.model).opset_import] == [20]
    np.testing.assert_allclose(got, given(spec, {"x": x}, "last_hidden_state").mean(1), atol=1e-5)


def test_links_of_a_hub_cache_are_followed(tmp_path):
    plain = tmp_path / "plain"
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "rev"
    for folder in (plain, blobs, snapshot):
        folder.mkdir(parents=True)
    external = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 0}
    spec = write(
        plain / "model.onnx",
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", F, ["batch", 64])],
        [("y", F, ["batch", 8])],
        [tensor("w", 64, 8)],
        **external,
    )
    want = given(spec, {"x": (x := floats(5, 64))}, "y")
    for number, file in enumerate(sorted(plain.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    before = resolve(str(snapshot / "model.onnx")).digest
    _, _, got = exported(str(snapshot / "model.onnx"), tmp_path, {"x": x})
    np.testing.assert_allclose(got, want, atol=1e-5)
    data = (blobs / "1").read_bytes()
    (blobs / "1").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert resolve(str(snapshot / "model.onnx")).digest != before
    (blobs / "1").write_bytes(data[:-4])
    with pytest.raises(SourceError, match="ends inside"):
        open_source(str(snapshot / "model.onnx"))


def test_weights_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    external = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0}
    spec = write(
        tmp_path / "in" / "m.onnx",
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", F, ["batch", 64])],
        [("y", F, ["batch", 8])],
        [tensor("w", 64, 8)],
        **external,
    )
    (tmp_path / "in" / "w.data").rename(tmp_path / "w.data")
    (tmp_path / "in" / "w.data").symlink_to("../w.data")
    model = onnx.load(spec, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.data"
    Path(spec).write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match=r"m\.onnx"):
        open_source(spec)


@pytest.mark.parametrize("kind", [H, D])
def test_inputs_and_outputs_are_float32(tmp_path, kind):
    spec = linear(tmp_path / "wide.onnx", ["N", 4], kind=kind)
    x = floats(5, 4)
    source, _, got = exported(spec, tmp_path, {"x": x})
    assert source.card.inputs[0].dtype == "float32"
    assert got.dtype == np.float32
    want = given(spec, {"x": x.astype(np.float16 if kind == H else np.float64)}, "y")
    np.testing.assert_allclose(got, want, atol=5e-3 if kind == H else 1e-6)


def branching(path, condition):
    """A model that squeezes where a size is 1, as exporters write it."""
    out = helper.make_tensor_value_info("t", F, None)
    branches = {
        "then_branch": helper.make_graph([helper.make_node("Neg", ["h"], ["t"])], "then", [], [out]),
        "else_branch": helper.make_graph([helper.make_node("Identity", ["h"], ["t"])], "else", [], [out]),
    }
    return write(
        path,
        [
            ("MatMul", ["x", "w"], ["h"], {}),
            *condition,
            ("If", ["taken"], ["r"], branches),
            ("ReduceMean", ["r"], ["y"], {"axes": [1], "keepdims": 0}),
        ],
        [("x", F, ["batch", "time", 4])],
        [("y", F, ["batch", 3])],
        [tensor("w", 4, 3), *(numpy_helper.from_array(np.array(n, np.int64), f"i{n}") for n in (0, 1, 3, 20))],
    )


def test_a_branch_that_every_size_takes_is_plain(tmp_path):
    sized = [("Shape", ["h"], ["s"], {})]
    rank = [("Shape", ["s"], ["r0"], {}), ("Squeeze", ["r0"], ["r1"], {}), ("Equal", ["r1", "i3"], ["taken"], {})]
    spec = branching(tmp_path / "if.onnx", [*sized, *rank])
    x = floats(5, 7, 4)
    _, found, got = exported(spec, tmp_path, {"x": x})
    assert "If" not in {node.op_type for node in onnx.load(found.model).graph.node}
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), atol=1e-5)


def test_a_branch_that_depends_on_the_size_is_no_guess(tmp_path):
    sized = [("Shape", ["h"], ["s"], {}), ("Gather", ["s", "i1"], ["m"], {}), ("Less", ["m", "i20"], ["taken"], {})]
    source = open_source(branching(tmp_path / "if.onnx", sized))
    assert "If" in {node.op_type for node in onnx.load(source.model_path).graph.node}


def quantized(path):
    scale = numpy_helper.from_array(np.array(0.02, np.float32), "s")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "z")
    return write(
        path,
        [
            ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
            ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
            ("MatMul", ["d", "w"], ["y"], {}),
        ],
        [("x", F, ["batch", 4])],
        [("y", F, ["batch", 3])],
        [scale, zero, tensor("w", 4, 3)],
    )


def test_a_quantized_graph_runs_as_it_is_and_is_not_quantized_again(tmp_path):
    from deploykit.precisions import int8, int8_dynamic
    from deploykit.precisions.int8 import Options as Int8
    from deploykit.precisions.int8_dynamic import Options as Dynamic

    spec = quantized(tmp_path / "q.onnx")
    x = floats(5, 4)
    source, found, got = exported(spec, tmp_path, {"x": x})
    assert any("quantized already" in note for note in found.notes)
    np.testing.assert_allclose(got, given(spec, {"x": x}, "y"), atol=1e-5)
    task = int8.Task(found.model, source.card, "onnxruntime", [{"x": x[:1]}] * 16)
    for lower, options in ((int8.lower, Int8()), (int8_dynamic.lower, Dynamic())):
        with pytest.raises(RecipeError, match="quantized already") as caught:
            lower(task, options, tmp_path)
        assert "fp32" in caught.value.hint
