"""TensorRT and onnxruntime's CUDA provider on a real GPU: built, cached, run, and the same vectors as torch in fp32."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

from deploykit import registry
from deploykit.precisions import Task
from deploykit.runtime.engines import EngineOptions, onnxruntime_cuda, open_engine
from deploykit.runtime.errors import InputError
from deploykit.runtime.manifest import Limits
from deploykit.runtime.tensorrt.build import capabilities
from deploykit.runtime.tensorrt.flavour import RTX, TENSORRT
from tests.quantize.conftest import as_arrays

pytestmark = pytest.mark.gpu

LEAST = {"fp32": 8.0, "fp16": 7.5, "int8": 8.0, "fp8": 8.9}
# A network of 24 dimensions and random weights drifts more than a trained one.
COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.9, "fp8": 0.9}


@pytest.fixture
def opened(bert, calibration, tmp_path, monkeypatch, gpu):
    """``opened(target, precision)``: the engine on the GPU; opening it again takes the cache."""
    monkeypatch.setenv("DEPLOYKIT_ENGINES", str(tmp_path / "engines"))
    engines = []
    made = {}

    def make(target, precision):
        if float(gpu.compute_capability) < LEAST[precision]:
            pytest.skip(f"{precision} needs compute capability {LEAST[precision]}, and the {gpu.name} has less")
        if target != "onnxruntime-cuda":
            _need(RTX if target == "tensorrt-rtx" else TENSORRT, gpu)
        elif onnxruntime_cuda.NAME not in pytest.importorskip("onnxruntime").get_available_providers():
            pytest.skip("the installed onnxruntime has no CUDA provider")
        card = dataclasses.replace(bert.card, limits=Limits({"length": (1, 64)}))
        if (target, precision) not in made:
            lowering, building = registry.module("precisions", precision), registry.module("targets", target)
            lowered, out = tmp_path / f"{target}-{precision}", tmp_path / f"{target}-{precision}-out"
            lowered.mkdir()
            out.mkdir()
            task = Task(bert.path, card, lowering.FORMS.get(target, ""), calibration(bert))
            facts = lowering.lower(task, lowering.Options(), lowered)
            source = bert.path if facts.get("unchanged") else lowered / "model.onnx"
            found = building.compile(source, card, precision, building.Options(), out)
            made[target, precision] = out / found.path if found.path else bert.path, found.settings
        path, settings = made[target, precision]
        engines.append(open_engine(target, path, card, settings, EngineOptions()))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def _need(flavour, gpu):
    trt = pytest.importorskip(flavour.module, exc_type=ImportError)
    known = capabilities(trt)
    if known and gpu.compute_capability not in known:
        pytest.skip(f"{flavour.name} has no compute capability {gpu.compute_capability}")


def worst_cosine(got, reference):
    got, reference = got.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(reference, axis=1)
    return float(np.min(np.sum(got * reference, axis=1) / norms))


VARIANTS = [
    *((target, precision) for target in ("tensorrt", "tensorrt-rtx") for precision in ("fp32", "fp16", "int8", "fp8")),
    ("onnxruntime-cuda", "fp32"),
    ("onnxruntime-cuda", "fp16"),
]


@pytest.mark.parametrize(("target", "precision"), VARIANTS)
def test_the_vectors_are_those_of_torch(opened, bert, target, precision):
    engine, output = opened(target, precision), bert.card.embedding.output
    for rows, length in ((1, 1), (3, 13), (5, 64), (40, 7)):  # 40 rows: more than the profile has
        feeds = bert.feeds(rows, length)
        reference = bert.reference(feeds)
        for _ in range(4):  # plain calls, the call that is recorded, and the recorded one
            got = engine.run(as_arrays(feeds))[output]
            assert worst_cosine(got, reference) >= COSINE[precision]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_shapes_in_turns_keep_their_graphs_apart(opened, bert, target):
    engine, output = opened(target, "fp16"), bert.card.embedding.output
    sizes = [(5, 64), (2, 8), (1, 24), (5, 64)]
    for _ in range(5):
        for rows, length in sizes:
            feeds = bert.feeds(rows, length)
            assert worst_cosine(engine.run(as_arrays(feeds))[output], bert.reference(feeds)) >= COSINE["fp16"]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_many_batches_keep_their_order(opened, bert, target):
    engine, output = opened(target, "fp16"), bert.card.embedding.output
    batches = [bert.feeds(1 + i % 3, 5 + i) for i in range(9)]
    for feeds, got in zip(batches, engine.run_many([as_arrays(feeds) for feeds in batches]), strict=True):
        assert worst_cosine(got[output], bert.reference(feeds)) >= COSINE["fp16"]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_second_time_the_engine_is_in_the_cache(opened, gpu, target):
    assert opened(target, "fp16").effective["from"] == "built now"
    again = opened(target, "fp16").effective
    assert (again["from"], again["device"], again["driver"]) == ("the cache", gpu.name, gpu.driver)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_length_outside_the_profiles_is_refused(opened, bert, target):
    feeds = as_arrays(bert.feeds(1, 64))
    longer = {name: np.concatenate([array, array], axis=1) for name, array in feeds.items()}
    with pytest.raises(InputError, match="outside the engine's profiles"):
        opened(target, "fp16").run(longer)


def test_every_product_is_on_the_gpu(opened):
    operations = opened("onnxruntime-cuda", "fp16").effective["operations"]
    assert operations[onnxruntime_cuda.NAME] > operations.get("CPUExecutionProvider", 0)
