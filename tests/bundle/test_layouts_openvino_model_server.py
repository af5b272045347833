"""OpenVINO Model Server's configuration, held against the documented one."""

import json

import numpy as np
import pytest

from deploykit.bundle.layouts import write
from deploykit.runtime.manifest import Variant
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

# docs.openvino.ai/2025/model-server/ovms_docs_parameters.html, "Model Configuration Options", as JSON types.
OPTIONS = {
    "name": str,
    "base_path": str,
    "shape": (str, dict),
    "batch_size": (int, str),
    "layout": (str, dict),
    "model_version_policy": dict,
    "plugin_config": dict,
    "nireq": int,
    "target_device": str,
    "stateful": bool,
    "idle_sequence_cleanup": bool,
    "max_sequence_number": int,
    "low_latency_transformation": bool,
    "metrics_enable": bool,
    "allow_cache": bool,
}


def model_of(folder):
    """The one configured model; every key is a documented one, of the documented type."""
    config = json.loads((folder / "config.json").read_text())
    assert set(config) == {"model_config_list"}
    (entry,) = config["model_config_list"]
    assert set(entry) == {"config"}
    model = entry["config"]
    assert {"name", "base_path"} <= set(model)
    for key, value in model.items():
        assert isinstance(value, OPTIONS[key]), key
    return model


def test_the_variants_settings_go_to_the_engine(tmp_path):
    files = {}
    for suffix in (".xml", ".bin"):
        (tmp_path / f"v{suffix}").write_bytes(suffix.encode())
        files[f"models/v{suffix}"] = tmp_path / f"v{suffix}"
    settings = {"INFERENCE_PRECISION_HINT": "bf16"}
    bundle = made.bundle(
        tmp_path, variants=[(Variant("v", "openvino", "bf16", "models/v.xml", settings), files)], default="v"
    )
    write(bundle.root, "openvino-model-server", tmp_path / "models")
    model = model_of(tmp_path / "models")
    assert model["plugin_config"] == settings
    version = tmp_path / "models" / model["base_path"] / "1"
    assert sorted(p.name for p in version.iterdir()) == ["model.bin", "model.xml"]


def test_onnx_is_computed_in_fp32(tmp_path):
    bundle = made.bundle(tmp_path)
    written = write(bundle.root, "openvino-model-server", tmp_path / "models", "portable", name="encoder")
    model = model_of(tmp_path / "models")
    assert (written.name, model["name"], model["base_path"]) == ("encoder", "encoder", "encoder")
    assert model["plugin_config"] == {"INFERENCE_PRECISION_HINT": "f32"}
    assert "client/preprocess/tokenizer.json" in written.files


def test_the_engine_loads_what_is_served_with_what_is_configured(tmp_path):
    openvino = pytest.importorskip("openvino")
    bundle = made.bundle(tmp_path, default="openvino-fp32")
    write(bundle.root, "openvino-model-server", tmp_path / "models")
    model = model_of(tmp_path / "models")
    path = tmp_path / "models" / model["base_path"] / "1" / "model.onnx"
    compiled = openvino.Core().compile_model(path, model["target_device"], model["plugin_config"])
    feeds = {"input_ids": np.array([[2, 4, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
    assert np.allclose(compiled(feeds)["sentence_embedding"], made.TABLE[[2, 4, 3]].mean(0), atol=1e-6)
