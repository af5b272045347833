"""A bundle's engines are built once, before anything is encoded; module, driver and GPU are plain Python."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("onnx")

import deploykit
from deploykit.cli import main
from deploykit.errors import BundleError, InputError
from deploykit.runtime import selection
from deploykit.runtime.engines import _tensorrt
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import Device
from deploykit.runtime.tensorrt import driver
from deploykit.runtime.tensorrt.driver import Gpu
from deploykit.runtime.tensorrt.flavour import Flavour
from deploykit.runtime.tensorrt.recipe import Bounds, Recipe
from deploykit.runtime.tensorrt.warm import warm
from tests.runtime import made
from tests.runtime.tensorrt import fake

GPU = Gpu("NVIDIA L4", "8.9", "13.0", 24 << 30)
NONE = Device(gpu=lambda: None)
L4 = Device(gpu=lambda: GPU)


@pytest.fixture
def bundle(tmp_path):
    """A bundle with an onnxruntime variant, and two of TensorRT: fp16, and fp8 for a newer GPU than most."""
    model = made.save_model(tmp_path / "lowered.onnx")
    bounds = ({"x": Bounds((1, 3), (2, 3), (4, 3))},)
    variants = [(Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx"), {})]
    for precision, least in (("fp16", "7.5"), ("fp8", "12.0")):
        name = f"tensorrt-rtx-{precision}"
        settings, needs = Recipe(precision, least, bounds).settings, {"compute_capability": least}
        variant = Variant(name, "tensorrt-rtx", precision, f"models/{name}.onnx", settings, needs)
        variants.append((variant, {f"models/{name}.onnx": model}))
    return made.bundle(tmp_path, variants=variants)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """``gpu(fail)``: an L4 with TensorRT is here; the fake module, which counts its builds. ``fail`` goes to it."""
    monkeypatch.setenv("DEPLOYKIT_ENGINES", str(tmp_path / "engines"))

    def plug(fail=""):
        trt = fake.module(fail=fail)
        monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(Flavour, "load", lambda self: trt)
        monkeypatch.setattr(driver, "gpu", lambda: GPU)
        monkeypatch.setattr(_tensorrt, "Cuda", lambda: fake.Device(trt))
        return trt

    return plug


def states(results):
    return {result.variant: result.status for result in results}


def test_each_engine_is_built_once_and_what_the_gpu_lacks_is_said(bundle, gpu):
    trt, heard = gpu(), []
    first = warm(bundle, device=L4, announce=heard.append)
    assert states(first) == {"tensorrt-rtx-fp16": "built", "tensorrt-rtx-fp8": "lacking"}
    assert heard == ["tensorrt-rtx-fp16"]
    assert first[0].effective["driver"] == "13.0"
    assert "needs compute capability 12.0, and the NVIDIA L4 has 8.9" in first[1].reason
    assert states(warm(bundle, device=L4))["tensorrt-rtx-fp16"] == "ready"
    assert trt.made.builds == 1


def test_what_the_inspector_tells_is_kept_beside_the_engine(bundle, gpu, tmp_path):
    trt = gpu()
    first = warm(bundle, device=L4)[0]
    assert first.effective["layers"] == {"fp16": 1, "unknown": 1}
    kept = next((tmp_path / "engines").glob("*/layers.json"))
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [layer["name"] for layer in json.loads(kept.read_text())] == ["fused MatMul + Add", "a name alone"]
    assert warm(bundle, device=L4)[0].effective["layers"] == first.effective["layers"]
    assert trt.made.inspected == 1


def test_an_engine_that_cannot_be_inspected_runs_all_the_same(bundle, gpu):
    gpu(fail="inspector")
    found = warm(bundle, device=L4)[0]
    assert (found.status, found.effective["layers"]) == ("built", {})


def test_loading_takes_the_engine_that_was_warmed(bundle, gpu):
    trt = gpu()
    warm(bundle, ["tensorrt-rtx-fp16"], L4)
    variant = bundle.variant("tensorrt-rtx-fp16")
    path, card = bundle.file(variant.path), bundle.manifest.card
    engine = opened(path, card, variant.settings)
    assert (engine.effective["from"], trt.made.builds) == ("the cache", 1)


def opened(path, card, settings):
    from deploykit.runtime.engines import EngineOptions, open_engine

    return open_engine("tensorrt-rtx", path, card, settings, EngineOptions())


def test_a_build_that_fails_says_why_and_keeps_nothing(bundle, gpu, tmp_path):
    gpu(fail="build")
    result = warm(bundle, ["tensorrt-rtx-fp16"], L4)[0]
    assert (result.status, "no kernel for node 5" in result.reason) == ("failed", True)
    assert result.hint
    assert not list((tmp_path / "engines").glob("*/engine.bin"))


def test_a_variant_of_another_engine_is_refused(bundle):
    with pytest.raises(InputError, match="'onnxruntime-fp32' runs in onnxruntime"):
        warm(bundle, ["onnxruntime-fp32"], NONE)


def test_nothing_is_built_of_an_altered_file(bundle, gpu):
    trt = gpu()
    model = bundle.file(bundle.variant("tensorrt-rtx-fp16").path)
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="was altered"):
        warm(bundle, device=L4)
    assert trt.made.builds == 0


def test_the_command_tells_what_it_did(bundle, gpu, monkeypatch, capsys):
    gpu()
    monkeypatch.setattr(selection.Device, "__init__", _seeing(GPU))
    assert main(["bundle", "warm", str(bundle.root)]) == 0
    out, err = capsys.readouterr()
    assert "NVIDIA L4 (SM 8.9, CUDA 13.0)" in out
    assert "building or finding the engine of tensorrt-rtx-fp16" in err
    assert main(["bundle", "warm", str(bundle.root), "--variant", "tensorrt-rtx-fp16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engines"][0]["status"] == "ready"


def test_the_command_ends_with_1_where_a_build_fails(bundle, gpu, monkeypatch, capsys):
    gpu(fail="build")
    monkeypatch.setattr(selection.Device, "__init__", _seeing(GPU))
    assert main(["bundle", "warm", str(bundle.root)]) == 1
    assert "no kernel for node 5" in capsys.readouterr().out


def test_the_command_ends_with_4_where_no_gpu_is(bundle, monkeypatch, capsys):
    monkeypatch.setattr(selection.Device, "__init__", _seeing(None))
    assert main(["bundle", "warm", str(bundle.root)]) == 4
    assert "can be built here: no NVIDIA GPU is here" in capsys.readouterr().err
    assert main(["bundle", "warm", str(bundle.root), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_bundle_without_tensorrt_has_nothing_to_build(tmp_path, capsys):
    assert main(["bundle", "warm", str(made.bundle(tmp_path).root)]) == 0
    assert "nothing to build" in capsys.readouterr().out


def test_where_no_gpu_is_the_portable_model_runs_and_it_is_said_why(tmp_path, monkeypatch, caplog):
    pytest.importorskip("onnxruntime")
    needs = {"compute_capability": "8.9"}
    model = made.save_model(tmp_path / "lowered.onnx")
    variant = Variant("tensorrt-rtx-fp8", "tensorrt-rtx", "fp8", "models/fp8.onnx", {}, needs)
    bundle = made.bundle(tmp_path, variants=[(variant, {"models/fp8.onnx": model})], default="")
    monkeypatch.setattr(selection.Device, "__init__", _seeing(None))
    encoder = deploykit.load(bundle.root)
    assert encoder.report().variant == "portable"
    assert encoder.encode(["hello"]).shape[0] == 1
    assert "'portable' is used (the portable fp32 model); not 'tensorrt-rtx-fp8': no NVIDIA GPU is here" in caplog.text


def _seeing(gpu):
    """`Device.__init__` that finds this GPU."""
    from deploykit.runtime import hardware

    def init(self):
        object.__setattr__(self, "cpu", hardware.cpu())
        object.__setattr__(self, "gpu", lambda: gpu)
        object.__setattr__(self, "memory", lambda: None)

    return init
