"""The batch of a graph: made dynamic where it was fixed, and brought to the first axis where it is another.

What is changed here is a guess about what the exporter meant; `deploykit.sources._onnx_body` keeps it only if the
graph then gives for every row what it gave for that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.sources._onnx_files import constants_of, graphs_of
from deploykit.sources._onnx_ports import Port

if TYPE_CHECKING:
    import onnx

_RECURRENT = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}


def free(model: onnx.ModelProto, ports: Sequence[Port], size: int) -> None:
    """Make the batch of the inputs dynamic, in place, where it was fixed at ``size``, and what follows from it."""
    import onnx

    shapes = _shapes(onnx.shape_inference.infer_shapes(model))
    axes = {port.name: port.axis for port in ports}
    for value in model.graph.input:
        axis = axes.get(value.name)
        if axis is not None:
            value.type.tensor_type.shape.dim[axis].dim_param = "batch"
    for graph in graphs_of(model.graph):
        del graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    _free_reshapes(model.graph, shapes, size)
    _free_states(model.graph, size)


def _shapes(model: Any) -> dict[str, list[int | None]]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _free_reshapes(graph: Any, shapes: Mapping[str, Sequence[int | None]], size: int) -> None:
    """Targets of Reshape that name the size of the batch: 0 takes the input's own, −1 what is left."""
    from onnx import numpy_helper

    constants = constants_of(graph)
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        given = shapes.get(node.input[0], [])
        place = next((i for i, wanted in enumerate(target) if wanted == size), None)
        if place is None or (-1 in target and place >= len(given)):
            continue
        target[place] = 0 if place < len(given) and given[place] == size else -1
        if np.count_nonzero(target == -1) > 1:
            continue
        name = f"free_batch_{number}"
        graph.initializer.append(numpy_helper.from_array(target, name))
        node.input[1] = name


def _free_states(graph: Any, size: int) -> None:
    """Initial states of recurrent layers that are constants of [directions, batch, width] grow with their input."""
    from onnx import helper, numpy_helper

    constants, nodes = constants_of(graph), []
    for number, node in enumerate(graph.node):
        for place in _RECURRENT.get(node.op_type, ()):
            if place >= len(node.input) or node.input[place] not in constants:
                continue
            array = numpy_helper.to_array(constants[node.input[place]])
            if array.ndim != 3 or array.shape[1] != size:
                continue
            name = f"free_state_{number}_{place}"
            parts = {"value": array[:, :1], "axis": [1], "before": [array.shape[0]], "behind": [array.shape[2]]}
            for label, part in parts.items():
                content = part if isinstance(part, np.ndarray) else np.asarray(part, np.int64)
                graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(content), f"{name}_{label}"))
            whole = [f"{name}_before", f"{name}_batch", f"{name}_behind"]
            nodes += [
                helper.make_node("Shape", [node.input[0]], [f"{name}_shape"]),
                helper.make_node("Gather", [f"{name}_shape", f"{name}_axis"], [f"{name}_batch"]),
                helper.make_node("Concat", whole, [f"{name}_whole"], axis=0),
                helper.make_node("Expand", [f"{name}_value", f"{name}_whole"], [name]),
            ]
            node.input[place] = name
        nodes.append(node)
    nodes = [_copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _copied(node: Any) -> Any:
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def to_front(model: onnx.ModelProto, ports: Sequence[Port], output: Port, shape: str) -> str:
    """Bring the batch to the first axis of inputs and of the output, in place; the output's name from then on.

    ``shape`` is what the output becomes behind that: "kept", "row" (of [batch] a [batch, 1]) or "flat" (of more axes
    one vector).
    """
    from onnx import helper

    graph, first = model.graph, []
    for port in ports:
        if port.axis in (None, 0):
            continue
        assert port.axis is not None
        value = next(v for v in graph.input if v.name == port.name)
        inner = f"{port.name}_batch_{port.axis}"
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == port.name:
                    node.input[i] = inner
        order = [*range(1, port.axis + 1), 0, *range(port.axis + 1, len(port.dims))]
        first.append(helper.make_node("Transpose", [port.name], [inner], perm=order))
        dims = [_copied_dim(dim) for dim in value.type.tensor_type.shape.dim]
        dims.insert(0, dims.pop(port.axis))
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.extend(dims)
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *nodes])
    return _shaped(model, output, shape)


def _copied_dim(dim: Any) -> Any:
    import onnx

    copy = onnx.TensorShapeProto.Dimension()
    copy.CopyFrom(dim)
    return copy


def _shaped(model: onnx.ModelProto, output: Port, shape: str) -> str:
    from onnx import helper, numpy_helper

    graph, name = model.graph, output.name
    if output.axis:
        order = [output.axis, *(i for i in range(len(output.dims)) if i != output.axis)]
        graph.node.append(helper.make_node("Transpose", [name], [f"{name}_batch_first"], perm=order))
        name = f"{name}_batch_first"
    if shape != "kept":
        if shape == "row":
            target = np.asarray([-1, 1], np.int64)
            graph.initializer.append(numpy_helper.from_array(target, f"{name}_target"))
            graph.node.append(helper.make_node("Reshape", [name, f"{name}_target"], [f"{name}_vector"]))
        else:
            graph.node.append(helper.make_node("Flatten", [name], [f"{name}_vector"], axis=1))
        name = f"{name}_vector"
    return name
