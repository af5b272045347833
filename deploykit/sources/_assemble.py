"""The last step of every source: run the module, learn what it gives, write the card.

`Parts` is what a kind of source found out; `assemble` checks it by running it, so that a model that cannot be an
encoder is refused here with its reason and not in the middle of an export.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.runtime.manifest import Card, Embedding, Limits, Modality, TensorSpec
from deploykit.sources import Source
from deploykit.sources._checkpoint import first_line
from deploykit.sources._further import switch_on

if TYPE_CHECKING:
    import torch
    from torch import nn

MakeInputs = Callable[[int, Mapping[str, int], int], "dict[str, torch.Tensor]"]

# A padded row whose cosine to the same input alone is not above this would fail the proof of fp32 (0.99999); the sums
# of a padded batch alone, in another order, stay far above.
UNCHANGED = 0.999995


@dataclass(frozen=True)
class Parts:
    """Everything about an encoder but its output. ``pooling`` is a word for people.

    ``unpadded`` gives the same encoder without a mask, for one whose vectors padding changes; it raises `SourceError`
    where that cannot be. ``outputs`` are asked for beside the embedding (`deploykit.sources._further`).
    """

    name: str
    modality: Modality
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    make_inputs: MakeInputs
    sizes: Mapping[str, tuple[int, ...]]
    preprocess: dict[str, Any]
    pooling: str
    normalized: bool
    provenance: dict[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    license: Path | None = None
    unpadded: Callable[[], tuple[tuple[TensorSpec, ...], MakeInputs]] | None = None
    outputs: tuple[str, ...] = ()


def assemble(parts: Parts, missing: Mapping[str, torch.Tensor] | None = None) -> Source:
    """A `Source`, after one forward pass at batch 2.

    Raises `SourceError` when the output is no embedding [batch, dim], is not finite, differs from run to run, or hangs
    on one of the ``missing`` weights, which are random.
    """
    output_name = "sentence_embedding" if parts.modality == "text" else f"{parts.modality}_embedding"
    inputs = parts.make_inputs(2, {axis: middle(sizes) for axis, sizes in parts.sizes.items()}, 0)
    vectors = run(parts, inputs)
    if vectors.ndim != 2 or vectors.shape[0] != 2:
        raise SourceError(
            f"{parts.name} gives {list(vectors.shape)} for a batch of 2, not [2, dim]",
            hint="choose a pooling: mean, cls, last, max, mean_sqrt_len or weighted_mean",
        )
    _check_deterministic(parts, inputs, vectors)
    if missing:
        refuse_missing(missing, lambda: run(parts, inputs), parts.name)
    dim, requests = int(vectors.shape[1]), parts.outputs
    parts, padding = _without_padding(parts)
    notes = [*_truncation_note(parts, dim), *padding]
    further = switch_on(parts, requests)
    card = Card(
        name=parts.name,
        modality=parts.modality,
        inputs=parts.inputs,
        outputs=(TensorSpec(output_name, "float32", ("batch", dim)), *further),
        embedding=Embedding(output_name, dim, parts.pooling, parts.normalized),
        preprocess=parts.preprocess,
        limits=Limits({axis: (min(sizes), max(sizes)) for axis, sizes in parts.sizes.items()}),
        provenance={**parts.provenance, "notes": [*parts.provenance.get("notes", []), *notes]},
    )
    return Source(card, parts.module, parts.make_inputs, parts.sizes, parts.files, parts.license)


def checked(source: Source, missing: Mapping[str, torch.Tensor]) -> Source:
    """The source itself, unless its embedding hangs on weights that are missing (`SourceError`)."""
    import torch

    module = source.module
    assert module is not None
    inputs = source.make_inputs(2, {axis: middle(sizes) for axis, sizes in source.sizes.items()}, 0)

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            vectors: torch.Tensor = module(**inputs)
        return vectors

    if missing:
        refuse_missing(missing, encode, source.card.name)
    return source


def run(parts: Parts, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One forward pass; whatever the module raises becomes a `SourceError`."""
    import torch

    with explained(parts.name, inputs), torch.inference_mode():
        vectors: torch.Tensor = parts.module(**inputs)
    return vectors


@contextmanager
def explained(name: str, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Turn whatever a model raises on its inputs into a `SourceError` that names their shapes."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in inputs.items())
        raise SourceError(
            f"{name} fails on {shapes}: {type(error).__name__}: {first_line(error)}",
            hint="its own files describe these inputs: where it needs others too, wrap it as py:package.module:factory",
        ) from error


def _check_deterministic(parts: Parts, inputs: Mapping[str, torch.Tensor], vectors: torch.Tensor) -> None:
    import torch

    if not torch.isfinite(vectors).all():
        raise SourceError(f"{parts.name} gives NaN or infinity", hint="the weights or the masking are broken")
    if not torch.allclose(vectors, run(parts, inputs), rtol=1e-3, atol=1e-4):
        raise SourceError(
            f"{parts.name} gives other vectors for the same input on a second run",
            hint="it draws random numbers in forward (masking, noise): switch that off in its config",
        )


def _truncation_note(parts: Parts, dim: int) -> list[str]:
    """A sentence for the user where the vectors are truncated; `SourceError` where there is nothing to cut off."""
    from deploykit.graph.pooling import Truncate

    cut = next((module for module in parts.module.modules() if isinstance(module, Truncate)), None)
    if cut is None or (cut.at_most and dim < cut.dim):
        return []
    return [truncated(parts.name, cut.dim, dim, parts.normalized)]


def truncated(name: str, asked: int, dim: int, normalized: bool) -> str:
    """The note of an embedding cut to ``asked`` numbers, which came out with ``dim``.

    Raises `SourceError` when the model gives fewer than were asked for.
    """
    if dim < asked:
        raise SourceError(
            f"{name} cannot keep {asked} numbers of a vector: its vectors have {dim}",
            hint=f"give a dim of 1 to {dim}, or leave it out",
        )
    again = ", at length 1 again" if normalized else ""
    return f"vectors are the model's first {dim} numbers{again}: as good as all only if it was trained for that"


def _without_padding(parts: Parts) -> tuple[Parts, list[str]]:
    """The parts to go on with, and a sentence for the user where padding changes the vectors.

    Then nothing is padded, where the encoder can do without: a vector must not depend on what else is in its batch.
    """
    if all(len(sizes) == 1 for sizes in parts.sizes.values()):
        return parts, []  # every input is padded to the same size, whatever stands beside it
    cosine = _padded_cosine(parts)
    if cosine > UNCHANGED:
        return parts, []
    found = f"padding changes its vectors (cosine {cosine:.4f} on a random input)"
    if parts.unpadded is None:
        return parts, [f"{found}: batch inputs of equal length"]
    inputs, make_inputs = parts.unpadded()
    plain = replace(parts, inputs=inputs, make_inputs=make_inputs, unpadded=None)
    return plain, [f"{found}, so nothing is padded: only inputs of equal length share a batch"]


def _padded_cosine(parts: Parts) -> float:
    """The worst cosine of a padded row to the same input alone, over three sizes; 1 where nothing is padded."""
    import torch

    worst, shortest = 1.0, min(map(min, parts.sizes.values()), default=1)
    for share in (0.0, 0.5, 1.0):
        inputs = parts.make_inputs(2, {axis: _padded_size(sizes, share) for axis, sizes in parts.sizes.items()}, 0)
        mask = inputs.get("attention_mask")
        if mask is None or bool(mask[1].all()):
            continue
        kept = mask[1].nonzero().flatten()
        if len(kept) < shortest:
            continue
        alone = {
            name: tensor[1:2].index_select(1, kept) if tensor.shape[:2] == mask.shape else tensor[1:2]
            for name, tensor in inputs.items()
        }
        padded, single = run(parts, inputs)[1:2].double(), run(parts, alone).double()
        worst = min(worst, torch.nn.functional.cosine_similarity(padded, single).item())
    return worst


def _padded_size(sizes: Sequence[int], share: float) -> int:
    """A size of which a padded row, about half as large, is one that the model takes too."""
    candidates = [size for size in sorted(sizes) if size >= max(4, 2 * min(sizes))] or [max(sizes)]
    return candidates[round(share * (len(candidates) - 1))]


def refuse_missing(missing: Mapping[str, torch.Tensor], encode: Callable[[], torch.Tensor], name: str) -> None:
    """`SourceError` naming the missing weights that the embedding depends on.

    Which ones matter is tried out: a head or pooler that is not used may be missing, an encoder layer may not.
    """
    if not depends_on(list(missing.values()), encode):
        return
    guilty = []
    for key, tensor in missing.items():
        if depends_on([tensor], encode):
            guilty.append(key)
        if len(guilty) == 3:
            break
    listed = ", ".join(guilty or list(missing)[:3])
    raise SourceError(
        f"the checkpoint of {name} lacks weights that decide the embedding ({listed}, …): they are random now",
        hint="the folder holds another architecture's weights, or only a part of them",
    )


def depends_on(tensors: Sequence[torch.Tensor], encode: Callable[[], torch.Tensor]) -> bool:
    """Whether the result of ``encode`` changes when these weights do; they are put back."""
    import torch

    before = encode()
    saved = [tensor.clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors:
            noise = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.add_(noise.to(tensor.dtype))
        try:
            changed = not torch.allclose(before, encode(), rtol=1e-4, atol=1e-6, equal_nan=True)
        finally:
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
    return changed


def middle(sizes: Sequence[int]) -> int:
    """A size to try first: the second smallest above 3, so that one pass is cheap and no axis is 1."""
    above = sorted(size for size in sizes if size > 3) or [max(sizes)]
    return above[min(1, len(above) - 1)]
