"""Fp16 as arithmetic must keep in fp32 what would collapse, and only that."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from deploykit.errors import ExportError  # noqa: E402
from deploykit.graph import half  # noqa: E402
from deploykit.precisions import Task, fp16  # noqa: E402
from tests.graph import hazard_graphs as graphs  # noqa: E402
from tests.quantize.conftest import as_arrays, bert, resnet, vit  # noqa: F401, E402

X = 3 * np.random.default_rng(3).standard_normal((8, graphs.WIDTH)).astype(np.float32)


def arithmetic(folder, proto, card=None, calibration=(), **options):
    """Lower to fp16 arithmetic; (facts, the lowered model)."""
    onnx.save(proto, folder / "portable.onnx")
    out = folder / "arithmetic"
    out.mkdir(exist_ok=True)
    task = Task(folder / "portable.onnx", card or graphs.card(), "arithmetic", calibration)
    facts = fp16.lower(task, fp16.Options(**options), out)
    lowered = onnx.load(out / "model.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    onnxruntime.InferenceSession(lowered.SerializeToString())  # it loads as it is, too
    return facts, lowered


def run(proto, feeds):
    """The embedding, every fp16 result rounded to fp16."""
    session = onnxruntime.InferenceSession(half.rounded(proto).SerializeToString())
    taken = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in taken})[0]


def worst_cosine(got, want):
    got, want = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    return float(np.nan_to_num(cosine, nan=-1.0).min())


def exact(proto, feeds):
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize("name", ["large_residual", "written_out_norm"])
def test_what_collapses_without_the_hazards_is_right_with_them(tmp_path, name):
    proto = getattr(graphs, name)()
    want = exact(proto, {"x": X})
    naive, lowered = arithmetic(tmp_path, proto, hazards=False)
    assert naive["hazards"] == []
    assert worst_cosine(run(lowered, {"x": X}), want) < 0.9
    facts, lowered = arithmetic(tmp_path, proto, calibration=[{"x": X}])
    assert worst_cosine(run(lowered, {"x": X}), want) >= 0.9999
    assert facts["nodes_half"] >= 1
    assert all(facts["kept_fp32"].values())


def test_the_facts_say_which_inputs_the_ranges_come_from(tmp_path):
    facts, _ = arithmetic(tmp_path, graphs.large_residual())
    assert "seeded" in facts["ranges"]
    facts, _ = arithmetic(tmp_path, graphs.large_residual(), calibration=[{"x": X}])
    assert facts["ranges"] == "8 calibration inputs"


def test_a_mask_is_clamped_and_stays_fp16(tmp_path):
    proto = graphs.masked_softmax()
    mask = np.tile(np.arange(graphs.WIDTH) % 3 > 0, (8, 1)).astype(np.int64)
    mask[2] = 0  # nothing is left of this row: it must stay finite
    inputs = [("x", "float32", ("batch", graphs.WIDTH)), ("mask", "int64", ("batch", graphs.WIDTH))]
    facts, lowered = arithmetic(tmp_path, proto, graphs.card(inputs))
    assert set(facts["clamped_masks"]) == {"masked"}
    assert facts["kept_fp32"] == {}
    got, want = run(lowered, {"x": X, "mask": mask}), exact(proto, {"x": X, "mask": mask})
    assert np.isfinite(got).all()
    assert worst_cosine(np.delete(got, 2, 0), np.delete(want, 2, 0)) >= 0.9999
    _, naive = arithmetic(tmp_path, proto, graphs.card(inputs), hazards=False)
    assert not np.isfinite(run(naive, {"x": X, "mask": mask})).all()


def test_large_positions_keep_their_angles(tmp_path):
    proto = graphs.rotary()
    feeds = {"x": X, "position": np.arange(8 * graphs.WIDTH).reshape(8, -1) * 21}
    inputs = [("x", "float32", ("batch", graphs.WIDTH)), ("position", "int64", ("batch", graphs.WIDTH))]
    _, lowered = arithmetic(tmp_path, proto, graphs.card(inputs))
    assert worst_cosine(run(lowered, feeds), exact(proto, feeds)) >= 0.9999
    _, naive = arithmetic(tmp_path, proto, graphs.card(inputs), hazards=False)
    assert worst_cosine(run(naive, feeds), exact(proto, feeds)) < 0.99


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_encoders_keep_their_vectors_inputs_and_outputs(tmp_path, name, request):
    portable = request.getfixturevalue(name)
    proto = onnx.load(portable.path)
    facts, lowered = arithmetic(tmp_path, proto, portable.card)
    types = {value.name: value.type.tensor_type.elem_type for value in (*lowered.graph.input, *lowered.graph.output)}
    before = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    assert types == before
    # Products and their weights are fp16, and few casts stand between.
    large = [t for t in lowered.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 64]
    assert not large
    assert facts["casts"] <= 6
    assert facts["bytes_after"] < 0.6 * facts["bytes_before"]
    for batch, length in ((1, 3), (3, 17)):
        feeds = portable.feeds(batch, length)
        assert worst_cosine(run(lowered, as_arrays(feeds)), portable.reference(feeds)) >= 0.9999


def test_an_operator_without_an_fp16_form_stays_fp32(tmp_path):
    nodes = [("MatMul", ["x", "w"], ["h"], {}), ("Gelu", ["h"], ["embedding"], {})]
    proto = graphs.model(nodes, {"w": graphs.weight()})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node[1].domain = "com.microsoft"
    onnx.save(proto, tmp_path / "portable.onnx")
    task = Task(tmp_path / "portable.onnx", graphs.card(), "arithmetic")
    facts = fp16.lower(task, fp16.Options(hazards=False), tmp_path)
    assert list(facts["kept_fp32"]) == ["n_embedding"]
    assert facts["nodes_half"] == 1


def test_keeping_a_node_that_does_not_exist_is_an_error():
    with pytest.raises(ExportError, match="no node 'nothing'"):
        half.to_half(half.typed(graphs.rotary()), {"nothing": "because"})


def test_rounding_is_written_out_where_the_cpu_provider_would_skip_it(tmp_path):
    nodes = [("Mul", ["x", "c"], ["large"], {}), ("Div", ["large", "c"], ["embedding"], {})]
    _, lowered = arithmetic(tmp_path, graphs.model(nodes, {"c": np.float32(60000)}), hazards=False)
    assert np.isfinite(onnxruntime.InferenceSession(lowered.SerializeToString()).run(None, {"x": X})[0]).all()
    assert not np.isfinite(run(lowered, {"x": X})).all()


@pytest.mark.skipif("DEPLOYKIT_DATA" not in os.environ, reason="DEPLOYKIT_DATA is not set")
def test_minilm_on_real_sentences(tmp_path):
    bundle = Path(__file__).parents[2] / "build" / "minilm.bundle"
    if not bundle.is_dir():
        pytest.skip("build/minilm.bundle was not built")
    from deploykit.runtime.bundle import Bundle
    from deploykit.runtime.preprocess import open_preprocessor

    lines = (Path(os.environ["DEPLOYKIT_DATA"]) / "stsb" / "sts-dev.csv").read_text(encoding="utf-8").splitlines()
    texts = [line.split("\t")[5] for line in lines[:64]]
    card = Bundle.open(bundle).manifest.card
    preprocessor = open_preprocessor(card, bundle)
    feeds = preprocessor.collate(preprocessor.items(texts))
    proto = onnx.load(bundle / "models" / "fp32.onnx")
    _, lowered = arithmetic(tmp_path, proto, card)
    assert worst_cosine(run(lowered, feeds), exact(proto, feeds)) >= 0.9999
