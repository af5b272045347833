"""Where the constants of an ONNX model are, and how many bytes they take, without reading or writing them.

protobuf's own ``ByteSize`` serialises the whole message to learn it: twice the memory of the weights for a moment, and
an error beyond 2 GiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

ONE_FILE = 1_800_000_000
"""Constants of more bytes than these stand beside the graph: protobuf refuses messages of 2 GiB, and what is no
constant needs room too.
"""


def constant_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers and of the tensors in ``Constant`` nodes of the main graph."""
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
    sizeless = (TensorProto.UNDEFINED, TensorProto.STRING)
    return sum(
        math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in tensors
        if tensor.data_type not in sizeless
    )


def external_files(path: Path) -> list[Path]:
    """The files, of whatever name, that hold constants of the model at ``path``; those that are there."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graphs = [model.graph, *model.functions]
    locations = {
        entry.value
        for graph in graphs
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [found for name in sorted(locations) if (found := path.parent / name).is_file()]


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, those in its nodes and in the graphs inside them too."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)
