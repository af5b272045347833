"""OpenVINO Model Server: ``config.json`` and ``NAME/1/model.xml`` with its weights, or ``model.onnx``.

https://docs.openvino.ai/2025/model-server/ovms_docs_parameters.html and ``ovms_docs_models_repository.html``: a version
is a numbered folder; ``base_path`` may be relative to the configuration; ``plugin_config`` goes to OpenVINO.
"""

from __future__ import annotations

import json
from typing import Final

from deploykit.bundle.layouts import README, Layout, _readme, model_files, preprocess_files
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Variant

TARGETS: Final = ("openvino",)

_HINT: Final = "INFERENCE_PRECISION_HINT"


def check(bundle: Bundle) -> None:
    """Every encoder can be served: tensors go in and come out."""


def caveat(variant: Variant) -> str:
    """None: the variant's settings go to OpenVINO as they are."""
    return ""


def lay_out(bundle: Bundle, variant: Variant, name: str) -> Layout:
    """The configuration, the model's folder, the page, and the preprocessing beside the model: only what the
    configuration names is loaded.
    """
    # The portable model's settings are another engine's; f32 is stated, or OpenVINO would pick bf16 where it can.
    settings = variant.settings if variant.target == "openvino" else {}
    model = {"name": name, "base_path": name, "target_device": "CPU", "plugin_config": {_HINT: "f32", **settings}}
    start = ["ovms --config_path $PWD/config.json --port 9000 --rest_port 8000"]
    notes = ["Clients send whole batches: the server does not put requests together."]
    return Layout(
        copies=model_files(bundle, variant, f"{name}/1") | preprocess_files(bundle, "client"),
        texts={
            "config.json": json.dumps({"model_config_list": [{"config": model}]}, indent=1) + "\n",
            README: _readme.render(bundle, variant, "OpenVINO Model Server", start, notes, feeding="client"),
        },
    )
