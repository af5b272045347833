"""Which integers an input may hold: the rows of the table that it indexes, or the classes that it is one of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.sources._onnx_files import constants_of

if TYPE_CHECKING:
    import onnx

# Operators behind which the same integers stand, in another shape or type.
_SAME_VALUES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
_FOLLOWED = 200


def integer_ranges(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """(smallest, largest) by input, for the inputs that index a constant or are made one-hot."""
    constants = constants_of(model.graph)
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    made = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for value in model.graph.input:
        sizes = _tables(value.name, readers, constants, made)
        if sizes:
            found[value.name] = (0, min(sizes) - 1)
    return found


def _tables(
    start: str,
    readers: Mapping[str, list[tuple[Any, int]]],
    constants: Mapping[str, Any],
    made: Mapping[str, Any],
) -> list[int]:
    """The sizes of the tables that the values of ``start`` index."""
    sizes: list[int] = []
    waiting, seen = [start], {start}
    while waiting and len(seen) < _FOLLOWED:
        for node, place in readers.get(waiting.pop(), []):
            size = _indexed(node, place, constants, made)
            if size:
                sizes.append(size)
            elif node.op_type in _SAME_VALUES and (place == 0 or node.op_type == "Concat"):
                new = [name for name in node.output if name not in seen]
                seen.update(new)
                waiting += new
    return sizes


def _counted(tensor: Any) -> int:
    """How many numbers 0, 1, 2, … a constant holds; 0 if it holds others."""
    from onnx import numpy_helper

    values = np.ravel(numpy_helper.to_array(tensor))
    return len(values) if len(values) > 1 and np.array_equal(values, np.arange(len(values))) else 0


def _indexed(node: Any, place: int, constants: Mapping[str, Any], made: Mapping[str, Any]) -> int:
    from onnx import numpy_helper

    if node.op_type == "Gather" and place == 1 and node.input[0] in constants:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        dims = constants[node.input[0]].dims
        return int(dims[axis]) if dims else 0
    if node.op_type == "Equal":  # a one-hot that is written out: compared with 0, 1, 2, …
        name = node.input[1 - place]
        while name not in constants and name in made and made[name].op_type in _SAME_VALUES:
            name = made[name].input[0]
        return _counted(constants[name]) if name in constants else 0
    if node.op_type == "OneHot" and place == 0 and node.input[1] in constants:
        return int(np.ravel(numpy_helper.to_array(constants[node.input[1]]))[0])
    return 0
