"""The device side of TensorRT without a GPU: gate, cache, lanes and graphs; module and driver are plain Python."""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploykit.runtime.engines import EngineOptions, _tensorrt, open_engine
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.manifest import Card, Embedding, TensorSpec, Variant
from deploykit.runtime.selection import Device, unmet
from deploykit.runtime.tensorrt import cache
from deploykit.runtime.tensorrt.build import Built
from deploykit.runtime.tensorrt.driver import Cuda, Gpu, gpu
from deploykit.runtime.tensorrt.flavour import RTX, TENSORRT, Flavour
from deploykit.runtime.tensorrt.recipe import Bounds, Recipe, digest_of
from tests.runtime.tensorrt import fake

GPU = Gpu("NVIDIA L4", "8.9", "13.0", 24 << 30)
RECIPE = Recipe("fp16", "7.5", ({"x": Bounds((1, 3), (2, 3), (4, 3))},))
CARD = Card(
    name="sum",
    modality="tensor",
    inputs=(TensorSpec("x", "float32", ("batch", 3)),),
    outputs=(TensorSpec("y", "float32", ("batch", 1)),),
    embedding=Embedding("y", 1, "none", False),
    preprocess={"kind": "none"},
)


def rows(count, seed=0):
    return {"x": np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)}


def made(**options):
    """(an engine on the fake driver, that driver); ``fail``, ``memory`` and ``captures`` go to the fakes."""
    trt = fake.module(fail=options.pop("fail", ""), rtx=options.pop("rtx", False))
    device = fake.Device(trt, **options)
    return _tensorrt.TensorRtEngine(trt, b"blob", CARD, RECIPE, device, {"engine": "fake"}), device


def test_a_batch_comes_back_as_it_should_and_is_the_callers():
    engine, _ = made()
    first = engine.run(rows(3))["y"]
    kept = first.copy()
    engine.run(rows(3, seed=1))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_allclose(first[:, 0], rows(3)["x"].sum(1), rtol=1e-6)


def test_more_rows_than_the_profile_has_go_through_in_parts():
    engine, _ = made()
    np.testing.assert_allclose(engine.run(rows(11))["y"][:, 0], rows(11)["x"].sum(1), rtol=1e-6)


def test_many_batches_come_back_in_order():
    engine, _ = made()
    outputs = engine.run_many(rows(1 + i % 4, seed=i) for i in range(9))
    for i, output in enumerate(outputs):
        np.testing.assert_allclose(output["y"][:, 0], rows(1 + i % 4, seed=i)["x"].sum(1), rtol=1e-6)


def test_a_shape_that_comes_back_is_recorded_and_launched():
    engine, device = made()
    for i in range(6):
        np.testing.assert_allclose(engine.run(rows(2, seed=i))["y"][:, 0], rows(2, seed=i)["x"].sum(1), rtol=1e-6)
    assert device.launched == 4  # recorded at the third call


def test_a_graph_has_a_context_that_is_told_no_other_shapes():
    engine, device = made()
    engine.run(rows(3))  # nothing grows from here on
    for i, count in enumerate((2, 2, 1, 2, 1, 1, 2, 1, 3, 2)):
        fed = rows(count, seed=i)
        np.testing.assert_allclose(engine.run(fed)["y"][:, 0], fed["x"].sum(1), rtol=1e-6)
    assert device.launched == 5  # 2 at its third call, then 1 at its own


def test_without_memory_for_a_context_of_its_own_nothing_is_recorded():
    engine, device = made(fail="second context")
    for i in range(5):
        np.testing.assert_allclose(engine.run(rows(2, seed=i))["y"][:, 0], rows(2, seed=i)["x"].sum(1), rtol=1e-6)
    assert device.launched == 0


def test_more_shapes_than_graphs_are_still_counted(monkeypatch):
    from deploykit.runtime.tensorrt import session

    monkeypatch.setattr(session, "_MOST_GRAPHS", 2)
    engine, device = made()
    engine.run(rows(4))
    for _ in range(4):
        for count in (1, 2, 3, 4):
            np.testing.assert_allclose(engine.run(rows(count))["y"][:, 0], rows(count)["x"].sum(1), rtol=1e-6)
    assert device.launched > 0
    assert sum(1 for graph in device.graphs.values() if graph is not None) == 2


def test_contexts_of_rtx_record_graphs_themselves_and_keep_their_kernels(tmp_path):
    kernels = tmp_path / "kernels.bin"
    for seen in (b"", b"compiled"):
        trt = fake.module(rtx=True)
        device = fake.Device(trt)
        engine = _tensorrt.TensorRtEngine(trt, b"blob", CARD, RECIPE, device, {"engine": "fake"}, kernels)
        assert trt.made.runtime_cache.held == seen
        for i in range(4):
            np.testing.assert_allclose(engine.run(rows(2, seed=i))["y"][:, 0], rows(2, seed=i)["x"].sum(1), rtol=1e-6)
        config = trt.made.contexts[0].config
        assert (config.cuda_graph_strategy, config.dynamic_shapes_kernel_specialization_strategy) == ("whole", "eager")
        assert device.launched == 0
        assert not engine.records_graphs
        engine.close()
        assert kernels.read_bytes() == b"compiled"
    assert kernels.stat().st_mode & 0o777 == 0o600


def test_the_installed_rtx_has_what_its_contexts_are_told():
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.BuilderFlag, "TF32")
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "create_runtime_cache"):
        assert hasattr(trt.IRuntimeConfig, name)
    assert hasattr(trt.IRuntimeCache, "deserialize")


def test_code_that_an_engine_brings_is_allowed_where_the_recipe_asks_for_it():
    for asked in (False, True):
        trt = fake.module()
        recipe = Recipe("fp16", "7.5", RECIPE.profiles, version_compatible=asked)
        _tensorrt.TensorRtEngine(trt, b"blob", CARD, recipe, fake.Device(trt), {})
        assert trt.made.runtimes[0].engine_host_code_allowed is asked


TEXT = {
    "modality": "text",
    "inputs": tuple(TensorSpec(n, "int64", ("batch", "length")) for n in ("input_ids", "attention_mask")),
    "preprocess": {"kind": "text", "pad_id": 7},
}


def test_texts_are_padded_to_lengths_that_come_up_again():
    bounds = Bounds((1, 1), (2, 16), (4, 20))
    recipe = Recipe("fp16", "7.5", ({"input_ids": bounds, "attention_mask": bounds},))
    lengths = _tensorrt._Lengths.of(replace(CARD, **TEXT), recipe)
    for given, wanted in ((3, 8), (8, 8), (9, 16), (17, 20), (20, 20)):
        fed = {name: np.ones((2, given), np.int64) for name in ("input_ids", "attention_mask")}
        filled = lengths.filled(fed)
        assert filled["input_ids"].shape == filled["attention_mask"].shape == (2, wanted)
        assert (filled["input_ids"][:, given:] == 7).all()
        assert filled["attention_mask"].sum() == 2 * given
    tokens = (*CARD.outputs, TensorSpec("tokens", "float32", ("batch", "length", 4)))
    assert _tensorrt._Lengths.of(replace(CARD, **TEXT, outputs=tokens), recipe) is None
    assert _tensorrt._Lengths.of(CARD, RECIPE) is None
    left = {**TEXT, "preprocess": {**TEXT["preprocess"], "padding_side": "left"}}
    assert _tensorrt._Lengths.of(replace(CARD, **left), recipe) is None


def test_a_gpu_that_the_flavour_lacks_is_refused_before_a_build():
    h200 = Gpu("NVIDIA H200", "9.0", "13.0", 1)
    with pytest.raises(MissingError, match=r"no compute capability 9\.0, which the NVIDIA H200 has") as caught:
        _tensorrt.check_capability(fake.module(), RTX, h200)
    assert "8.6, 8.9" in caught.value.hint
    _tensorrt.check_capability(fake.module(), RTX, GPU)
    _tensorrt.check_capability(fake.module(sm=()), TENSORRT, h200)  # it builds for the GPU that is here


def test_a_buffer_that_grows_drops_the_graphs():
    engine, device = made()
    for count in (2, 2, 2, 4, 2):
        np.testing.assert_allclose(engine.run(rows(count))["y"][:, 0], rows(count)["x"].sum(1), rtol=1e-6)
    assert device.graphs[1] is None


def test_an_engine_that_cannot_be_recorded_runs_all_the_same_and_says_so_once(caplog):
    engine, device = made(captures=False)
    for i in range(5):
        np.testing.assert_allclose(engine.run(rows(2, seed=i))["y"][:, 0], rows(2, seed=i)["x"].sum(1), rtol=1e-6)
    assert device.launched == 0
    assert caplog.text.count("no more calls are recorded as CUDA graphs, each is launched kernel by kernel") == 1
    assert "cuStreamEndCapture" in caplog.text


def test_close_gives_everything_back():
    engine, device = made()
    engine.run_many([rows(2), rows(3)])
    engine.run(rows(4))
    engine.close()
    assert device.held == {}
    assert device.closed
    with pytest.raises(InputError, match="closed"):
        engine.run(rows(1))


@pytest.mark.parametrize(
    ("fail", "kind", "said"),
    [
        ("deserialize", BundleError, "built by another version"),
        ("context", MissingError, "not enough device memory"),
        ("input shape", InputError, r"refuses \[2, 3\] for 'x'"),
        ("execute", InputError, "does not run the engine"),
    ],
)
def test_each_failure_is_an_error(fail, kind, said):
    with pytest.raises(kind, match=said):
        made(fail=fail)[0].run(rows(2))


def test_too_little_memory_is_said_with_the_bytes():
    with pytest.raises(MissingError, match="not enough memory on the GPU for 24 bytes"):
        made(memory=16)[0].run(rows(2))


def test_a_size_outside_the_profiles_is_refused():
    with pytest.raises(InputError, match="outside the engine's profiles"):
        made()[0].run({"x": np.ones((2, 5), np.float32)})


@pytest.mark.parametrize(
    ("found", "precision", "least", "cuda", "said"),
    [
        (None, "fp16", "7.5", 13, "needs an NVIDIA GPU"),
        (GPU, "fp8", "12.0", 13, "needs compute capability 12.0, and the NVIDIA L4 has 8.9"),
        (Gpu("NVIDIA L4", "8.9", "12.4", 1), "fp16", "7.5", 13, "speaks CUDA 12.4, and .* needs CUDA 13"),
    ],
)
def test_the_gate_says_what_is_missing(monkeypatch, found, precision, least, cuda, said):
    monkeypatch.setattr(Flavour, "cuda_major", lambda self: cuda)
    with pytest.raises(MissingError, match=said) as caught:
        _tensorrt.gate(RTX, Recipe(precision, least, ()), found)
    assert caught.value.hint
    assert _tensorrt.gate(RTX, RECIPE, GPU) is GPU


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_ENGINES", str(tmp_path / "engines"))
    (tmp_path / "model.onnx").write_bytes(b"an onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def load(model, monkeypatch):
    """``load(trt)``: the engine of the model, as `open_engine` would get it; (bytes, effective)."""

    def run(trt, gpu=GPU, recipe=RECIPE):
        return _tensorrt._engine(trt, TENSORRT, model, recipe, gpu)[:2]

    return run


def test_the_second_load_takes_the_cache(load, model):
    trt = fake.module()
    first, effective = load(trt)
    again, later = load(trt)
    assert (first, effective["from"], later["from"], trt.made.builds) == (again, "built now", "the cache", 1)
    root = model.parent / "engines"
    assert root.stat().st_mode & 0o777 == 0o700
    kept = next(root.glob("*/engine.bin"))
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("change", ["version", "gpu", "driver", "recipe", "model"])
def test_anything_that_differs_builds_anew(load, model, change):
    trt, device, recipe = fake.module(), GPU, RECIPE
    load(trt)
    if change == "version":
        trt.__version__ = "11.1.0"
    elif change == "gpu":
        device = Gpu("NVIDIA A10", "8.6", "13.0", 1)
    elif change == "driver":
        device = Gpu("NVIDIA L4", "8.9", "13.1", 24 << 30)
    elif change == "recipe":
        recipe = Recipe("fp16", "7.5", RECIPE.profiles, workspace_mib=8)
    else:
        model.write_bytes(b"another onnx")
    load(trt, device, recipe)
    assert trt.made.builds == 2


def test_a_stale_engine_is_announced(load, caplog):
    load(fake.module(version="10.9.0"))
    load(fake.module(version="11.0.0"))
    assert any("10.9.0" in record.getMessage() and "anew" in record.getMessage() for record in caplog.records)


def test_a_damaged_engine_is_built_anew(load, model):
    trt = fake.module()
    load(trt)
    next((model.parent / "engines").glob("*/engine.bin")).write_bytes(b"half")
    assert load(trt)[1]["from"] == "built now"


@pytest.mark.parametrize("place", ["beside the model", "beside the bundle"])
def test_an_engine_from_elsewhere_is_taken_only_when_it_is_trusted(tmp_path, monkeypatch, caplog, place):
    from deploykit.runtime.tensorrt.build import build, dumps

    monkeypatch.setenv("DEPLOYKIT_ENGINES", str(tmp_path / "cache"))
    path = tmp_path / "m.bundle" / "models" / "v.onnx"
    folder = path.parent if place == "beside the model" else tmp_path / "m.engines"
    for needed in (path.parent, folder):
        needed.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"an onnx")
    brought = build(fake.module(), "tensorrt", path, RECIPE, "8.9")
    (folder / "v.sm89.engine").write_bytes(brought.engine)
    (folder / "v.sm89.json").write_text(dumps(brought.metadata))

    def origin():
        return _tensorrt._engine(fake.module(), TENSORRT, path, RECIPE, GPU)[1]["from"]

    assert origin() == "built now"
    monkeypatch.setenv("DEPLOYKIT_TRUST_ENGINES", "1")
    assert origin() == "ahead of time"
    (folder / "v.sm89.engine").write_bytes(b"altered")
    assert origin() == "the cache"
    assert "v.sm89.engine is not used: it is damaged" in caplog.text


def test_a_cache_that_others_may_write_to_is_refused(load, model):
    root = model.parent / "engines"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(MissingError, match="others may write"):
        load(fake.module())


WANTED = {
    **{"flavour": "tensorrt", "version": "11.0.0", "compute_capability": "8.9", "platform": "p"},
    **{"model": "m", "recipe": "r"},
}


def slow_build(counter):
    with Path(counter).open("a") as file:
        file.write("x")
    time.sleep(0.3)
    engine = b"engine"
    import hashlib

    digests = {"model": "m", "recipe": "r", "engine": hashlib.sha256(engine).hexdigest()}
    return Built(engine, {**WANTED, "recipe": {}, "digests": digests}, 0.3)


def build_in_a_process(root, counter):
    cache.get(Path(root), WANTED, lambda: slow_build(counter))


def test_two_builders_of_one_key_do_the_work_once(tmp_path):
    counter = tmp_path / "counter"
    arguments = (tmp_path / "engines", WANTED, lambda: slow_build(counter))
    threads = [threading.Thread(target=cache.get, args=arguments) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "x"


def test_a_build_that_is_killed_leaves_no_engine(tmp_path):
    counter, root = tmp_path / "counter", tmp_path / "engines"
    process = multiprocessing.get_context("fork").Process(target=build_in_a_process, args=(root, counter))
    process.start()
    while not counter.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not list(root.glob("*/engine.bin"))
    assert cache.get(root, WANTED, lambda: slow_build(counter)).built  # the lock went with the process
    assert not cache.get(root, WANTED, lambda: slow_build(counter)).built


def test_a_variant_that_needs_a_gpu_is_not_chosen_without_one():
    variant = Variant("v", "onnxruntime", "fp16", "v.onnx", requires={"compute_capability": "8.0"})
    assert unmet(variant, Device(gpu=lambda: None)).startswith("no NVIDIA GPU")
    old = Gpu("Tesla T4", "7.5", "13.0", 1)
    assert unmet(variant, Device(gpu=lambda: old)) == "it needs compute capability 8.0, and the Tesla T4 has 7.5"


def test_without_a_driver_there_is_no_gpu():
    assert gpu("libnothing-of-the-kind.so") is None
    with pytest.raises(MissingError, match="no NVIDIA GPU"):
        Cuda("libnothing-of-the-kind.so")


@pytest.mark.skipif(gpu() is not None, reason="there is a GPU here")
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_opening_without_a_gpu_says_so(model, target):
    with pytest.raises(MissingError, match="NVIDIA GPU"):
        open_engine(target, model, CARD, RECIPE.settings, EngineOptions())


def test_the_weights_that_large_models_share_are_part_of_the_key(tmp_path):
    model = tmp_path / "fp32.onnx"
    model.write_bytes(b"graph")
    alone = digest_of(model)
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    shared = digest_of(model)
    (tmp_path / "model.onnx.data").write_bytes(b"others")
    assert len({alone, shared, digest_of(model)}) == 3
