"""What an OpenVINO model (``.xml`` with its ``.bin``) in a bundle may be: operations of OpenVINO's own sets in one
plain graph, every constant inside the ``.bin`` beside it.

https://docs.openvino.ai/2026/documentation/openvino-ir-format.html
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.parsers import expat

from deploykit.runtime.errors import BundleError
from deploykit.runtime.trust.wire import refused

MAX_BYTES: Final = 64 << 20
CONTROL_FLOW: Final = frozenset(("If", "Loop", "TensorIterator"))
_OWN_SET = re.compile(r"opset\d{1,2}")
# What transformations that OpenVINO applied before saving write; their operations are built in, as those above.
_INTERNAL = frozenset(("ie_internal_opset", "gpu_opset", "cpu_plugin_opset", "type_relaxed_opset"))
_MAX_DEPTH = 24
_MAX_ELEMENTS = 1_000_000
_BITS = {"u1": 1, "u2": 2, "u3": 3, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "u6": 6, "u8": 8, "i8": 8, "boolean": 8}
_BITS |= {"f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8, "f16": 16, "bf16": 16, "i16": 16, "u16": 16}
_BITS |= {"f32": 32, "i32": 32, "u32": 32, "f64": 64, "i64": 64, "u64": 64}


@dataclass
class _Reader:
    """One pass over the file. ``stack`` holds the names of the open elements, ``layer`` the type of the open layer."""

    name: str
    weights_bytes: int
    control_flow: bool
    stack: list[str] = field(default_factory=list)
    layer: str = ""
    elements: int = 0
    layers: int = 0

    def start(self, tag: str, values: dict[str, str]) -> None:
        self.stack.append(tag)
        self.elements += 1
        if len(self.stack) > _MAX_DEPTH or self.elements > _MAX_ELEMENTS:
            raise refused(self.name, "is nested deeper or holds more parts than any encoder has")
        if len(self.stack) == 1 and tag != "net":
            raise refused(self.name, f"is no OpenVINO model: it begins with <{tag[:40]}>")
        if tag == "layer":
            self._layer(values)
        elif tag == "data" and self.layer == "Const":
            self._constant(values)
        elif tag in ("body", "then_body", "else_body") and not self.control_flow:
            raise refused(self.name, "has control flow (a graph inside a graph)")

    def end(self, tag: str) -> None:
        self.stack.pop()

    def doctype(self, *given: object) -> None:
        raise refused(self.name, "declares a document type or entities")

    def _layer(self, values: dict[str, str]) -> None:
        self.layers += 1
        self.layer, version = values.get("type", ""), values.get("version", "")
        if not _OWN_SET.fullmatch(version) and version not in _INTERNAL:
            raise refused(self.name, f"has the operation '{self.layer}' of the operation set '{version}'")
        if self.layer in CONTROL_FLOW and not self.control_flow:
            raise refused(self.name, f"has control flow ({self.layer})")

    def _constant(self, values: dict[str, str]) -> None:
        offset, size = (_number(values.get(key, "")) for key in ("offset", "size"))
        if offset + size > self.weights_bytes:
            raise refused(self.name, f"has a constant behind the end of its .bin ({self.weights_bytes} bytes)")
        shape = [_number(part) for part in values.get("shape", "").replace(" ", "").split(",") if part]
        bits = _BITS.get(values.get("element_type", ""))
        if bits is not None and (math.prod(shape) * bits + 7) // 8 > size:
            raise refused(self.name, f"has a constant of the shape {shape} without that many values")


def check(path: Path, name: str, control_flow: bool = False) -> None:
    """`BundleError` says what the model at ``path``, the bundle's file ``name``, holds that an encoder needs not."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise refused(name, f"is larger than {MAX_BYTES >> 20} MiB, without its weights")
        reader = _Reader(name, path.with_suffix(".bin").stat().st_size, control_flow)
        parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = reader.doctype
        with path.open("rb") as file:
            parser.ParseFile(file)
    except BundleError:
        raise
    except (OSError, expat.ExpatError, ValueError) as error:
        raise refused(name, f"is no OpenVINO model: {error}") from error
    if not reader.layers:
        raise refused(name, "is no OpenVINO model: it has no layers")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ValueError(f"{text[:40]!r} is no size")
    return int(text)
