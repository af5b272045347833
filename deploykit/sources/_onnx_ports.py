"""What goes into an ONNX graph and comes out of it: types, axes, and which axis is the batch.

Exporters declare the batch in many ways: as a name, as −1, without anything, fixed at 1, or on another axis than the
first. A `Port` says what was declared; deploykit's own inputs have the batch first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import SourceError

if TYPE_CHECKING:
    import onnx

_BATCH = re.compile(r"(bsz?|batch([_ .-]?(size|dim|axis))?|(num|n)_?batch)", re.IGNORECASE)
# Names that exporters give by themselves: they say nothing about which axes go together.
_NAMELESS = re.compile(
    r"(unk_*\d*|\?|none|dynamic[_ .]?(axes|dimension|dim)?[_.]?\d*|p2o\.dynamicdimension\.\d+|-1)", re.IGNORECASE
)


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. An axis is a size, a name, or "" where it is dynamic without a name.

    ``axis`` is that of the batch; None for one that has no axes.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]
    axis: int | None

    @property
    def batch(self) -> int | str:
        """The size of the batch as declared."""
        return "" if self.axis is None else self.dims[self.axis]


def inputs(model: onnx.ModelProto) -> list[Port]:
    """The inputs that have no value of their own in the file."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ports = [_port(value) for value in model.graph.input if value.name not in constants]
    return _on_one_name(ports, {str(p.batch) for p in ports if isinstance(p.batch, str) and _is_batch(p.batch)})


def outputs(model: onnx.ModelProto) -> list[Port]:
    """The outputs; the batch is where a name says so, else the first axis."""
    names = {str(port.batch) for port in inputs(model) if isinstance(port.batch, str) and port.batch}
    return _on_one_name([_port(value) for value in model.graph.output], {n for n in names if not nameless(n)})


def _on_one_name(ports: list[Port], names: set[str]) -> list[Port]:
    """The ports with the batch on the axis that has one of the names, where there is one."""
    found = []
    for port in ports:
        axis = next((i for i, dim in enumerate(port.dims) if dim in names), port.axis)
        found.append(Port(port.name, port.dtype, port.dims, axis))
    return found


def _port(value: onnx.ValueInfoProto) -> Port:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise SourceError(f"'{value.name}' is no tensor", hint="only graphs of tensors can be exported")
    dims = tuple(_dim(dim) for dim in kind.shape.dim)
    axis = next((i for i, dim in enumerate(dims) if isinstance(dim, str) and _is_batch(dim)), 0 if dims else None)
    return Port(value.name, np.dtype(tensor_dtype_to_np_dtype(kind.elem_type)), dims, axis)


def _dim(dim: Any) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param)


def _is_batch(name: str) -> bool:
    return _BATCH.fullmatch(name) is not None


def nameless(name: str) -> bool:
    """Whether a name was given by an exporter, and two that differ may be of one size."""
    return not name or _NAMELESS.fullmatch(name) is not None


def axis_names(ports: list[Port]) -> dict[str, tuple[int | str, ...]]:
    """For each input the axes behind the batch, by the names that deploykit uses; a size where it is fixed.

    Axes of one name have one size in all inputs, as axes without a name at the same place have.
    """
    known: dict[str, str] = {}
    return {port.name: tuple(_named(dim, i, port, known) for i, dim in _behind(port)) for port in ports}


def _behind(port: Port) -> list[tuple[int, int | str]]:
    """The axes behind the batch, with their places in deploykit's order."""
    others = [dim for i, dim in enumerate(port.dims) if i != port.axis]
    return list(enumerate(others, start=1))


def _named(dim: int | str, place: int, port: Port, known: dict[str, str]) -> int | str:
    if isinstance(dim, int):
        return dim
    rank = len(port.dims)
    usual = {(1, 2): "length", (1, 3): "length", (2, 4): "height", (3, 4): "width"}.get((place, rank), f"axis{place}")
    if nameless(dim):
        return usual
    return known.setdefault(dim, usual if usual not in known.values() else f"{usual}_{len(known)}")


def symbols(ports: list[Port]) -> Mapping[str, str]:
    """deploykit's name of an axis by the name that the model gives it."""
    known: dict[str, str] = {}
    for port in ports:
        for place, dim in _behind(port):
            _named(dim, place, port, known)
    return known
