"""Why an export failed, in terms of the model's own source: the line that fixed a size, or that no exporter translates.

Exporters raise pages that end in their own internals. What helps is the innermost line outside torch, and for a size
that was turned into a number, the line at which torch's symbolic shapes recorded that.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ADVICE = (
    "three things to try: give the model one size only (fixed_length, or a processor with a fixed size); "
    "another attention or precision setting in its config.json that avoids this line; "
    "or rewrite the line without Python numbers made from tensors and bring the model as py:module:factory"
)
_TOOLS = ("/torch/", "/onnxscript/", "/onnx_ir/", "/onnx/", "/deploykit/", "/importlib", "/contextlib.py", "<")
_WRAPPERS = ("/transformers/utils/", "/transformers/pytorch_utils.py", "/transformers/modeling_layers.py")
_LOCATION = re.compile(r"[\w/.\-]+\.py:\d+ in \w+")
_FROZEN = (
    re.compile(
        r"inferred a static shape of (?P<size>\d+) for dimension inputs\['(?P<name>\w+)'\]\.shape\[(?P<axis>\d+)\]"
    ),
    re.compile(r"\['(?P<name>\w+)'\]\.size\(\)\[(?P<axis>\d+)\] was inferred to be a constant \((?P<size>\d+)\)"),
)


def line_of(error: BaseException) -> str:
    """``modeling_x.py:123 in forward: code`` of the innermost line outside the tools; empty where there is none."""
    found = ""
    for link in _chain(error):
        for frame in traceback.extract_tb(link.__traceback__):
            if _is_models(frame.filename):
                found = _written(frame.filename, frame.lineno or 0, frame.name)
        if found:
            return found
    return mentioned(str(error))


def frozen(error: BaseException) -> tuple[str, int, int] | None:
    """(input, axis, size) of a dynamic axis that tracing turned into a number, where the exporter says so."""
    for link in _chain(error):
        for pattern in _FROZEN:
            found = pattern.search(str(link))
            if found:
                return found["name"], int(found["axis"]), int(found["size"])
    return None


def freezing_line(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], axes: Mapping[str, Iterable[int]]
) -> str:
    """The source line at which a trace that lets sizes become numbers does so; empty where that fails too."""
    import torch

    free = {name: dict.fromkeys(found, torch.export.Dim.AUTO) for name, found in axes.items()}
    try:
        program = torch.export.export(module, (), dict(inputs), dynamic_shapes=free, strict=False)
    except Exception:
        return ""
    return specialised(program)


def specialised(program: torch.export.ExportedProgram) -> str:
    """The source line at which a dynamic size of an exported program became a number; empty where none did."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        mode = getattr(value, "fake_mode", None)
        environment: Any = getattr(mode, "shape_env", None)
        if environment is None:
            continue
        places = getattr(environment, "replacements_slocs", {})
        for symbol, size in getattr(environment, "replacements", {}).items():
            if getattr(size, "is_Integer", False) and symbol in places:
                return _recorded(places[symbol])
        return ""
    return ""


def _recorded(place: Any) -> str:
    """The model's line of a place as torch records it: a text of its own, or a frame; empty for a line of the tools."""
    told = getattr(place, "maybe_user_loc", None) or getattr(place, "framework_loc", None) or ""
    if isinstance(told, traceback.FrameSummary):
        return _written(told.filename, told.lineno or 0, told.name) if _is_models(told.filename) else ""
    return " ".join(str(told).split())[:200]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, the cause first: that is where the model's line stands."""
    links = [error]
    while (before := links[-1].__cause__ or links[-1].__context__) is not None and before not in links:
        links.append(before)
    return reversed(links)


def _is_models(filename: str) -> bool:
    return not any(part in filename for part in (*_TOOLS, *_WRAPPERS))


def _written(filename: str, number: int, name: str) -> str:
    code = linecache.getline(filename, number).strip()
    return f"{Path(filename).name}:{number} in {name}: {code}"[:240]


def mentioned(message: str) -> str:
    """A line of the model that the message itself names, as torch's own reports do."""
    pattern = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
    places = [match for match in pattern.findall(message) if _is_models(match[0])]
    if places:
        filename, number, name = places[-1]
        return _written(filename, int(number), name)
    found = [text for text in _LOCATION.findall(message) if _is_models(text)]
    return found[-1] if found else ""
