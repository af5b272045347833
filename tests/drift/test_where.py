import dataclasses
import json

import pytest

from deploykit.errors import BundleError, InputError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from deploykit.drift.where import boundaries, where
from deploykit.runtime.bundle import Bundle
from tests.drift import layers
from tests.runtime import hostile_models


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return layers.bundle(tmp_path_factory.mktemp("layers"))


def test_the_boundaries_are_the_ends_of_blocks_named_by_their_weights(bundle):
    found = boundaries(bundle.file("models/fp32.onnx"), bundle.manifest.card)
    # A sum that only a normalisation reads is the normalisation's; the mask's Clip is no layer.
    assert found == {
        "relu0": "block.0.dense",
        "x1": "block.0.norm",
        "relu1": "block.1.dense",
        "x2": "block.1.norm",
        "relu2": "block.2.dense",
        "x3": "block.2.norm",
    }


def test_the_spoiled_layer_is_found(bundle):
    found = where(bundle, bundle.variant("spoiled-1"), layers.inputs(3))
    assert found.layers[0].name == "block.1.dense"
    assert found.layers[0].drop_db > 20
    assert found.sentence.startswith("The drift enters at block.1.dense: SQNR falls from")
    assert found.inputs == 3
    assert [layer.added for layer in found.layers] == sorted((layer.added for layer in found.layers), reverse=True)
    json.dumps(found.to_json(), allow_nan=False)


def test_what_comes_before_the_spoiled_layer_agrees(bundle):
    by_name = {layer.name: layer for layer in where(bundle, bundle.variant("spoiled-1"), layers.inputs(3)).layers}
    assert by_name["block.0.norm"].sqnr_db > 100
    assert by_name["block.2.norm"].sqnr_db < 40
    assert "vector" in by_name


def test_openvino_is_opened_up_too(bundle):
    pytest.importorskip("openvino")
    found = where(bundle, bundle.variant("openvino-spoiled-2"), layers.inputs(2))
    assert found.layers[0].name == "block.2.dense"
    assert not found.notes


def test_an_openvino_file_of_its_own_is_opened_up(bundle, tmp_path):
    openvino = pytest.importorskip("openvino")
    from deploykit.drift.where import _lay_open, _value_names

    path = tmp_path / "model.xml"
    openvino.save_model(openvino.Core().read_model(bundle.file("models/fp32.onnx")), path, compress_to_fp16=False)
    assert {"relu0", "x1"} <= _value_names("openvino", path)
    opened = openvino.Core().read_model(_lay_open("openvino", path, ("relu0", "x1"), tmp_path / "open"))
    assert [output.get_any_name() for output in opened.outputs] == ["vector", "relu0", "x1"]


def test_a_good_variant_differs_nowhere(bundle):
    pytest.importorskip("openvino")
    found = where(bundle, bundle.variant("openvino-good"), layers.inputs(2))
    assert "by more than rounding" in found.sentence


def test_without_shared_names_it_says_that_it_cannot_tell(bundle):
    found = where(bundle, bundle.variant("renamed"), layers.inputs(1))
    assert found.layers == ()
    assert "keeps none of the portable graph's names" in found.sentence


def test_what_cannot_be_opened_up_is_refused(bundle):
    engine = dataclasses.replace(bundle.variant("spoiled-1"), target="tensorrt", name="tensorrt-fp16")
    with pytest.raises(InputError, match="tensorrt-fp16"):
        where(bundle, engine, layers.inputs(1))
    with pytest.raises(InputError, match="runs the portable graph itself"):
        where(bundle, bundle.portable, layers.inputs(1))


@pytest.mark.parametrize("name", ["models/fp32.onnx", "models/spoiled-1.onnx"])
def test_neither_model_is_read_when_one_is_none_that_an_encoder_needs(tmp_path, monkeypatch, name):
    import onnx

    monkeypatch.setattr(hostile_models, "MODEL", name)
    root = hostile_models.with_model(layers.bundle(tmp_path).root, hostile_models.external("/etc/passwd"))
    bundle = Bundle.open(root)

    def read(*_, **__):
        raise AssertionError("a model was read")

    monkeypatch.setattr(onnx, "load", read)
    with pytest.raises(BundleError, match="outside the bundle"):
        where(bundle, bundle.variant("spoiled-1"), layers.inputs(1))
