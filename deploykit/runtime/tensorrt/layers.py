"""What became of a network's layers in an engine, as TensorRT's own inspector tells it once the engine is loaded.

Without a GPU no engine can be loaded, so what was built ahead of time is inspected on the device, when it is first
used there; until then the strongly typed network says what is computed in which type.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

# How the inspector's words for a tensor's format begin or end; the first that is found counts.
_TYPES = {
    "bf16": ("bf16", "bfloat16"),
    "fp16": ("fp16", "half"),
    "fp8": ("fp8", "float8", "e4m3"),
    "int8": ("int8",),
    "fp32": ("fp32", "float"),
    "int64": ("int64",),
    "int32": ("int32",),
    "bool": ("bool",),
}


def inspect(trt: ModuleType, engine: Any) -> list[dict[str, Any]]:
    """The layers of a loaded engine in their order: ``name``, ``type`` and, of the first output, the number ``format``.

    Several layers of the network are one of the engine's where they were fused. Empty where the inspector says nothing.
    """
    inspector = engine.create_engine_inspector()
    text = "" if inspector is None else inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return []
    return [_layer(layer) for layer in found]


def summary(layers: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """{type of number: how many layers give it}; ``unknown`` are those of which the inspector tells only names."""
    return dict(sorted(Counter(_type(str(layer.get("format", ""))) for layer in layers).items()))


def _layer(told: Any) -> dict[str, Any]:
    if not isinstance(told, Mapping):  # less verbose engines list names alone
        return {"name": str(told), "type": "", "format": ""}
    outputs = told.get("Outputs") or [{}]
    form = outputs[0].get("Format/Datatype", outputs[0].get("Datatype", ""))
    return {"name": str(told.get("Name", "")), "type": str(told.get("LayerType", "")), "format": str(form)}


def _type(form: str) -> str:
    words = form.lower()
    return next((name for name, spelt in _TYPES.items() if any(word in words for word in spelt)), "unknown")
