"""The raw inputs of the self-test with the reference vectors for them, made while torch is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.write import INPUTS_ARRAYS, INPUTS_TEXT, write_selftest
from deploykit.data import tokens
from deploykit.errors import SourceError
from deploykit.graph.prove import LONG_TOKENS, Case, Feeds
from deploykit.runtime.batching import shape_of
from deploykit.runtime.manifest import Card
from deploykit.runtime.preprocess import Preprocessor, open_preprocessor
from deploykit.sources import Source

_COUNT = {"text": 12, "image": 4, "audio": 4, "tensor": 3}
# Unusual input that tokenizers treat differently from version to version.
_ODD_TEXTS = ("", "naïve café — ¿qué? 東京 🙂", "WORD " * 600)


def write(source: Source, run: Callable[[Feeds], np.ndarray], out: Path) -> list[Case]:
    """Write inputs and reference below ``out``; returns them as cases of the proof.

    ``run`` maps feeds to the reference embedding, float32 [batch, dim].
    """
    inputs = raw_inputs(source)
    if source.card.modality == "tensor":
        feeds = [{name: array[i : i + 1] for name, array in inputs.items()} for i in range(_COUNT["tensor"])]
    else:
        preprocessor = open_preprocessor(source.card, out)
        inputs = _with_tokens(preprocessor, inputs) if source.card.modality == "text" else inputs
        feeds = [preprocessor.collate(preprocessor.items([item])) for item in inputs]
    cases = [Case(_where(source.card, batch), batch, run(batch)) for batch in feeds]
    write_selftest(out, source.card.modality, inputs, np.concatenate([case.reference for case in cases]))
    if any("mask" in spec.name for spec in source.card.inputs) and source.card.modality == "text":
        # Together they are padded, as they are when many are encoded; long ones are proven so with fewer rows.
        short = [item for item in preprocessor.items(inputs) if item.cost <= LONG_TOKENS]
        together = preprocessor.collate(short)
        cases.append(Case(_where(source.card, together), together, run(together)))
    return cases


def _with_tokens(preprocessor: Preprocessor, texts: Sequence[str]) -> list[str]:
    """The texts that have tokens; `SourceError` where none has: nothing could be proven with real texts then."""
    kept = [texts[place] for place in tokens.places_with_tokens(preprocessor, texts)]
    if not kept:
        raise SourceError(
            "the tokenizer makes no token of any English sentence that the self-test holds",
            hint="does it belong to the model? without an unknown token it has nothing for words that it does not know",
        )
    return kept


def inputs_name(card: Card) -> str:
    """The name of the inputs' file in the bundle."""
    return INPUTS_TEXT if card.modality == "text" else INPUTS_ARRAYS


def raw_inputs(source: Source) -> Any:
    """Texts, images or waveforms of the builtin sets; for a tensor source the source's own example tensors."""
    from deploykit.data import builtin

    modality = source.card.modality
    count = _COUNT[modality]
    if modality == "text":
        texts = builtin.sentences().inputs
        return [*texts[:: max(1, len(texts) // (count - len(_ODD_TEXTS)))][: count - len(_ODD_TEXTS)], *_ODD_TEXTS]
    if modality == "image":
        return list(builtin.images().inputs[:count])
    if modality == "audio":
        return builtin.fitted(builtin.tones().inputs[:count], *source.card.limits.axes.get("samples", (1, 2**31)))
    sizes = {axis: options[len(options) // 2] for axis, options in source.sizes.items()}
    return {name: np.asarray(tensor) for name, tensor in source.make_inputs(count, sizes, 1).items()}


def latency_feeds(card: Card, folder: Path) -> dict[str, Mapping[str, np.ndarray]]:
    """The workloads that variants are compared on: one input, and a batch of 32 of like length.

    Of large preprocessed tensors it has as many as an encoder puts into one batch.
    """
    if card.modality == "tensor":
        with np.load(folder / INPUTS_ARRAYS, allow_pickle=False) as arrays:
            one = {name: arrays[name][:1] for name in arrays.files}
        if any(isinstance(spec.shape[0], int) for spec in card.inputs):  # it takes no other batch
            return {"single": one}
        rows = _rows(card, one)
        return {"single": one, "batch": {name: np.repeat(array, rows, axis=0) for name, array in one.items()}}
    preprocessor = open_preprocessor(card, folder)
    inputs = _typical(card, folder)
    return {"single": _collate(preprocessor, inputs[:1]), "batch": _collate(preprocessor, inputs)}


def _rows(card: Card, one: Mapping[str, np.ndarray]) -> int:
    budget = shape_of(card, "fp32", 1).budget
    return max(1, min(budget.rows, budget.cost // max(array.size for array in one.values())))


def _typical(card: Card, folder: Path) -> list[Any]:
    """32 inputs: texts of 10 to 30 words, or the stored images or waveforms over and over."""
    from deploykit.data import builtin

    if card.modality == "text":
        texts = [text for text in builtin.sentences().inputs if 10 <= len(text.split()) <= 30]
        texts = _with_tokens(open_preprocessor(card, folder), texts)
        return [texts[i % len(texts)] for i in range(32)]
    with np.load(folder / INPUTS_ARRAYS, allow_pickle=False) as arrays:
        stored = [arrays[name] for name in sorted(arrays.files)]
    return [stored[i % len(stored)] for i in range(32)]


def _collate(preprocessor: Preprocessor, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    return preprocessor.collate(preprocessor.items(inputs))


def _where(card: Card, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes of the dynamic axes of these feeds."""
    sizes: dict[str, int] = {}
    for spec in card.inputs:
        for axis, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if isinstance(axis, str):
                sizes[axis] = size
    return sizes
