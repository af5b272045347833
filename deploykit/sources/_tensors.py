"""Encoders that come with example tensors and nothing else: names, dynamic axes and inputs to prove with.

Importing this module imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options, Source, _axes, _examples
from deploykit.sources._assemble import Parts, assemble, explained
from deploykit.sources._encoders import Head, Named, only_tensor, renormalized, stages
from deploykit.sources._options import only

_MASK = "attention_mask"
_AXES = {2: ("length",), 3: ("length", "axis2"), 4: ("axis1", "height", "width")}
"""Names of the axes behind the batch, by rank."""


@dataclass(frozen=True)
class TensorInput:
    """Named tensors like the examples, at any batch size and any size of the dynamic axes.

    ``pool`` are real inputs, which then are taken as they are: cut or repeated where another size is wanted.
    """

    specs: tuple[TensorSpec, ...]
    examples: Mapping[str, Tensor]
    pool: Mapping[str, np.ndarray] | None = None

    def make(self, batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Values drawn from the range of the examples; an ``attention_mask`` pads every row but the first."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for spec in self.specs:
            shape = [batch, *(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape[1:])]
            if self.pool is not None:
                tensors[spec.name] = torch.from_numpy(_examples.rows(self.pool[spec.name], shape, seed * batch))
            elif spec.name == _MASK:
                tensors[spec.name] = _mask(shape, self.examples[spec.name].dtype)
            else:
                tensors[spec.name] = _like(self.examples[spec.name], shape, generator)
        return tensors


def _mask(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    batch, length = shape
    counts = torch.tensor([max(1, length - (row * length) // batch) for row in range(batch)])
    return (torch.arange(length).unsqueeze(0) < counts.unsqueeze(1)).to(dtype)


def _like(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if example.is_floating_point():
        spread = example.float().std(unbiased=False).clamp(min=1e-3) if example.numel() > 1 else torch.tensor(1.0)
        noise = torch.randn(list(shape), generator=generator)
        return (example.float().mean() + spread * noise).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, list(shape), generator=generator).to(example.dtype)


def name_examples(body: nn.Module, examples: Any) -> dict[str, Tensor]:
    """Examples by the names of the arguments that they are for."""
    if isinstance(examples, Mapping):
        named = {str(name): value for name, value in examples.items()}
    else:
        given = (examples,) if isinstance(examples, Tensor) else tuple(examples)
        parameters = [
            p.name for p in inspect.signature(body.forward).parameters.values() if p.kind is not p.VAR_KEYWORD
        ]
        if len(given) > len(parameters):
            hint = f"forward takes {', '.join(parameters) or 'nothing'}"
            raise SourceError(f"there are {len(given)} example inputs", hint=hint)
        named = dict(zip(parameters, given, strict=False))
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or value.numel() == 0:
            hint = "every input is a tensor with the batch as its first axis"
            raise SourceError(f"the example for '{name}' is {type(value).__name__}, not a filled tensor", hint=hint)
    if not named:
        raise SourceError("there are no example inputs", hint="give a tuple or a dict of tensors")
    return named


def open_tensors(
    body: nn.Module,
    examples: Mapping[str, Tensor],
    options: Options,
    name: str,
    provenance: dict[str, Any],
    *,
    fixed: bool = False,
) -> Source:
    """A source of modality tensor around a module; its dynamic axes are found by trying other sizes.

    ``fixed``: only the batch may vary.
    """
    only(options, ("pooling", "normalize", "dim", "preprocess", "axes", "example"), f"{name} takes ready tensors")
    pooled = options.pooling not in (None, "none")
    with explained(name, examples), torch.inference_mode():
        output = only_tensor(body(**examples))
    if output.ndim == 3 and not pooled:
        raise SourceError(f"{name} gives token vectors [batch, length, width]", hint="choose a pooling, such as mean")
    if not pooled:
        options = renormalized(options, lambda: output)
    modes = [options.pooling] if pooled and options.pooling else []
    head = Head(modes, stages(options, bool(options.normalize)))
    module = Named(body, list(examples), head, keywords=list(examples)).eval()
    # Judged before vectors are cut: behind that, an axis that makes them longer could not be told.
    whole = Named(body, list(examples), Head(modes, []), keywords=list(examples)).eval()
    sizes = {} if fixed else _dynamic_axes(name, whole, examples, options.axes)
    specs = tuple(_spec(key, value, sizes) for key, value in examples.items())
    pool = None if options.example is None else _examples.read(options.example, specs)
    return assemble(
        Parts(
            name=name,
            modality="tensor",
            module=module,
            inputs=specs,
            make_inputs=TensorInput(specs, examples, pool).make,
            sizes=sizes,
            preprocess={"kind": "none"},
            pooling=options.pooling or "none",
            normalized=bool(options.normalize),
            provenance=provenance,
        )
    )


def _axis_names(tensor: Tensor) -> tuple[str, ...]:
    return _AXES.get(tensor.ndim, tuple(f"axis{i}" for i in range(1, tensor.ndim)))


def _spec(name: str, example: Tensor, sizes: Mapping[str, Sequence[int]]) -> TensorSpec:
    named = zip(_axis_names(example), example.shape[1:], strict=True)
    shape = tuple(axis if axis in sizes else int(size) for axis, size in named)
    return TensorSpec(name, str(example.dtype).removeprefix("torch."), ("batch", *shape))


def _dynamic_axes(
    name: str, module: nn.Module, examples: Mapping[str, Tensor], axes: Mapping[str, str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Axes whose size may change, with sizes that were seen to work; the embedding's shape must stay.

    Axes of one name and one size in several inputs change together (ids and their mask). ``axes`` are sizes asked for
    by axis (`_axes.asked`); else they grow from the example's as far as a proof stays quick.
    """
    with explained(name, examples), torch.inference_mode():
        want = module(**examples).shape
    candidates: dict[str, set[int]] = {}
    for example in examples.values():
        for axis, size in zip(_axis_names(example), example.shape[1:], strict=True):
            candidates.setdefault(axis, set()).add(int(size))
    dynamic = {}
    for axis, found in candidates.items():
        if len(found) != 1:
            continue
        (size,) = found
        trials = sorted({1, 2, 7, size, size + 1, 2 * size})
        working = [trial for trial in trials if _works(module, examples, axis, trial, want)]
        if size + 1 in working and 2 * size in working:
            dynamic[axis] = tuple(n for n in working if n != size + 1)
    given = _axes.asked(axes, dynamic, {})

    elements = max(
        example[0].numel() * (1 if example.is_floating_point() else _axes.ELEMENTS_OF_ID)
        for example in examples.values()
    )
    factor = (_axes.ELEMENTS / elements) ** (1 / max(1, len(dynamic)))  # by which all axes together may grow

    def reaching(axis: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
        most = int(sizes[-1] // 2 * factor)
        return _reaching(axis, sizes, given.get(axis), most, lambda n: _works(module, examples, axis, n, want))

    return {axis: reaching(axis, sizes) for axis, sizes in dynamic.items()}


def _reaching(
    axis: str, sizes: tuple[int, ...], given: range | None, most: int, works: Callable[[int], bool]
) -> tuple[int, ...]:
    """The sizes out to those that were asked for, else as far as they grow below ``most``."""
    if given is None:
        return tuple(sorted({*sizes, _axes.grow(sizes[-1], works, most)}))
    for size in (given[0], given[-1]):
        if not works(size):
            raise SourceError(
                f"the model fails at {axis} {size}, which was asked for", hint="ask for sizes that it takes"
            )
    return tuple(sorted({given[0], *(n for n in sizes if n in given), given[-1]}))


def _works(module: nn.Module, examples: Mapping[str, Tensor], axis: str, size: int, want: torch.Size) -> bool:
    try:
        with torch.inference_mode():
            got = module(**{name: _resized(value, axis, size) for name, value in examples.items()})
    except Exception:
        return False
    return bool(got.shape == want) and bool(torch.isfinite(got).all())


def _resized(example: Tensor, axis: str, size: int) -> Tensor:
    names = _axis_names(example)
    if axis not in names:
        return example
    dim = names.index(axis) + 1
    return example.index_select(dim, torch.arange(size) % example.shape[dim])
