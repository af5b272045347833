"""What an ONNX model in a bundle may be: standard operators in one plain graph, every byte of it in listed files.

Refused: other operator domains, model-local functions, control flow, sparse constants, training information, operators
that load code or compiled blobs, constants outside the bundle's listed files, constants larger than their bytes,
values used before they are made, and constants that would be folded into memory that the file's size does not explain.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import FileEntry
from deploykit.runtime.names import check_name
from deploykit.runtime.trust import constants
from deploykit.runtime.trust.onnx_graph import Model, Node, Tensor, read
from deploykit.runtime.trust.wire import refused, words

STANDARD: Final = ("", "ai.onnx")
# onnxruntime's own operators that its quantizers and fusions write. Others of its domain run compiled blobs
# (EPContext) or are for training.
MICROSOFT: Final = words(
    "Attention BiasGelu BiasSoftmax DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul EmbedLayerNormalization "
    "FastGelu FusedConv FusedGemm FusedMatMul Gelu GroupQueryAttention LayerNormalization MatMulInteger16 "
    "MatMulIntegerToFloat MatMulNBits MultiHeadAttention NhwcMaxPool QAttention QEmbedLayerNormalization QGemm "
    "QLinearAdd QLinearAveragePool QLinearConcat QLinearConv QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu RotaryEmbedding "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization"
)
DOMAINS: Final = {"com.microsoft": MICROSOFT}
CONTROL_FLOW: Final = frozenset(("If", "Loop", "Scan", "SequenceMap"))
_LOCATION_KEYS = frozenset(("location", "offset", "length", "checksum"))


@dataclass(frozen=True)
class Place:
    """Where a model stands: the bundle's folder, its name in it, and all files that the manifest lists."""

    root: Path
    name: str
    files: Mapping[str, FileEntry]


def check(place: Place, control_flow: bool = False) -> None:
    """`BundleError` says what the ONNX model at ``place`` holds that none of deploykit's does.

    ``control_flow`` True lets If, Loop and Scan pass, with what stands inside them unseen: for models of one's own.
    """
    try:
        with (place.root / place.name).open("rb") as file:
            # Not closed by hand: it ends with the last view of it, and an error's frames hold views.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise refused(place.name, f"cannot be read: {error}") from error
    view = memoryview(mapped)
    model = read(place.name, view)
    for fault in _faults(model, control_flow):
        raise refused(place.name, fault)
    outside = sum(_external(place, constant) for constant in _all_constants(model))
    constants.check(place.name, model, len(view) + outside)


def _faults(model: Model, control_flow: bool) -> Iterator[str]:
    if model.functions:
        yield f"holds {model.functions} model-local functions"
    if model.training:
        yield "holds training information"
    if model.sparse:
        yield "holds a sparse constant"
    for domain in model.opsets:
        if domain not in STANDARD and domain not in DOMAINS and _used(model, domain):
            yield f"asks for the operator domain '{domain}'"
    for node in model.nodes:
        yield from _node_faults(node, control_flow)
    yield from _order_faults(model)
    for constant in _all_constants(model):
        # At least half a byte each: a constant cannot be larger in memory than eight times its bytes in the file.
        if constant.external is None and math.prod(constant.shape) > 2 * len(constant.content):
            yield f"has the constant '{constant.name}' of the shape {list(constant.shape)} without that many values"


def _used(model: Model, domain: str) -> bool:
    """Exporters name domains of which they use nothing; such a name loads no code."""
    return any(node.domain == domain for node in model.nodes)


def _node_faults(node: Node, control_flow: bool) -> Iterator[str]:
    if node.domain not in STANDARD:
        allowed = DOMAINS.get(node.domain)
        if allowed is None:
            yield f"has the operation '{node.operator}' of the operator domain '{node.domain}'"
        elif node.operator not in allowed:
            yield f"has the operation '{node.operator}' of '{node.domain}', which is none for encoders"
    if (node.operator in CONTROL_FLOW or node.graphs) and not control_flow:
        yield f"has control flow ({node.operator})"


def _order_faults(model: Model) -> Iterator[str]:
    """Every value is made once, before it is used: what was bounded in this order is what is run."""
    names = [constant.name for constant in model.constants]
    if len(set(names)) != len(names):
        yield "has two constants of the same name"
    made = {"", *model.inputs, *names}
    for node in model.nodes:
        for name in node.inputs:
            if name not in made:
                yield f"uses '{name}' before it is made"
        for name in filter(None, node.outputs):
            if name in made:
                yield f"makes '{name}' twice"
            made.add(name)


def _all_constants(model: Model) -> Iterator[Tensor]:
    yield from model.constants
    for node in model.nodes:
        yield from node.tensors.values()


def _external(place: Place, constant: Tensor) -> int:
    """The bytes of a constant in another file, 0 where it has none; `BundleError` unless they are in a listed one."""
    if constant.external is None:
        return 0
    what = f"the constant '{constant.name}'"
    location = constant.external.get("location", "")
    try:
        check_name(location)
    except BundleError as error:
        raise refused(place.name, f"has {what} outside the bundle, in {location!r}") from error
    name = (PurePosixPath(place.name).parent / location).as_posix()
    if name not in place.files:
        raise refused(place.name, f"has {what} in '{name}', which the manifest does not list")
    if unknown := sorted(constant.external.keys() - _LOCATION_KEYS):
        raise refused(place.name, f"says '{unknown[0]}' of where {what} is")
    size = place.files[name].size
    offset, length = (_number(place, constant, key) for key in ("offset", "length"))
    length = size - offset if "length" not in constant.external else length
    if offset > size or length < 0 or offset + length > size:
        raise refused(place.name, f"has {what} behind the end of '{name}'")
    if math.prod(constant.shape) > 2 * length:
        raise refused(place.name, f"has {what} of the shape {list(constant.shape)} without that many values")
    return length


def _number(place: Place, constant: Tensor, key: str) -> int:
    text = (constant.external or {}).get(key, "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise refused(place.name, f"has the constant '{constant.name}' at the {key} {text[:40]!r}")
    return int(text)
