"""The files that an ONNX model is made of: the graph, and the weights that stand beside it.

A hub cache holds links into a folder ``blobs`` beside the snapshot. onnx and onnxruntime refuse weights behind such a
link, because a graph must not read files outside of its folder. Here the files are the user's own source: what a link
beside the model leads to is brought into the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploykit.errors import MissingError, SourceError
from deploykit.runtime.install import pip_install
from deploykit.sources._checkpoint import first_line

if TYPE_CHECKING:
    import onnx

_DAMAGED = "the file or a weight file beside it is missing or cut off: fetch or export it again"


def load(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The checked model with its weights, and whether links were followed, so that no engine can read it at ``path``.

    Raises `SourceError` with the checker's reason when it is damaged or incomplete.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingError("onnx is not installed", hint=pip_install("export")) from error
    try:
        if not _is_linked(path):
            onnx.checker.check_model(str(path))
            return onnx.load(str(path)), False
        model = onnx.load(str(path), load_external_data=False)
        for tensor in tensors_of(model.graph):
            _bring_in(tensor, path)
        return model, True
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"{path} is not a valid ONNX model: {first_line(error)}", hint=_DAMAGED) from error


def _is_linked(path: Path) -> bool:
    """Whether weights stand in files of their own, and those or the model are links."""
    from deploykit.graph.weights import external_files

    beside = external_files(path)
    return any(file.is_symlink() for file in (path, *beside)) if beside else False


def _bring_in(tensor: onnx.TensorProto, path: Path) -> None:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    if not uses_external_data(tensor):
        return
    place = ExternalDataInfo(tensor)
    location = PurePosixPath(place.location)
    if location.is_absolute() or ".." in location.parts:
        raise SourceError(f"{path} reads weights from '{place.location}', outside its folder", hint=_DAMAGED)
    with (path.parent / place.location).open("rb") as file:
        file.seek(int(place.offset or 0))
        content = file.read() if place.length is None else file.read(int(place.length))
    if place.length is not None and len(content) != int(place.length):
        raise SourceError(f"'{place.location}' beside {path} ends inside '{tensor.name}'", hint=_DAMAGED)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = content


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every one inside it: the branches and bodies of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs_of(inner)


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every constant: initializers and attributes of nodes, those of inner graphs too."""
    for inner in graphs_of(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and the results of Constant nodes, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found
