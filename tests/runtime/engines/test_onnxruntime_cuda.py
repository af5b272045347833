"""The CUDA provider without a GPU: what must be there, where each operation runs, and that nothing falls back."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.runtime.engines import EngineOptions, install_hint, onnxruntime_cuda, open_engine
from deploykit.runtime.engines.onnxruntime import Provider, open_on
from deploykit.runtime.errors import BundleError, MissingError
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import Device, unmet
from deploykit.runtime.tensorrt.driver import Gpu
from tests.runtime import made

CUDA, CPU = onnxruntime_cuda.NAME, "CPUExecutionProvider"
GPU = Gpu("NVIDIA L4", "8.9", "13.0", 24 << 30)


def package(*providers, session=None):
    offered = {"get_provider_graph_assignment_info": None} if session is None else session
    return SimpleNamespace(
        __version__="1.23.0",
        get_available_providers=lambda: list(providers),
        InferenceSession=type("InferenceSession", (), offered),
    )


def test_a_package_for_the_cpu_is_refused_with_the_extra_to_install():
    with pytest.raises(MissingError, match=f"has no {CUDA}, only {CPU}") as caught:
        onnxruntime_cuda.check_package(package(CPU))
    assert 'pip install "onnxruntime-gpu>=' in caught.value.hint


def test_a_package_that_does_not_tell_where_it_runs_is_refused():
    onnxruntime_cuda.check_package(package(CUDA, CPU))
    with pytest.raises(MissingError, match="does not tell where its operations run") as caught:
        onnxruntime_cuda.check_package(package(CUDA, CPU, session={}))
    assert "onnxruntime-gpu>=1.24.1" in caught.value.hint


def test_arithmetic_on_shapes_may_stay_on_the_cpu():
    onnxruntime_cuda.require_products({CUDA: {"MatMul": 48, "Add": 9}, CPU: {"Shape": 4, "Gather": 3}}, CUDA, "m.onnx")


@pytest.mark.parametrize(
    ("placed", "said"),
    [
        ({CUDA: {"MatMul": 47}, CPU: {"MatMul": 1, "Shape": 4}}, f": MatMul x1 on {CPU}\n"),
        ({CUDA: {"Add": 47}, CPU: {"MultiHeadAttention": 6}}, "MultiHeadAttention x6"),
        ({CPU: {"Add": 1}}, "no operation runs there"),
        ({}, "no operation runs there"),
    ],
)
def test_a_product_on_the_cpu_is_an_error(placed, said):
    with pytest.raises(MissingError, match=said) as caught:
        onnxruntime_cuda.require_products(placed, CUDA, "m.onnx")
    assert caught.value.hint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return made.save_model(tmp_path_factory.mktemp("cuda") / "model.onnx")


def inspecting(session, path):
    """What the CUDA engine asks of its session, of the CPU's, which is here."""
    placed = onnxruntime_cuda.placements(session)
    return {"placed": placed}


def test_a_real_session_tells_where_each_operation_runs(model):
    provider = Provider(CPU, {}, onnxruntime_cuda._RECORD, 2, inspecting)
    engine = open_on(provider, model, made.card(), {}, 1)
    placed = engine.effective["placed"]
    assert set(placed) == {CPU}
    assert placed[CPU]["Gather"] == 1
    assert isinstance(placed[CPU], Counter)
    with pytest.raises(MissingError, match="would not run on"):
        onnxruntime_cuda.require_products(placed, CUDA, model.name)
    engine.close()


def test_batches_in_flight_share_one_session(model):
    engine = open_on(Provider(CPU, lanes=2), model, made.card(), {}, 1)
    assert engine.effective["streams_many"] == 2
    batches = [{"input_ids": np.full((1, 1 + i), 2), "attention_mask": np.ones((1, 1 + i), np.int64)} for i in range(7)]
    for found in engine.run_many(batches):
        np.testing.assert_allclose(found["sentence_embedding"], made.TABLE[[2]], rtol=1e-5)
    engine.close()


def test_what_the_provider_finds_wrong_is_not_opened(model):
    def refuse(session, path):
        raise MissingError(f"'{path.name}' would not run", hint="")

    with pytest.raises(MissingError, match="would not run"):
        open_on(Provider(CPU, inspect=refuse), model, made.card(), {}, 1)


def has_cuda():
    onnxruntime = pytest.importorskip("onnxruntime")
    return CUDA in onnxruntime.get_available_providers()


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_got_another_provider_is_refused(model):
    if has_cuda():
        pytest.skip("the installed onnxruntime has the CUDA provider")
    with pytest.raises((MissingError, BundleError), match="CUDAExecutionProvider"):
        open_on(Provider(CUDA), model, made.card(), {}, 1)
    with pytest.raises(MissingError, match=f"has no {CUDA}"):
        open_engine("onnxruntime-cuda", model, made.card(), {}, EngineOptions())


def test_without_the_package_it_is_passed_over_and_the_extra_is_named():
    needs = {"compute_capability": "7.5", "packages": {"onnxruntime-gpu-of-another-name": ">=1.24.1"}}
    variant = Variant("v", "onnxruntime-cuda", "fp16", "v.onnx", requires=needs)
    assert unmet(variant, Device(gpu=lambda: None)).startswith("no NVIDIA GPU")
    assert unmet(variant, Device(gpu=lambda: GPU)) == "onnxruntime-gpu-of-another-name is not installed"
    assert install_hint(["onnxruntime-cuda"]).startswith('pip install "onnxruntime-gpu>=')


def test_it_takes_no_setting(model):
    with pytest.raises(BundleError, match="onnxruntime-cuda has no setting 'config'"):
        open_engine("onnxruntime-cuda", model, made.card(), {"config": {}}, EngineOptions())
