"""Finds the matrix products of a portable fp32 graph that can be quantized, and names the role of each.

A *weighted* product multiplies an activation by a constant (MatMul, Gemm, Conv). The products of attention multiply two
activations. A *kind* is the role of a product in a repeated block: every second feed-forward product of a BERT is of
one kind. It comes from the names that the exporter left on weights and biases, and where there are none from the
weight's shape and what makes the product's input.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import UnknownNameError, nearest

if TYPE_CHECKING:
    import onnx_ir as ir

SCORES = "attention scores"
CONTEXT = "attention context"

# Operators that move elements and change none.
_PLUMBING = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
# What stands between the product of queries and keys and its softmax.
_BETWEEN_SCORES = frozenset({"Add", "Cast", "Div", "Mul", "Where"})
_BETWEEN_CONTEXT = frozenset({"Cast", "Dropout", "Where"})
# Names that exporters count out: val_129, onnx::MatMul_1204, t.3.
_COUNTED = re.compile(r"(val|tmp|t|v|const|constant|initializer|onnx::\w+?|_?\w*?transpose\w*?)?[_.]?\d*(\.\d+)*")


@dataclass(frozen=True)
class Product:
    """One matrix product. Values are named; ``output`` is what the product itself writes, before any bias Add.

    ``node`` is the node's name. ``weight`` is the constant value that it reads, None for a product of two activations,
    which has ``other`` instead. ``bias`` is the constant that is added to the product, by itself or by the Add behind
    it. ``shape`` is the weight's as stored: [in, out] for a MatMul, [out, in / groups, …] for a Conv; ``axis`` is that
    of its output channels.
    """

    node: str
    kind: str
    op: str
    activation: str
    output: str
    shape: tuple[int, ...]
    axis: int = 1
    weight: str | None = None
    bias: str | None = None
    other: str | None = None

    @property
    def is_weighted(self) -> bool:
        """Whether it multiplies by a constant."""
        return self.weight is not None

    @property
    def input_axis(self) -> int | None:
        """The channels' axis of the activation; None where a product of two activations is observed as a whole."""
        return None if self.weight is None else 1 if self.op == "Conv" else -1


def find(model: ir.Model) -> list[Product]:
    """Every product that can be quantized, in the order of the graph."""
    nodes = [(node, product) for node in model.graph if (product := _weighted(node) or _attention(node)) is not None]
    kinds = _kinds(nodes)
    return [replace(product, kind=kind) for (_, product), kind in zip(nodes, kinds, strict=True)]


def select(patterns: Iterable[str], kinds: Iterable[str], option: str = "keep") -> set[str]:
    """The kinds that the patterns name: exactly, else as a glob. `UnknownNameError` for one that names none."""
    known = sorted(set(kinds))
    chosen: set[str] = set()
    for pattern in patterns:
        found = {pattern} if pattern in known else {kind for kind in known if fnmatch.fnmatchcase(kind, pattern)}
        if not found:
            raise UnknownNameError(
                f"{option} names '{pattern}', and no product is of that kind", hint=nearest(pattern, known)
            )
        chosen |= found
    return chosen


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or Constant, or of one behind a Transpose, of any size; None for anything else."""
    from deploykit.graph.edit import perm_of

    if value is None or value.is_graph_input():
        return None
    node = value.producer()
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    if node is None:
        return None
    if node.op_type == "Constant" and "value" in node.attributes:
        return np.asarray(node.attributes["value"].as_tensor().numpy())
    if node.op_type == "Transpose":
        inner = constant_of(node.inputs[0])
        return None if inner is None else np.transpose(inner, perm_of(node))
    return None


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.is_graph_input():
        return False
    node = value.producer()
    if node is not None and node.op_type == "Transpose":
        return _is_constant(node.inputs[0])
    return value.const_value is not None or (node is not None and node.op_type == "Constant")


def _weighted(node: ir.Node) -> Product | None:
    """A MatMul, Gemm or Conv of an activation and a constant float weight."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv") or len(node.inputs) < 2:
        return None
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None or _is_constant(activation) or not _is_constant(weight):
        return None
    if node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int():
        return None
    array = constant_of(weight)
    if array is None or array.dtype != np.float32 or array.size == 0 or (node.op_type != "Conv" and array.ndim != 2):
        return None
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    bias = node.inputs[2] if len(node.inputs) > 2 else _added(node)
    return Product(
        node=node.name or str(node.outputs[0].name),
        kind="",
        op=node.op_type,
        activation=str(activation.name),
        output=str(node.outputs[0].name),
        shape=tuple(array.shape),
        axis=0 if node.op_type == "Conv" or transposed else 1,
        weight=str(weight.name),
        bias=str(bias.name) if bias is not None and _is_constant(bias) else None,
    )


def _added(node: ir.Node) -> ir.Value | None:
    """The constant vector that an Add behind the product, its only reader, adds."""
    out = node.outputs[0]
    uses = list(out.uses())
    if node.op_type == "Conv" or len(uses) != 1 or out.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    other = uses[0].node.inputs[1 - uses[0].idx]
    constant = constant_of(other)
    return other if constant is not None and constant.ndim == 1 else None


def _attention(node: ir.Node) -> Product | None:
    """A product of two activations whose result a softmax reads, or which reads the result of one."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    left, right = node.inputs
    if left is None or right is None or _is_constant(left) or _is_constant(right):
        return None
    kind = SCORES if _feeds_softmax(node) else CONTEXT if _reads_softmax(left) else ""
    if not kind:
        return None
    return Product(
        node=node.name or str(node.outputs[0].name),
        kind=kind,
        op="MatMul",
        activation=str(left.name),
        output=str(node.outputs[0].name),
        shape=(),
        other=str(right.name),
    )


def _feeds_softmax(node: ir.Node) -> bool:
    for _ in range(6):
        uses = list(node.outputs[0].uses())
        if len(uses) != 1:
            return False
        node = uses[0].node
        if node.op_type == "Softmax":
            return True
        if node.op_type not in _BETWEEN_SCORES:
            return False
    return False


def _reads_softmax(value: ir.Value) -> bool:
    for _ in range(4):
        node = value.producer()
        if node is None:
            return False
        if node.op_type == "Softmax":
            return True
        if node.op_type not in _BETWEEN_CONTEXT:
            return False
        inner = node.inputs[-1] if node.op_type == "Where" else node.inputs[0]
        if inner is None:
            return False
        value = inner
    return False


def _kinds(nodes: Sequence[tuple[ir.Node, Product]]) -> list[str]:
    """The kind of each product, in their order."""
    paths = _paths(nodes)
    blocks = _blocks(path for path in paths if path is not None)
    structural = _structural(nodes)
    labels: list[str] = []
    for (_, product), path, label in zip(nodes, paths, structural, strict=True):
        labels.append(product.kind or ("" if path is None else _starred(path, blocks)) or label)
    shapes: dict[str, set[Any]] = defaultdict(set)
    for (_, product), label in zip(nodes, labels, strict=True):
        shapes[label].add((product.op, product.shape))
    return [
        label if len(shapes[label]) == 1 else f"{label} {_size(product)}"
        for (_, product), label in zip(nodes, labels, strict=True)
    ]


def _paths(nodes: Sequence[tuple[ir.Node, Product]]) -> list[tuple[str, ...] | None]:
    """The module path of each product, from the name of its weight or its bias; None where neither tells.

    A constant that products of different weights share (exporters keep one of several equal ones) tells nothing.
    """
    weights: dict[str | None, set[str | None]] = defaultdict(set)
    for _, product in nodes:
        weights[product.bias].add(product.weight)
    paths: list[tuple[str, ...] | None] = []
    for _, product in nodes:
        names = [product.weight, product.bias if len(weights[product.bias]) == 1 else None]
        known = [name for name in names if name is not None and not _COUNTED.fullmatch(name)]
        parts = known[0].split(".") if known else []
        if len(parts) > 1 and parts[-1] in ("weight", "bias"):
            parts = parts[:-1]
        # The exported module wraps the encoder as its attribute ``body``.
        paths.append(tuple(parts[1:] if parts[:1] == ["body"] and len(parts) > 1 else parts) or None)
    return paths


def _blocks(paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Prefixes that end in a number and hold more than one product: the repeated blocks."""
    held: Counter[tuple[str, ...]] = Counter()
    for path in set(paths):
        held.update(path[: i + 1] for i, part in enumerate(path) if part.isdigit())
    return {prefix for prefix, count in held.items() if count > 1}


def _starred(path: tuple[str, ...], blocks: set[tuple[str, ...]]) -> str:
    return ".".join("*" if path[: i + 1] in blocks else part for i, part in enumerate(path))


def _structural(nodes: Sequence[tuple[ir.Node, Product]]) -> list[str]:
    """``MatMul 384x1536 after LayerNormalization``; equal ones that read one activation are counted."""
    labels = [f"{product.op} {_size(product)} after {_maker(node.inputs[0])}" for node, product in nodes]
    total = Counter((product.activation, label) for (_, product), label in zip(nodes, labels, strict=True))
    seen: Counter[tuple[str, str]] = Counter()
    for i, (_, product) in enumerate(nodes):
        key = (product.activation, labels[i])
        seen[key] += 1
        if total[key] > 1:
            labels[i] = f"{labels[i]}, reader {seen[key]} of {total[key]}"
    return labels


def _maker(value: ir.Value | None) -> str:
    """The operator that computes a value, moves of elements passed over."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _PLUMBING:
            return str(node.op_type)
        value = node.inputs[0]
    return "input"


def _size(product: Product) -> str:
    return "x".join(map(str, product.shape))


def as_matrix(product: Product, array: np.ndarray) -> np.ndarray:
    """A weight as [output channels, what one output sums over]."""
    return array.reshape(array.shape[0], -1) if product.axis == 0 else array.T


def from_matrix(product: Product, matrix: np.ndarray) -> np.ndarray:
    """A weight as it is stored, from what `as_matrix` made."""
    return np.ascontiguousarray(matrix.reshape(product.shape) if product.axis == 0 else matrix.T)
