"""Graphs that compute in fp16, and inputs and outputs of 16 or 64 bits: the user's tensors are float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.sources._onnx_files import graphs_of, tensors_of

if TYPE_CHECKING:
    import onnx


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Whether weights, inputs or outputs are float16."""
    from onnx import TensorProto

    ports = (*model.graph.input, *model.graph.output)
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors_of(model.graph)) or any(
        value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in ports
    )


def widen(model: onnx.ModelProto) -> None:
    """Make everything that is float16 float32, in place: weights keep their values, arithmetic is more exact."""
    from onnx import TensorProto, numpy_helper

    for tensor in tensors_of(model.graph):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for graph in graphs_of(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in _types(graph):
            if attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _types(graph: Any) -> Iterator[Any]:
    """The attributes that name the type of a result."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.type == attribute.INT:
                yield attribute


def double_to_float(model: onnx.ModelProto, output: str) -> str:
    """Put casts behind inputs and before the ``output`` that are float64, in place; the output's name from then on."""
    from onnx import TensorProto, helper

    graph, first = model.graph, []
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            wide = f"{value.name}_as_double"
            _rename_reads(graph, value.name, wide)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            first.append(helper.make_node("Cast", [value.name], [wide], to=TensorProto.DOUBLE))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *nodes])
    chosen = next(value for value in graph.output if value.name == output)
    if chosen.type.tensor_type.elem_type != TensorProto.DOUBLE:
        return output
    graph.node.append(helper.make_node("Cast", [output], [f"{output}_as_float"], to=TensorProto.FLOAT))
    chosen.name, chosen.type.tensor_type.elem_type = f"{output}_as_float", TensorProto.FLOAT
    return f"{output}_as_float"


def _rename_reads(graph: Any, old: str, new: str) -> None:
    for inner in graphs_of(graph):
        for node in inner.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
