"""Branches that a graph takes alike for every input: the others are taken out.

Exporters leave an If where a layer asks for a rank or a size, or where a sampling rate chooses between two models. Its
condition is seldom a constant of the file, and at every size that an encoder is proven for it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import SourceError

if TYPE_CHECKING:
    import onnx

_DEEPEST = 8


def settle(model: onnx.ModelProto, batches: Sequence[Mapping[str, np.ndarray]], name: str) -> onnx.ModelProto:
    """The model without the branches that none of the batches takes; an If that they take differently stays."""
    import onnx_ir as ir

    from deploykit.graph.control_flow import fold_branches

    for _ in range(_DEEPEST):
        conditions = {node.input[0] for node in model.graph.node if node.op_type == "If"}
        taken = _taken(model, sorted(conditions), batches, name)
        if not taken:
            break
        _fix(model, taken)
        graph_model = ir.from_proto(model)
        fold_branches(graph_model.graph)
        model = ir.to_proto(graph_model)
    return model


def _taken(
    model: onnx.ModelProto, conditions: Sequence[str], batches: Sequence[Mapping[str, np.ndarray]], name: str
) -> dict[str, bool]:
    """The conditions that have one value in all batches."""
    import onnx

    from deploykit.sources._onnx_graph import runner, save

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    held = {tensor.name for tensor in model.graph.initializer}
    given = {value.name for value in model.graph.input}
    known = {value.name for value in model.graph.output}
    open_conditions = [c for c in conditions if c not in held | given]
    for condition in open_conditions:
        if condition not in known:
            asked.graph.output.append(onnx.helper.make_tensor_value_info(condition, onnx.TensorProto.BOOL, None))
    found: dict[str, bool] = {}
    path = save(asked) if open_conditions else None
    for condition in open_conditions:
        assert path is not None
        try:
            values = {bool(np.ravel(runner(path, condition, name)(batch))[0]) for batch in batches}
        except SourceError:  # it fails for some of the sizes, and says so later
            continue
        if len(values) == 1:
            found[condition] = values.pop()
    return found | _constants(model, [c for c in conditions if c in held])


def _constants(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, bool]:
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    return {name: bool(np.ravel(numpy_helper.to_array(tensors[name]))[0]) for name in names}


def _fix(model: onnx.ModelProto, taken: Mapping[str, bool]) -> None:
    """Make the conditions constants, in place."""
    from onnx import numpy_helper

    held = {tensor.name for tensor in model.graph.initializer}
    for number, (condition, value) in enumerate(sorted(taken.items())):
        label = f"branch_{number}_{condition}"
        if label in held:
            continue
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), label))
        for node in model.graph.node:
            if node.op_type == "If" and node.input[0] == condition:
                node.input[0] = label
