"""How many bytes the constants of an ONNX model take, without writing it.

protobuf's own ``ByteSize`` serialises the whole message to learn it: twice the memory of the weights for a moment, and
an error beyond 2 GiB.
"""

from __future__ import annotations

import math
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
