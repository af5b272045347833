"""``.onnx``: a model that is ONNX already; it is its own reference in the proof.

A tokenizer.json beside it makes it a text encoder, image processor files an image encoder; else it takes preprocessed
tensors. Files of many exporters are brought into one form (`deploykit.sources._onnx_body`); pooling, truncation and
normalisation that are asked for are appended to the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._assemble import middle, truncated
from deploykit.sources._onnx_feeding import TAKEN, Feeding, feeding_of
from deploykit.sources._options import only

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from deploykit.sources._onnx_body import Body, Graph, Original

KIND = "onnx"

_ROWS = 3


def matches(spec: str) -> bool:
    """``….onnx``."""
    return spec.endswith(".onnx")


def identify(spec: str, options: Options) -> Identity:
    """Digest of the model, its external data and the JSON files of its preprocessing."""
    path = _require_file(spec)
    home = _home(path)
    beside = [p for p in home.glob("*.json") if p.is_file() and not _folder.is_report(p)]
    own = _folder.identity(KIND, path, {path, *_weights_of(path)}, options, {"name": path.stem})
    if not beside:
        return own
    around = _folder.identity(KIND, home, beside, options, {"model": own.digest})
    return Identity(KIND, str(path), around.digest, own.facts)


def _weights_of(path: Path) -> list[Path]:
    """The files of its external data, of whatever name; none of a model that cannot be read, which `open` refuses."""
    from deploykit.graph.weights import external_files

    with suppress(Exception):
        return external_files(path)
    return []


def open(spec: str, options: Options) -> Source:
    """Check the model, find its embedding, append what was asked for, and run it."""
    from deploykit.sources import _onnx_body, _onnx_files
    from deploykit.sources import _onnx_graph as running

    path = _require_file(spec)
    only(options, TAKEN, f"{path.name} is an ONNX model")
    model, linked = _onnx_files.load(path)
    graph = _graph(model, options, path.name)
    original = _onnx_body.Original(graph, running.save(model) if linked else path, path.name)
    feeding = feeding_of(_home(path), _onnx_body.specs_of(graph), options, graph, original)
    batches = [_feeds(feeding, sizes, _ROWS) for sizes in _sizes(feeding)]
    body = _onnx_body.bring(graph, original, batches, feeding.specs, path.name)
    feeding = replace(feeding, specs=tuple(replace(s, shape=(body.batch, *s.shape[1:])) for s in feeding.specs))
    options = _renormalized(original, feeding, options)
    return _finish(path, body, feeding, options)


def _graph(model: onnx.ModelProto, options: Options, name: str) -> Graph:
    from deploykit.sources import _onnx_bind, _onnx_body, _onnx_ports
    from deploykit.sources._onnx_graph import EMBEDDINGS, TOKENS

    ports = _onnx_ports.inputs(model)
    bound = _onnx_bind.bindings(options.bind or {}, ports, name)
    pooled = options.pooling not in (None, "none", "pooler")
    order = TOKENS if pooled else EMBEDDINGS
    output, shape = _onnx_body.choose(_onnx_ports.outputs(model), options.output_name, pooled, name, order)
    free = tuple(port for port in ports if port.name not in bound)
    return _onnx_body.Graph(model, free, bound, output, shape)


def _sizes(feeding: Feeding) -> list[dict[str, int]]:
    """The smallest, middle and largest sizes of the dynamic axes, each once."""
    ends = [{axis: pick(values) for axis, values in feeding.sizes.items()} for pick in (middle, min, max)]
    return [sizes for i, sizes in enumerate(ends) if sizes not in ends[:i]]


def _feeds(feeding: Feeding, sizes: Mapping[str, int], batch: int) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in feeding.make(batch, sizes, 0).items()}


def _renormalized(original: Original, feeding: Feeding, options: Options) -> Options:
    """The options, with normalisation if the model's own vectors are cut and L2-normalized."""
    if options.dim is None or options.pooling not in (None, "none", "pooler"):
        return options
    import torch

    from deploykit.sources._encoders import renormalized

    sizes = {axis: middle(values) for axis, values in feeding.sizes.items()}
    return renormalized(options, lambda: torch.from_numpy(original.rows(_feeds(feeding, sizes, 3))))


def _finish(path: Path, body: Body, feeding: Feeding, options: Options) -> Source:
    """Append what was asked for, run the model at the largest sizes, and write the card."""
    import numpy as np

    from deploykit.sources import _onnx_graph as running

    name = _output_name(body, feeding, options)
    ready = running.save(running.extend(body.model, body.output, name, options))
    run = running.runner(ready, name, path.name)
    count = 2 if isinstance(body.batch, str) else 1
    shapes = []
    for end in (-1, 0):
        got = run(_feeds(feeding, {axis: values[end] for axis, values in feeding.sizes.items()}, count))
        if got.ndim != 2 or got.shape[0] != count or not np.isfinite(got).all():
            hint = "choose a pooling, or another output"
            fact = f"{path.name} gives {list(got.shape)} for a batch of {count}, or NaN, not [{count}, dim]"
            raise SourceError(fact, hint=hint)
        shapes.append(int(got.shape[1]))
    if len(set(shapes)) > 1:
        hint = "choose a pooling or another output (--output-name), or give the input one size: --axis NAME=N"
        raise SourceError(f"{path.name} gives {shapes[1]} to {shapes[0]} dimensions, by the input's size", hint=hint)
    return _source(path, ready, body, feeding, replace(options, output_name=name), shapes[0])


def _output_name(body: Body, feeding: Feeding, options: Options) -> str:
    name = "sentence_embedding" if feeding.modality == "text" else f"{feeding.modality}_embedding"
    taken = {n for node in body.model.graph.node for n in node.output} - {body.output}
    extended = options.pooling or options.dim or options.normalize
    return f"final_{name}" if name in taken or (name == body.output and extended) else name


def _source(path: Path, ready: Path, body: Body, feeding: Feeding, options: Options, dim: int) -> Source:
    output = str(options.output_name)
    notes = [*feeding.notes, *body.notes]
    notes += [truncated(path.name, options.dim, dim, bool(options.normalize))] if options.dim else []
    card = Card(
        name=path.stem,
        modality=feeding.modality,
        inputs=feeding.specs,
        outputs=(TensorSpec(output, "float32", (body.batch, dim)),),
        embedding=Embedding(output, dim, options.pooling or "none", bool(options.normalize)),
        preprocess=feeding.preprocess,
        limits=Limits({axis: (min(values), max(values)) for axis, values in feeding.sizes.items()}),
        provenance={"kind": KIND, "name": path.stem, "weights_sha256": _folder.digest_of([path]), "notes": notes},
    )
    license_path = _folder.license_file(_home(path))
    return Source(card, None, feeding.make, feeding.sizes, feeding.files, license_path, ready)


def _require_file(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise SourceError(f"there is no file '{spec}'", hint="check the path")
    return path


def _home(path: Path) -> Path:
    """The folder of the tokenizer or processor: the model's own, or the one around a folder named onnx."""
    return path.parent.parent if path.parent.name == "onnx" else path.parent
