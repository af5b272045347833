"""bf16 leaves the graph alone for CPUs; as arithmetic it keeps what 8 bits would break, and the encoder's vectors."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto  # noqa: E402

from deploykit.precisions import Task, bf16  # noqa: E402
from tests.graph import hazard_graphs as graphs  # noqa: E402
from tests.precisions.test_fp16 import X, exact, run, worst_cosine  # noqa: E402
from tests.quantize.conftest import as_arrays, bert, resnet, vit  # noqa: F401, E402


def arithmetic(folder, proto, card=None, **options):
    onnx.save(proto, folder / "portable.onnx")
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    task = Task(folder / "portable.onnx", card or graphs.card(), "arithmetic", [{"x": X}])
    facts = bf16.lower(task, bf16.Options(**options), out)
    lowered = onnx.load(out / "model.onnx")
    onnx.checker.check_model(lowered, full_check=True)
    return facts, lowered


def test_for_a_cpu_nothing_is_written(tmp_path):
    onnx.save(graphs.rotary(), tmp_path / "portable.onnx")
    task = Task(tmp_path / "portable.onnx", graphs.card(), "", ())
    assert bf16.lower(task, bf16.Options(), tmp_path) == {"unchanged": True}
    assert [path.name for path in tmp_path.iterdir()] == ["portable.onnx"]


@pytest.mark.parametrize("name", ["bert", "vit", "resnet"])
def test_encoders_keep_their_vectors(tmp_path, name, request):
    portable = request.getfixturevalue(name)
    onnx.save(onnx.load(portable.path), tmp_path / "model.onnx")
    facts = bf16.lower(Task(portable.path, portable.card, "arithmetic", ()), bf16.Options(), tmp_path)
    lowered = onnx.load(tmp_path / "model.onnx")
    assert facts["arithmetic"] == "bf16"
    kinds = {t.data_type for t in lowered.graph.initializer if np.prod(t.dims) > 64}
    assert TensorProto.BFLOAT16 in kinds
    assert not kinds & {TensorProto.FLOAT, TensorProto.FLOAT16}
    for batch, length in ((1, 3), (3, 17)):
        feeds = portable.feeds(batch, length)
        assert worst_cosine(run(lowered, as_arrays(feeds)), portable.reference(feeds)) >= bf16.TOLERANCE.cosine


def test_large_positions_keep_their_angles(tmp_path):
    feeds = {"x": X, "position": np.arange(8 * graphs.WIDTH).reshape(8, -1) * 3}
    onnx.save(graphs.rotary(), tmp_path / "portable.onnx")
    cosines = {}
    for hazards in (True, False):
        task = Task(tmp_path / "portable.onnx", graphs.card(), "arithmetic", [feeds])
        facts = bf16.lower(task, bf16.Options(hazards=hazards), tmp_path)
        assert hazards == any("bf16 has no digits" in hazard["why"] for hazard in facts["hazards"])
        cosines[hazards] = worst_cosine(run(onnx.load(tmp_path / "model.onnx"), feeds), exact(graphs.rotary(), feeds))
    assert cosines[True] >= 0.999
    assert cosines[False] < 0.99


def test_what_is_too_large_for_fp16_is_not_for_bf16(tmp_path):
    want = exact(graphs.large_residual(), {"x": X})
    facts, lowered = arithmetic(tmp_path, graphs.large_residual())
    assert not {"range", "constant"} & {hazard["what"] for hazard in facts["hazards"]}
    assert worst_cosine(run(lowered, {"x": X}), want) >= 0.999
