"""The version of a graph's operators: raised where precisions and engines want a newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.weights import ONE_FILE, constant_bytes

if TYPE_CHECKING:
    import onnx

_STEPS = (21, 20, 19, 18, 17, 15, 13)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 where a graph has none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _import_once(model: onnx.ModelProto, version: int) -> None:
    """Leave one entry for the standard operators, in place: onnx's own merging of models leaves two."""
    from onnx.helper import make_opsetid

    others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    kept = [make_opsetid(entry.domain, entry.version) for entry in others]
    del model.opset_import[:]
    model.opset_import.extend([make_opsetid("", version), *kept] if version else kept)


def raised(model: onnx.ModelProto, wanted: int) -> tuple[onnx.ModelProto, str]:
    """The model at opset ``wanted``, or at the newest below it that its operators can be converted to.

    The second is why it is not the wanted one, else empty. An opset that is as new already stays.
    """
    from onnx import version_converter

    have, why = opset_of(model), ""
    _import_once(model, have)
    if not have or have >= wanted:
        return model, ""
    if constant_bytes(model) > ONE_FILE:
        return model, "the model is too large for onnx's converter"
    for version in dict.fromkeys((wanted, *(step for step in _STEPS if have < step < wanted))):
        try:
            return version_converter.convert_version(model, version), why
        except Exception as error:  # the converter's errors share no base
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = why or (lines[0][:200] if lines else type(error).__name__)
    return model, why
