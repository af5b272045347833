"""``.onnx``: a model that is ONNX already; it is its own reference in the proof.

A tokenizer.json beside it makes it a text encoder, image processor files an image encoder; else it takes ready tensors.
Pooling, truncation and normalisation that are asked for are appended to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.runtime.manifest import Card, Embedding, Limits, Modality, TensorSpec
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._assemble import middle, truncated
from deploykit.sources._options import only

if TYPE_CHECKING:
    import numpy as np
    import torch

    from deploykit.sources import _limits

Runs = Callable[[Mapping[str, "np.ndarray"]], bool]
"""Whether the graph runs on these inputs."""

KIND = "onnx"

_TAKEN_BY_TENSORS = ("pooling", "normalize", "dim", "preprocess")
_TAKEN = (*_TAKEN_BY_TENSORS, "max_length", "prompts")
_MASK = "attention_mask"
_TEXT_INPUTS = {"input_ids", _MASK, "token_type_ids"}
_SIZES = (1, 2, 7, 16, 32, 64, 128, 224)


@dataclass(frozen=True)
class Feeding:
    """How the model is fed: what kind of input, preprocessing, and inputs to prove with."""

    modality: Modality
    specs: tuple[TensorSpec, ...]
    preprocess: dict[str, Any]
    make: Callable[[int, Mapping[str, int], int], dict[str, torch.Tensor]]
    sizes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    """Check the model, find its embedding, append what was asked for, and run it once."""
    from deploykit.sources import _onnx_graph as graph

    path = _require_file(spec)
    only(options, _TAKEN, f"{path.name} is an ONNX model")
    model = graph.load(path)
    specs = graph.inputs_of(model, path.name)
    output = graph.output_of(model, options, path.name)
    run = graph.runner(path, output, path.name)
    feeding = _feeding(_home(path), specs, options, lambda feeds: graph.succeeds(partial(run, feeds)))
    options = _renormalized(path, output, feeding, options)
    name = "sentence_embedding" if feeding.modality == "text" else f"{feeding.modality}_embedding"
    taken = {n for node in model.graph.node for n in node.output} - {output}
    if name in taken or (name == output and (options.pooling or options.dim or options.normalize)):
        name = f"final_{name}"
    if name == output and len(model.graph.output) == 1 and not (options.dim or options.normalize):
        ready = path
    else:
        ready = graph.save(graph.extend(model, output, name, options))
    return _finish(path, ready, feeding, name, options)


def _renormalized(path: Path, output: str, feeding: Feeding, options: Options) -> Options:
    """The options, with normalisation where the model's own vectors are cut and have length 1."""
    from deploykit.sources import _onnx_graph as graph

    if options.dim is None or options.pooling not in (None, "none", "pooler"):
        return options
    import torch

    from deploykit.sources._encoders import renormalized

    sizes = {axis: middle(values) for axis, values in feeding.sizes.items()}
    feeds = {key: tensor.numpy() for key, tensor in feeding.make(3, sizes, 0).items()}
    return renormalized(options, lambda: torch.from_numpy(graph.runner(path, output, path.name)(feeds)))


def _finish(path: Path, ready: Path, feeding: Feeding, output: str, options: Options) -> Source:
    """Run the model, drop sizes that it refuses, and write the card."""
    import numpy as np

    from deploykit.sources import _onnx_graph as graph

    run = graph.runner(ready, output, path.name)

    def vectors(sizes: Mapping[str, int], batch: int = 1) -> np.ndarray:
        return run({key: tensor.numpy() for key, tensor in feeding.make(batch, sizes, 0).items()})

    sizes = dict(feeding.sizes)
    if feeding.modality == "tensor" and sizes:
        working = [n for n in _SIZES if graph.succeeds(partial(vectors, dict.fromkeys(sizes, n)))]
        if not working:
            vectors(dict.fromkeys(sizes, _SIZES[3]))
        sizes = {axis: tuple(working) for axis in sizes}
    got = vectors({axis: options_of[-1] for axis, options_of in sizes.items()}, batch=2)
    if got.ndim != 2 or got.shape[0] != 2 or not np.isfinite(got).all():
        hint = "choose a pooling, or another output"
        raise SourceError(f"{path.name} gives {list(got.shape)} for a batch of 2, or NaN, not [2, dim]", hint=hint)
    dim = int(got.shape[1])
    notes = [truncated(path.name, options.dim, dim, bool(options.normalize))] if options.dim else []
    notes += feeding.notes
    card = Card(
        name=path.stem,
        modality=feeding.modality,
        inputs=feeding.specs,
        outputs=(TensorSpec(output, "float32", ("batch", dim)),),
        embedding=Embedding(output, dim, options.pooling or "none", bool(options.normalize)),
        preprocess=feeding.preprocess,
        limits=Limits({axis: (min(values), max(values)) for axis, values in sizes.items()}),
        provenance={"kind": KIND, "name": path.stem, "weights_sha256": _folder.digest_of([path]), "notes": notes},
    )
    license_path = _folder.license_file(_home(path))
    return Source(card, None, feeding.make, sizes, feeding.files, license_path, ready)


def _require_file(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise SourceError(f"there is no file '{spec}'", hint="check the path")
    return path


def _home(path: Path) -> Path:
    """The folder of the tokenizer or processor: the model's own, or the one around a folder named onnx."""
    return path.parent.parent if path.parent.name == "onnx" else path.parent


def _feeding(home: Path, specs: tuple[TensorSpec, ...], options: Options, runs: Runs) -> Feeding:
    names = {spec.name for spec in specs}
    if options.preprocess == "none":
        only(options, _TAKEN_BY_TENSORS, "the bundle takes ready tensors")
        return _tensors(specs)
    if "input_ids" in names and (home / "tokenizer.json").exists():
        return _text(home, specs, options, runs)
    only(options, _TAKEN_BY_TENSORS, f"there is no tokenizer.json in {home}")
    processors = ("preprocessor_config.json", "processor_config.json")
    if names == {"pixel_values"} and any((home / name).exists() for name in processors):
        return _image(home, specs[0])
    return _tensors(specs)


def _text(home: Path, specs: tuple[TensorSpec, ...], options: Options, runs: Runs) -> Feeding:
    from deploykit.sources import _limits, _padding
    from deploykit.sources import _text as text

    extra = sorted({spec.name for spec in specs} - _TEXT_INPUTS)
    if extra:
        hint = "export it again with input_ids, attention_mask and token_type_ids alone"
        raise SourceError(f"the model takes {', '.join(extra)}, which no tokenizer gives", hint=hint)
    tokenizer = text.read_tokenizer(home, options)
    width = _padding.width_of_graph(home, specs)
    given = replace(text.text_input(tokenizer, None, False, width or 1), prompts=dict(options.prompts or {}))
    given = replace(given, fixed=width is not None, masked=_MASK in {spec.name for spec in specs})

    def make(batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        import torch

        tensors = given.make(batch, sizes, seed)
        tensors.setdefault(_MASK, torch.ones_like(tensors["input_ids"]))
        tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
        return {spec.name: tensors[spec.name].to(getattr(torch, spec.dtype)) for spec in specs}

    def works(length: int) -> bool:
        return runs({name: tensor.numpy() for name, tensor in make(1, {"length": length}, 0).items()})

    if width is not None and options.max_length not in (None, width):
        fact = f"max_length {options.max_length} is not possible: every text is padded to {width} tokens"
        raise SourceError(fact, hint="leave it out")
    length = _limits.Length(width) if width else _length(home, tokenizer, options, works)
    given = replace(given, max_length=length.tokens, notes=length.notes)
    files = {text.TOKENIZER: given.tokenizer}
    return Feeding("text", specs, given.preprocess(), make, given.sizes(None), files, given.notes)


def _length(home: Path, tokenizer: Any, options: Options, works: Callable[[int], bool]) -> _limits.Length:
    """As the files say; never more than the graph runs on, which is tried out."""
    from deploykit.sources import _limits

    declared = home / "sentence_bert_config.json"
    limit = _folder.read_table(declared).get("max_seq_length") if declared.exists() else None
    settings = home / "config.json"
    trained = _folder.read_table(settings).get("max_position_embeddings") if settings.exists() else None
    said = _limits.said_by_files(tokenizer) | _limits.truncation_inside(home)
    wanted = _limits.decide(options, limit, said, _limits.Bound(trained=trained))
    if works(wanted.tokens):
        return wanted
    low, high = 0, wanted.tokens
    while high - low > 1:
        middle_length = (low + high) // 2
        low, high = (middle_length, high) if works(middle_length) else (low, middle_length)
    if low == 0:
        return wanted  # what is wrong is not the length, and is said when the model is run
    return _limits.decide(options, limit, said, _limits.Bound(low, f"the model runs on {low} tokens at most", trained))


def _image(home: Path, spec: TensorSpec) -> Feeding:
    from deploykit.sources._image import pixels
    from deploykit.sources._processors import image_preprocess

    processing = image_preprocess(home)
    taken = processing.inputs[0]
    fixed = [(a, b) for a, b in zip(spec.shape, taken.shape, strict=True) if isinstance(a, int) and a != b]
    if fixed or any(isinstance(axis, str) for axis in taken.shape[1:]):
        hint = "the processor's files belong to another model, or leave the size open"
        raise SourceError(f"the model takes {spec.shape}, and its processor makes {taken.shape}", hint=hint)
    return Feeding(
        "image", (taken,), processing.preprocess, lambda b, s, seed: {spec.name: pixels(taken, b, s, seed)}, {}
    )


def _tensors(specs: tuple[TensorSpec, ...]) -> Feeding:
    import torch

    from deploykit.sources._tensors import TensorInput

    examples = {}
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        examples[spec.name] = (
            torch.tensor([-1.0, 1.0]).to(dtype) if dtype.is_floating_point else torch.tensor([0, 1]).to(dtype)
        )
    axes = {axis for spec in specs for axis in spec.shape[1:] if isinstance(axis, str)}
    return Feeding(
        "tensor", specs, {"kind": "none"}, TensorInput(specs, examples).make, dict.fromkeys(sorted(axes), _SIZES)
    )
