"""The structure of an ONNX model: nodes, constants and where their bytes are; weights are stepped over, never read.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deploykit.runtime.trust.wire import Fields, signed

# More than the largest encoders have by an order of magnitude; read in about a second.
MAX_FIELDS: Final = 500_000
_MAX_RANK = 16


@dataclass(frozen=True)
class Tensor:
    """A constant. ``external`` holds location, offset and length where its bytes stand in another file; ``content`` is
    the message itself, for the few whose values are wanted.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    external: Mapping[str, str] | None
    content: memoryview


@dataclass(frozen=True)
class Node:
    """An operation. ``values`` are its attributes of integers and floats; ``graphs`` counts those that hold a
    graph.
    """

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, list[Any]]
    tensors: Mapping[str, Tensor]
    graphs: int


@dataclass
class Model:
    """One ONNX file. ``opsets`` maps each domain to its version."""

    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    functions: int = 0
    training: int = 0
    sparse: int = 0


def read(name: str, data: memoryview) -> Model:
    """The model in ``data``, the bytes of the file ``name``; `BundleError` where they are none."""
    fields = Fields(name, MAX_FIELDS)
    model, graphs = Model(), 0
    for number, value in fields.of(data):
        if number == 7 and not isinstance(value, int):
            graphs += 1
            if graphs > 1:  # parsers merge the two, and what was checked would not be what is run
                raise fields.fault("holds two graphs")
            _graph(fields, value, model)
        elif number == 8 and not isinstance(value, int):
            _opset(fields, value, model)
        elif number == 20:
            model.training += 1
        elif number == 25:
            model.functions += 1
    if not graphs or not model.opsets:
        raise fields.fault("is no ONNX: it has no graph or no operator set")
    return model


def _opset(fields: Fields, data: memoryview, model: Model) -> None:
    domain, version = "", 0
    for number, value in fields.of(data):
        if number == 1:
            domain = fields.text(value)
        elif number == 2 and isinstance(value, int):
            version = signed(value)
    if domain in model.opsets:
        raise fields.fault(f"names the operator domain '{domain}' twice")
    model.opsets[domain] = version


def _graph(fields: Fields, data: memoryview, model: Model) -> None:
    for number, value in fields.of(data):
        if isinstance(value, int):
            continue
        if number == 1:
            model.nodes.append(_node(fields, value))
        elif number == 5:
            model.constants.append(tensor(fields, value))
        elif number == 11:
            model.inputs.append(_named(fields, value))
        elif number == 12:
            model.outputs.append(_named(fields, value))
        elif number == 15:
            model.sparse += 1


def _named(fields: Fields, data: memoryview) -> str:
    return next((fields.text(value) for number, value in fields.of(data) if number == 1), "")


def _node(fields: Fields, data: memoryview) -> Node:
    names: dict[int, list[str]] = {1: [], 2: []}
    operator = domain = ""
    values: dict[str, list[Any]] = {}
    tensors: dict[str, Tensor] = {}
    graphs = 0
    for number, value in fields.of(data):
        if number in names:
            names[number].append(fields.text(value))
        elif number == 4:
            operator = fields.text(value)
        elif number == 7:
            domain = fields.text(value)
        elif number == 5 and not isinstance(value, int):
            graphs += _attribute(fields, value, values, tensors)
    return Node(operator, domain, tuple(names[1]), tuple(names[2]), values, tensors, graphs)


def _attribute(fields: Fields, data: memoryview, values: dict[str, list[Any]], tensors: dict[str, Tensor]) -> int:
    """Add an attribute's numbers or tensor under its name; returns how many graphs it holds."""
    name, graphs = "", 0
    single, several = list[float](), list[float]()
    held: list[Tensor] = []
    for number, value in fields.of(data):
        if number == 1:
            name = fields.text(value)
        elif number == 3 and isinstance(value, int):
            single = [signed(value)]
        elif number == 8:
            several += fields.integers(value)
        elif number in (2, 7) and not isinstance(value, int):
            floats = [number for (number,) in struct.iter_unpack("<f", value[: len(value) // 4 * 4])]
            single, several = (floats, several) if number == 2 else (single, several + floats)
        elif number in (5, 10) and not isinstance(value, int):
            held.append(tensor(fields, value))
        elif number in (6, 11):
            graphs += 1
        elif number in (22, 23):
            raise fields.fault("holds a sparse constant")
    if name in values or name in tensors or len(held) > 1:
        raise fields.fault(f"has an operation with the attribute '{name}' twice")
    if bool(held) + bool(single) + bool(several) > 1:  # engines differ in which they take
        raise fields.fault(f"has an operation whose attribute '{name}' is two things at once")
    if held:
        tensors[name] = held[0]
    if single or several:
        values[name] = single or several
    return graphs


def tensor(fields: Fields, data: memoryview) -> Tensor:
    """The description of a TensorProto."""
    name, dtype, shape, outside = "", 0, list[int](), False
    external: dict[str, str] = {}
    for number, value in fields.of(data):
        if number == 1:
            shape += fields.integers(value)
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8:
            name = fields.text(value)
        elif number == 13 and not isinstance(value, int):
            pair = {n: fields.text(v) for n, v in fields.of(value) if n in (1, 2)}
            if pair.get(1, "") in external:
                raise fields.fault(f"says twice where the constant '{name}' is")
            external[pair.get(1, "")] = pair.get(2, "")
        elif number == 14:
            outside = value == 1
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise fields.fault(f"has the constant '{name}' of the shape {shape[:_MAX_RANK]}")
    if external and not outside:
        raise fields.fault(f"has the constant '{name}' both inside and outside")
    return Tensor(name, dtype, tuple(shape), external if outside else None, data)
