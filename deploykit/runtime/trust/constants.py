"""How much memory an engine would need to fold a model's constants, worked out without doing it.

Engines compute what depends on constants alone while they load a model, so 136 bytes that say Range(0, 2**32, 1) ask
for 17 GB. Here every such operation's output is bounded from its inputs' shapes, and the small integers that sizes are
made of are followed by value. An operation that grows by a constant which cannot be followed is refused: its size
cannot be told before it is run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from deploykit.runtime.errors import BundleError
from deploykit.runtime.trust.onnx_graph import Model, Node, Tensor
from deploykit.runtime.trust.wire import Fields, words

# What is free for every model, and how many times a model's own size it may grow: 4-bit weights to float32 is 8 times.
FREE_BYTES: Final = 64 << 20
GROWTH: Final = 16
_ITEM_BYTES = 8
_FOLLOWED = 1024
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 12: "<u4", 13: "<u8"}


@dataclass(frozen=True)
class Known:
    """A value that depends on constants alone: its shape (None: only the count is bounded), its values where few.

    Not ``exact``: no axis is larger than ``shape`` says, and some may be smaller.
    """

    count: int
    shape: tuple[int, ...] | None = None
    values: np.ndarray | None = None
    exact: bool = True


class Unbounded(Exception):
    """The size of an output cannot be told."""


_BROADCAST = words(
    "Add Sub Mul Div Mod Pow And Or Xor Equal Less Greater LessOrEqual GreaterOrEqual Where Min Max Sum Mean PRelu "
    "BitShift BitwiseAnd BitwiseOr BitwiseXor"
)
_AS_FIRST = words(
    "Abs Neg Sign Ceil Floor Round Sqrt Reciprocal Exp Log Sin Cos Tan Tanh Sigmoid Relu LeakyRelu Elu Selu Gelu Erf "
    "Softmax LogSoftmax Not IsNaN IsInf Identity Cast CastLike Clip QuantizeLinear DequantizeLinear Dropout "
    "LayerNormalization RMSNormalization BatchNormalization InstanceNormalization GroupNormalization CumSum Trilu "
    "HardSigmoid HardSwish Softplus Softsign ScatterND ScatterElements DynamicQuantizeLinear BitwiseNot FastGelu "
    "QuickGelu ReverseSequence Hardmax Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Celu Mish ThresholdedRelu Shrink "
    "LpNormalization MeanVarianceNormalization"
)
_NOT_MORE = words(
    "Slice Squeeze Unsqueeze Reshape Flatten Transpose Split Compress NonZero Unique DepthToSpace SpaceToDepth "
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum "
    "ReduceLogSumExp ArgMax ArgMin TopK GatherElements GatherND GlobalAveragePool GlobalMaxPool"
)
_AT_MOST_ALL = _BROADCAST | words("MatMul MatMulInteger Gemm Einsum SequenceConstruct Identity")
# Their outputs are as large as the values of these inputs say (by index); None: an attribute or more says it.
_GROWING: dict[str, tuple[int, ...] | None] = {
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Tile": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Resize": (2, 3),
    "Upsample": (1,),
    "EyeLike": None,
    "RandomNormal": None,
    "RandomUniform": None,
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1),
    "AffineGrid": (1,),
    "MaxUnpool": None,
    "Col2Im": (1,),
    "CenterCropPad": (1,),
}


def check(name: str, model: Model, file_bytes: int) -> None:
    """`BundleError` when folding the constants of ``model`` needs more than its size (``file_bytes``) explains."""
    most = FREE_BYTES + GROWTH * file_bytes
    fields = Fields(name, _FOLLOWED * 1024)
    known = {constant.name: _constant(fields, constant) for constant in model.constants}
    known[""] = Known(0, (0,))
    total = 0
    for node in model.nodes:
        try:
            made = _made(fields, node, known)
        except Unbounded as error:
            raise fields.fault(f"has the operation {node.operator}, whose output's size {error}") from None
        if made is None:
            continue
        total += made.count * _ITEM_BYTES
        if total > most:
            raise fields.fault(
                f"would need more than {most >> 20} MiB for what {node.operator} makes of constants alone"
            )
        if all(known_input in known for known_input in node.inputs):
            known.update(dict.fromkeys(node.outputs, made))


def _made(fields: Fields, node: Node, known: dict[str, Known]) -> Known | None:
    """The output of ``node``, as far as constants decide it; None where they do not."""
    if node.operator == "Constant":
        if "value" in node.tensors:
            return _constant(fields, node.tensors["value"])
        numbers = [*node.values.get("value_ints", []), *node.values.get("value_floats", [])]
        single = [*node.values.get("value_int", []), *node.values.get("value_float", [])]
        if numbers and not single:
            return Known(len(numbers), (len(numbers),), np.array(numbers) if len(numbers) <= _FOLLOWED else None)
        return Known(1, (), np.array(single[0]) if len(single) == 1 and not numbers else None)
    if node.operator in _GROWING:
        return _filled(fields, node, known) if node.operator == "ConstantOfShape" else _grown(node, known)
    if node.operator in ("Shape", "Size") and node.inputs and node.inputs[0] in known:
        return _measured(node, known[node.inputs[0]])
    if node.graphs or not node.inputs or any(name not in known for name in node.inputs):
        return None  # what stands inside control flow is not seen; without leave of the caller there is none
    return _folded(node, [known[name] for name in node.inputs])


def _measured(node: Node, given: Known) -> Known:
    if node.operator == "Size":
        return Known(1, (), np.array(given.count) if given.shape is not None and given.exact else None)
    if given.shape is None or not given.exact or node.values:
        return Known(16)
    return Known(len(given.shape), (len(given.shape),), np.array(given.shape, np.int64))


def _grown(node: Node, known: dict[str, Known]) -> Known | None:
    places = _GROWING[node.operator]
    if places is None:
        size = math.prod(node.values.get("shape", [])) if "shape" in node.values else None
        if size is None and any(name not in known for name in node.inputs):
            return None
        if size is None and node.operator == "EyeLike":
            return known[node.inputs[0]]
        if size is None or size < 0:
            raise Unbounded("cannot be told")
        return Known(size, tuple(node.values["shape"]))
    if node.operator == "Pad" and "pads" in node.values:
        return _growth(node, [np.array(node.values["pads"])], known.get(node.inputs[0]) if node.inputs else None)
    given = [node.inputs[place] for place in places if place < len(node.inputs) and node.inputs[place]]
    if not given and node.operator != "Resize":
        raise Unbounded("cannot be told")
    if any(name not in known for name in given):
        return None  # it grows with what is put in, whose limits the runtime keeps
    values = [known[name].values for name in given]
    if any(value is None for value in values):
        raise Unbounded("hangs on constants that cannot be followed")
    arrays = [np.asarray(value) for value in values]
    if any(not np.isfinite(array.astype(np.float64)).all() for array in arrays):
        raise Unbounded("is not finite")
    first = known.get(node.inputs[0]) if node.inputs else None
    return _growth(node, arrays, first)


def _filled(fields: Fields, node: Node, known: dict[str, Known]) -> Known | None:
    """One value in all places, 0 unless the node says another; followed where the places are few."""
    made = _grown(node, known)
    if made is None or made.shape is None or made.count > _FOLLOWED:
        return made
    value = _constant(fields, node.tensors["value"]).values if "value" in node.tensors else np.zeros(1, np.int64)
    return made if value is None or value.size != 1 else replace(made, values=np.full(made.shape, value.ravel()[0]))


def _growth(node: Node, arrays: Sequence[np.ndarray], first: Known | None) -> Known:
    """The output of an operation that grows by ``arrays``; ``first`` is its data where that is constant too."""
    counts = [[abs(value) for value in array.ravel().tolist()] for array in arrays]
    have = max(1, first.count) if first is not None else 1
    if node.operator == "Range":
        return _range(arrays)
    if node.operator in ("ConstantOfShape", "AffineGrid", "Col2Im", "CenterCropPad"):
        shape = tuple(int(size) for size in counts[0])
        return Known(math.prod(shape) * (1 if node.operator == "ConstantOfShape" else have), shape)
    if node.operator == "Expand":
        shape = first.shape if first is not None and first.shape is not None else (have,)
        return _broadcast([shape, tuple(int(size) for size in counts[0])])
    if node.operator == "Pad":
        half = len(counts[0]) // 2
        added = [int(a + b) for a, b in zip(counts[0][:half], counts[0][half:], strict=False)]
        shape = first.shape if first is not None and first.shape is not None else (1,) * half
        return Known(math.prod(size + more for size, more in zip(shape, added, strict=False)))
    if node.operator == "Resize":
        sizes = [math.prod(array) for array in counts]
        if _has_scales(node):
            sizes[0] *= have
        return Known(math.ceil(max(sizes, default=have)))
    return Known(math.ceil(math.prod(math.prod(array) for array in counts)) * have)


def _has_scales(node: Node) -> bool:
    return len(node.inputs) > 2 and bool(node.inputs[2])


def _range(arrays: Sequence[np.ndarray]) -> Known:
    if len(arrays) != 3 or any(array.size != 1 for array in arrays):
        raise Unbounded("cannot be told")
    start, limit, step = (array.ravel()[0].item() for array in arrays)
    if step == 0:
        raise Unbounded("is not finite")
    count = max(0, math.ceil((limit - start) / step))
    values = np.arange(start, limit, step)[:count] if count <= _FOLLOWED else None
    return Known(count, (count,), values)


def _folded(node: Node, given: Sequence[Known]) -> Known:
    """The output of an operation whose inputs are all constant, and which does not grow by their values."""
    if node.operator in _BROADCAST and all(k.shape is not None for k in given):
        found = _broadcast([k.shape for k in given if k.shape is not None])
        found = replace(found, exact=all(k.exact for k in given))
    elif node.operator in ("MatMul", "MatMulInteger", "Gemm") and all(k.shape is not None for k in given[:2]):
        found = _product(node, given)
    elif node.operator in _AS_FIRST:
        found = replace(given[0], values=None)
    elif node.operator == "Transpose" and (shape := given[0].shape) is not None:
        found = Known(given[0].count, _permuted(shape, node.values.get("perm")), exact=given[0].exact)
    elif node.operator in ("Slice", "Split", "GatherElements", "Compress", "TopK") and node.operator in _NOT_MORE:
        found = Known(given[0].count, given[0].shape, exact=False)
    elif node.operator.startswith("Reduce") and (shape := given[0].shape) is not None:
        found = _reduced(node, shape, given)
    elif node.operator == "Unsqueeze" and (shape := given[0].shape) is not None:
        found = _with_axes_put_in(node, shape, given)
    elif node.operator == "Reshape" and (shape := given[0].shape) is not None and len(given) > 1:
        found = _as_asked(node, shape, given)
    elif node.operator in _NOT_MORE:
        found = Known(given[0].count)
    elif node.operator == "Concat":
        found = Known(sum(k.count for k in given))
    elif node.operator == "Gather":
        found = _gathered(node, given)
    elif node.operator in _AT_MOST_ALL:
        found = Known(max(sum(k.count for k in given), math.prod(max(1, k.count) for k in given)))
    else:
        raise Unbounded("cannot be told")
    if found.count <= _FOLLOWED and (follow := _FOLLOW.get(node.operator)) is not None:
        arrays = [k.values for k in given if k.shape != (0,) or k.values is not None]
        if all(array is not None for array in arrays):
            return _followed(found, follow, node, [np.asarray(array) for array in arrays])
    return found


def _followed(found: Known, follow: Callable[..., Any], node: Node, arrays: list[np.ndarray]) -> Known:
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(follow(node, *arrays))
    except (ValueError, IndexError, TypeError, KeyError, ZeroDivisionError, OverflowError):
        return found  # an operation that no engine can run either; what hangs on it is refused
    return Known(values.size, values.shape, values) if values.size <= _FOLLOWED else found


def _reduced(node: Node, shape: tuple[int, ...], given: Sequence[Known]) -> Known:
    """Reduced axes are of size 1, or gone; where it cannot be told which they are, none is larger than before."""
    keeps = node.values.get("keepdims", [1])[0] != 0
    gone = _axes(node, len(shape), given)
    if not gone or node.values.get("noop_with_empty_axes", [0])[0]:
        return Known(given[0].count, shape if keeps else None, exact=False)
    sizes = tuple(1 if place in gone else size for place, size in enumerate(shape) if keeps or place not in gone)
    return Known(math.prod(sizes), sizes, exact=given[0].exact)


def _with_axes_put_in(node: Node, shape: tuple[int, ...], given: Sequence[Known]) -> Known:
    """Axes of size 1 are put in; where it cannot be told which, only the count is known."""
    said = node.values.get("axes", [])
    count = len(said) if len(given) == 1 else given[1].count
    places = _axes(node, len(shape) + count, given)
    if len(places) != count:
        return Known(given[0].count)
    kept = iter(shape)
    sizes = tuple(1 if place in places else next(kept) for place in range(len(shape) + count))
    return Known(given[0].count, sizes, exact=given[0].exact)


def _as_asked(node: Node, shape: tuple[int, ...], given: Sequence[Known]) -> Known:
    """The shape that is asked for, where it is known and holds just as many items as there are."""
    asked = given[1].values
    if asked is None or not given[0].exact or node.values.get("allowzero", [0])[0]:
        return Known(given[0].count)
    sizes = [int(size) for size in asked.ravel()]
    sizes = [shape[place] if size == 0 and place < len(shape) else size for place, size in enumerate(sizes)]
    others = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and others > 0:
        sizes[sizes.index(-1)] = given[0].count // others
    fits = min(sizes, default=1) >= 0 and math.prod(sizes) == given[0].count
    return Known(given[0].count, tuple(sizes)) if fits else Known(given[0].count)


def _axes(node: Node, rank: int, given: Sequence[Known]) -> set[int]:
    """The axes that an operation names, by attribute or by its second input; none where they cannot be told."""
    said, added = node.values.get("axes"), given[1].values if len(given) > 1 else None
    axes = said if added is None else added.ravel().tolist()
    if not axes or (said is not None and len(given) > 1) or any(not -rank <= axis < rank for axis in axes):
        return set()
    return {int(axis) % rank for axis in axes}


def _permuted(shape: tuple[int, ...], order: list[int] | None) -> tuple[int, ...] | None:
    if order is None:
        return shape[::-1]
    return tuple(shape[place] for place in order) if sorted(order) == list(range(len(shape))) else None


def _gathered(node: Node, given: Sequence[Known]) -> Known:
    """Each index takes one slice of the data along the axis."""
    shape, axis = given[0].shape, int(node.values.get("axis", [0])[0])
    if shape is None or len(given) != 2 or not -len(shape) <= axis < len(shape):
        return Known(math.prod(max(1, k.count) for k in given))
    slice_of = math.prod(size for place, size in enumerate(shape) if place != axis % len(shape))
    return Known(slice_of * given[1].count)


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> Known:
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    shape = tuple(max(sizes) for sizes in zip(*padded, strict=True))
    return Known(math.prod(shape), shape)


def _product(node: Node, given: Sequence[Known]) -> Known:
    a, b = (k.shape or () for k in given[:2])
    if len(a) < 2 or len(b) < 2:
        return Known(max(given[0].count, given[1].count))
    rows, columns = a[-2], b[-1]
    if node.operator == "Gemm":
        rows = a[-1] if node.values.get("transA", [0])[0] else rows
        columns = b[-2] if node.values.get("transB", [0])[0] else columns
    batch = _broadcast([a[:-2], b[:-2]])
    shape = (*(batch.shape or ()), rows, columns)
    return Known(math.prod(shape), shape)


def _divided(node: Node, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(a / b if np.result_type(a, b).kind == "f" else np.trunc(a / b).astype(np.int64))


def _unsqueezed(node: Node, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    places = node.values["axes"] if axes is None else axes.ravel().tolist()
    return np.expand_dims(a, tuple(places))


def _squeezed(node: Node, a: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    places = node.values.get("axes") if axes is None else axes.ravel().tolist()
    return np.squeeze(a, None if places is None else tuple(places))


def _sliced(node: Node, a: np.ndarray, *bounds: np.ndarray) -> np.ndarray:
    starts, ends = bounds[0].ravel(), bounds[1].ravel()
    axes = bounds[2].ravel() if len(bounds) > 2 else range(len(starts))
    steps = bounds[3].ravel() if len(bounds) > 3 else [1] * len(starts)
    place: list[slice] = [slice(None)] * a.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place[int(axis)] = slice(int(start), int(end), int(step))
    return a[tuple(place)]


_FOLLOW: dict[str, Callable[..., Any]] = {
    "Identity": lambda node, a: a,
    "Cast": lambda node, a: a.astype(_DTYPES[node.values["to"][0]]),
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": _divided,
    "Mod": lambda node, a, b: a % b,
    "Pow": lambda node, a, b: a.astype(np.float64) ** b,
    "Neg": lambda node, a: -a,
    "Abs": lambda node, a: abs(a),
    "Ceil": lambda node, a: np.ceil(a),
    "Floor": lambda node, a: np.floor(a),
    "Sqrt": lambda node, a: np.sqrt(a),
    "Min": lambda node, *a: np.minimum.reduce(np.broadcast_arrays(*a)),
    "Max": lambda node, *a: np.maximum.reduce(np.broadcast_arrays(*a)),
    "Equal": lambda node, a, b: a == b,
    "Greater": lambda node, a, b: a > b,
    "Less": lambda node, a, b: a < b,
    "Not": lambda node, a: ~a,
    "Where": lambda node, a, b, c: np.where(a, b, c),
    "Concat": lambda node, *a: np.concatenate(a, node.values.get("axis", [0])[0]),
    "Gather": lambda node, a, b: np.take(a, b, node.values.get("axis", [0])[0]),
    "Reshape": lambda node, a, b: a.reshape(b.ravel().tolist()),
    "Transpose": lambda node, a: a.transpose(node.values.get("perm")),
    "ReduceProd": lambda node, a, *axes: a.prod(),
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Slice": _sliced,
}


def _constant(fields: Fields, given: Tensor) -> Known:
    count = math.prod(given.shape)
    if count > _FOLLOWED or given.external is not None:
        return Known(count, given.shape)
    try:
        return Known(count, given.shape, _values(fields, given, count))
    except (ValueError, KeyError, BundleError):
        return Known(count, given.shape)


def _values(fields: Fields, given: Tensor, count: int) -> np.ndarray:
    """The values of a short constant; `ValueError` or `KeyError` where it holds no such numbers."""
    raw: memoryview | None = None
    integers, floats = list[int](), list[float]()
    for number, value in fields.of(given.content):
        if number == 9 and not isinstance(value, int):
            raw = value  # said twice, the last holds, as in every reader of the format
        elif number in (5, 7, 11):
            integers += fields.integers(value)
        elif number in (4, 10) and not isinstance(value, int):
            floats += np.frombuffer(value, "<f4" if number == 4 else "<f8").tolist()
    if raw is not None:
        return np.frombuffer(raw, _DTYPES[given.dtype], count).reshape(given.shape)
    if bool(integers) + bool(floats) > 1:
        raise ValueError("two kinds of numbers")
    return np.array(floats or integers, np.float64 if floats else np.int64).reshape(given.shape)
