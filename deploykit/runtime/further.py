"""Further outputs of a graph beside the embedding: which there are, and the rows of one batch without its padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deploykit.runtime.errors import InputError, nearest
from deploykit.runtime.manifest import Card, TensorSpec

MASK = "attention_mask"


def names(card: Card) -> tuple[str, ...]:
    """The outputs that an encoder gives: its embedding first."""
    own = card.embedding.output
    return (own, *(spec.name for spec in card.outputs if spec.name != own))


def embedding_alone(card: Card) -> Card:
    """The card of an engine that hands out the embedding and nothing else, whatever the graph gives beside it."""
    return replace(card, outputs=tuple(spec for spec in card.outputs if spec.name == card.embedding.output))


def spec_of(card: Card, name: str) -> TensorSpec:
    """The output of that name; `InputError` lists what there is where it is absent."""
    for spec in card.outputs:
        if spec.name == name:
            return spec
    have = names(card)
    told = nearest(name, list(have)) if len(have) > 1 else "it was exported with its embedding alone: leave output out"
    raise InputError(f"there is no output '{name}'", hint=told)


def is_masked(card: Card, spec: TensorSpec) -> bool:
    """Whether the encoder's mask marks the padding among the token vectors of an output: it has their axis."""
    masks = [given.shape for given in card.inputs if given.name == MASK]
    return len(spec.shape) == 3 and any(len(shape) == 2 and shape[1] == spec.shape[1] for shape in masks)


def fits(spec: TensorSpec, array: np.ndarray, count: int) -> bool:
    """Whether an engine's answer has the shape that the card promises for ``count`` inputs."""
    sizes = zip(spec.shape[1:], array.shape[1:], strict=True) if array.ndim == len(spec.shape) else [(0, 1)]
    return array.shape[:1] == (count,) and all(isinstance(axis, str) or axis == size for axis, size in sizes)


def rows(array: np.ndarray, mask: np.ndarray | None) -> Sequence[np.ndarray]:
    """One array for each input of a batch: a vector, or its token vectors without those at padding."""
    if mask is None or array.ndim < 3:
        return list(array)
    return [row[marks > 0] for row, marks in zip(array, mask, strict=True)]
