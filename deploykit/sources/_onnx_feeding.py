"""How an ONNX model is fed: by a tokenizer or an image processor beside it, else with preprocessed tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import SourceError
from deploykit.runtime.manifest import Modality, TensorSpec
from deploykit.sources import Options, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    import torch

    from deploykit.sources import _limits
    from deploykit.sources._onnx_body import Graph, Original

Runs = Callable[[Mapping[str, np.ndarray]], bool]
"""Whether the graph runs on these inputs."""

TAKEN_BY_TENSORS = ("pooling", "normalize", "dim", "preprocess", "bind", "output_name", "axes", "example")
TAKEN = (*TAKEN_BY_TENSORS, "max_length", "prompts")
# Weights that are looked at for the width of an input whose axes are all dynamic.
_WIDTHS, _WIDEST = 12, 8192
_MASK = "attention_mask"
_TEXT_INPUTS = {"input_ids", _MASK, "token_type_ids"}


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


def feeding_of(
    home: Path, specs: tuple[TensorSpec, ...], options: Options, graph: Graph, original: Original
) -> Feeding:
    """Look beside the model for what preprocesses. Raises `SourceError` for options that do not fit what was found."""
    names = {spec.name for spec in specs}
    if options.preprocess == "none":
        only(options, TAKEN_BY_TENSORS, "the bundle takes preprocessed tensors")
        return _tensors(specs, options, graph, original)
    if "input_ids" in names and (home / "tokenizer.json").exists():
        return _text(home, specs, options, partial(_runs, original))
    only(options, TAKEN_BY_TENSORS, f"there is no tokenizer.json in {home}")
    processors = ("preprocessor_config.json", "processor_config.json")
    if names == {"pixel_values"} and any((home / name).exists() for name in processors):
        return _image(home, specs[0])
    return _tensors(specs, options, graph, original)


def _runs(original: Original, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        original.rows(feeds)
    except SourceError:
        return False
    return True


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


def _tensors(specs: tuple[TensorSpec, ...], options: Options, graph: Graph, original: Original) -> Feeding:
    """Preprocessed tensors: the user's own examples if there are any, and sizes that the model was seen to take."""
    from deploykit.sources import _axes, _examples, _onnx_ports
    from deploykit.sources._tensors import TensorInput

    pool = None if options.example is None else _examples.read(options.example, specs)
    examples = _values(specs, graph)
    names = sorted({axis for spec in specs for axis in spec.shape[1:] if isinstance(axis, str)})
    given = _axes.asked(options.axes, names, _onnx_ports.symbols(list(graph.inputs)))
    tried = TensorInput(specs, examples, pool).make

    def works(sizes: Mapping[str, int]) -> str:
        if not given and _elements(specs, sizes) > _axes.ELEMENTS:
            return "too large to try"
        try:
            answer = original.rows({key: tensor.numpy() for key, tensor in tried(1, sizes, 0).items()})
        except SourceError as error:
            return error.message
        return "" if np.isfinite(answer).all() else "NaN or infinity"

    base = None if pool is None else _examples.sizes_of(pool, specs)
    found = _axes.find(names, given, works, base, _widths(graph)) if names else {}
    fixed = {axis: sizes[0] for axis, sizes in found.items() if len(sizes) == 1}
    specs = tuple(replace(s, shape=tuple(fixed.get(str(axis), axis) for axis in s.shape)) for s in specs)
    notes = [f"the axis {axis} has one size: {size}" for axis, size in fixed.items()]
    sizes = {axis: tried_sizes for axis, tried_sizes in found.items() if axis not in fixed}
    notes += [f"sizes of {a}: {s[0]} to {s[-1]}" + _more(a) for a, s in sizes.items() if a not in given]
    make = TensorInput(specs, examples, pool).make
    return Feeding("tensor", specs, {"kind": "none"}, make, sizes, notes=tuple(notes))


def _elements(specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> int:
    """Elements of the largest input, an integer counted as what it stands for."""
    from deploykit.sources._axes import ELEMENTS_OF_ID

    return max(
        math.prod(sizes[a] if isinstance(a, str) else a for a in spec.shape[1:])
        * (ELEMENTS_OF_ID if spec.dtype.startswith(("int", "uint")) else 1)
        for spec in specs
    )


def _more(axis: str) -> str:
    return f" were found by trying; other bounds: --axis {axis}=LOW:HIGH"


def _values(specs: tuple[TensorSpec, ...], graph: Graph) -> dict[str, torch.Tensor]:
    """Examples that show the range of each input: N(0, 1) for floats, the rows of the table for what indexes one."""
    import torch

    from deploykit.sources._onnx_ranges import integer_ranges

    ranges = integer_ranges(graph.model)
    examples = {}
    for spec in specs:
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point:
            examples[spec.name] = torch.tensor([-1.0, 1.0]).to(dtype)
        else:
            usual = (0, 255) if spec.dtype == "uint8" else (0, 1)
            examples[spec.name] = torch.tensor(ranges.get(spec.name, usual)).to(dtype)
    return examples


def _widths(graph: Graph) -> list[int]:
    """Sizes that an input may have to fit the first weights of the graph."""
    found = [3, 1]
    for tensor in graph.model.graph.initializer:
        if len(tensor.dims) > 1:
            found += [int(dim) for dim in tensor.dims]
    return list(dict.fromkeys(n for n in found if 0 < n <= _WIDEST))[:_WIDTHS]
