"""Triton Inference Server: a model repository with one model, ``NAME/config.pbtxt`` and ``NAME/1/model.…``.

The configuration is the text form of ``inference.ModelConfig`` (triton-inference-server/common, ``model_config.proto``;
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html).

The ONNX Runtime backend batches; the OpenVINO backend fixes the batch to ``max_batch_size`` where that is set
(triton-inference-server/openvino_backend), so a dynamic batch is written there as an axis like the others, and the
server puts nothing together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from deploykit.bundle.layouts import README, Layout, _readme, model_files, preprocess_files, rounding_caveat
from deploykit.errors import RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Card, TensorSpec, Variant

TARGETS: Final = ("onnxruntime", "onnxruntime-cuda", "openvino")

_BATCH: Final = "batch"
# What the server may put together where the bundle gives no bound; larger batches gain little on the machines measured.
_MAX_BATCH: Final = 32
_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
_HINT: Final = "INFERENCE_PRECISION_HINT"


def check(bundle: Bundle) -> None:
    """`RecipeError` for a tensor of a type that Triton does not have."""
    for spec in (*bundle.manifest.card.inputs, *bundle.manifest.card.outputs):
        if spec.dtype not in _TYPES:
            raise RecipeError(f"Triton has no type '{spec.dtype}', which '{spec.name}' has", hint="use another server")


def caveat(variant: Variant) -> str:
    """OpenVINO's backend can be told bf16, and no other precision; ONNX Runtime's takes few settings."""
    if variant.target == "openvino" and variant.settings.get(_HINT) != "bf16":
        return (
            "Triton's OpenVINO backend cannot be told to compute in fp32: on CPUs with AMX or AVX512-BF16 it computes "
            "in bf16 what is fp32 in this variant; take an onnxruntime variant where that matters"
        )
    return rounding_caveat(variant, "Triton")


def lay_out(bundle: Bundle, variant: Variant, name: str) -> Layout:
    """The repository: the model's folder and the page beside it. What Triton does not know stands inside the model's
    folder, since every folder of the repository is a model to it, and one that is no number is no version.
    """
    title = "Triton Inference Server"
    notes = [note for note in (caveat(variant), _batching(bundle.manifest.card, variant)) if note]
    start = ["tritonserver --model-repository=$PWD"]
    return Layout(
        copies=model_files(bundle, variant, f"{name}/1") | preprocess_files(bundle, name),
        texts={
            f"{name}/config.pbtxt": "\n".join(_config(bundle.manifest.card, variant, name)) + "\n",
            README: _readme.render(bundle, variant, title, start, notes, feeding=name),
        },
    )


def _batching(card: Card, variant: Variant) -> str:
    if _batch_size(card, variant):
        return (
            "The server puts requests together whose other axes are equal: clients that pad to few lengths gain most."
        )
    return "Clients send whole batches: the server does not put requests together."


def _config(card: Card, variant: Variant, name: str) -> Iterator[str]:
    size = _batch_size(card, variant)
    yield f"name: {_quoted(name)}"
    yield f'backend: "{"openvino" if variant.target == "openvino" else "onnxruntime"}"'
    yield f"max_batch_size: {size}"
    for side, specs in (("input", card.inputs), ("output", card.outputs)):
        for spec in specs:
            dims = [axis if isinstance(axis, int) else -1 for axis in (spec.shape[1:] if size else spec.shape)]
            yield f"{side} {{ name: {_quoted(spec.name)} data_type: {_TYPES[spec.dtype]} dims: {dims} }}"
    if size > 1:
        yield "dynamic_batching { }"
    kind = "KIND_GPU" if variant.target == "onnxruntime-cuda" else "KIND_CPU"
    yield f"instance_group {{ count: 1 kind: {kind} }}"
    if variant.target == "openvino" and variant.settings.get(_HINT) == "bf16":
        yield 'parameters { key: "HINT_BF16" value { string_value: "YES" } }'


def _batch_size(card: Card, variant: Variant) -> int:
    """The largest batch; 0 where the tensors have none in front, and where the backend would fix it."""
    if variant.target == "openvino" or not all(_batched(spec) for spec in (*card.inputs, *card.outputs)):
        return 0
    return card.limits.axes.get(_BATCH, (1, _MAX_BATCH))[1]


def _batched(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == _BATCH


def _quoted(text: str) -> str:
    """A string of the text form, which escapes like JSON does."""
    return json.dumps(text)
