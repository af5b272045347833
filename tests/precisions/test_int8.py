"""int8 must lower for the form that is asked for, state what it asks of a CPU, and saturate on none it promises."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from deploykit import registry  # noqa: E402
from deploykit.precisions import Task  # noqa: E402
from deploykit.runtime import hardware  # noqa: E402
from tests.quantize.made import feed_forward, random  # noqa: E402

int8 = registry.module("precisions", "int8")


def lower(tmp_path, **options):
    onnx.save(feed_forward(), tmp_path / "portable.onnx")
    batches = [{"x": random(4, 6, seed=i)} for i in range(10)]
    facts = int8.lower(
        Task(tmp_path / "portable.onnx", None, "onnxruntime", batches), int8.Options(**options), tmp_path
    )
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer]
    return facts, max(int(np.abs(array.astype(int)).max()) for array in stored if array.dtype == np.int8)


def test_all_eight_bits_require_a_cpu_that_adds_in_32(tmp_path):
    facts, largest = lower(tmp_path, cpu="vnni")
    assert facts["requires"] == {"cpu_features": ["avx512_vnni|avx_vnni|asimd"]}
    assert (facts["weight_bits"], largest) == (8, 127)


def test_seven_bits_run_anywhere(tmp_path):
    facts, largest = lower(tmp_path, cpu="any")
    assert "requires" not in facts
    assert (facts["weight_bits"], largest) == (7, 63)


@pytest.mark.parametrize(
    ("features", "cpu"),
    [
        ({"avx2"}, "any"),
        ({"avx2", "avx_vnni"}, "vnni"),
        ({"avx512_vnni"}, "vnni"),
        ({"asimd", "fp"}, "vnni"),
        (set(), "any"),
    ],
)
def test_auto_is_what_this_cpu_has(features, cpu, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_features", lambda: frozenset(features))
    assert int8.resolve(int8.Options()).cpu == cpu
    assert int8.resolve(int8.Options(cpu="any")).cpu == "any"


def test_smoothing_can_be_switched_off(tmp_path):
    assert lower(tmp_path, smooth=True)[0]["smoothed"]
    assert lower(tmp_path, smooth=False)[0]["smoothed"] == []


def test_every_form_has_its_quantizer():
    assert int8.CALIBRATED
    targets = [name for name in registry.names("targets") if "int8" in registry.module("targets", name).PRECISIONS]
    assert set(int8.FORMS) == set(targets)
    assert set(int8.FORMS.values()) == {"openvino", "onnxruntime", "symmetric"}
