"""The inputs that variants are calibrated on and judged by, preprocessed once, with the fp32 model's answers.

Three sets, each a list of `Case`, one file pair each:

- ``calibration``: one input a case, at its real length, nothing padded; no reference.
- ``evaluation``: batches of inputs of like length, none of which was calibrated on (unless there are too few).
- ``lengths``: real text cut to every length up to 64 and some above. Kernels are chosen by size, and one that is
  wrong at a single length is not found by any test at other lengths.

The reference is the portable fp32 model in ONNX Runtime, which was proven against torch when it was exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from deploykit import data
from deploykit.data import Dataset, builtin, coverage, tokens
from deploykit.errors import InputError
from deploykit.graph.prove import Case, Feeds, write_cases
from deploykit.runtime.batching import shape_of
from deploykit.runtime.manifest import Card
from deploykit.runtime.preprocess import Item, Preprocessor, open_preprocessor

CALIBRATION, EVALUATION, LENGTHS = "calibration", "evaluation", "lengths"
_BUILTIN = {"text": "builtin:sentences", "image": "builtin:images", "audio": "builtin:tones"}
_SWEEP = (*range(1, 65), 96, 128, 192, 256)
_SWEEP_ROWS = 4
_BATCH = 16
_TOO_FEW_HELD_OUT = 32
_MAX_BYTES = 256 * 2**20
_SHOWN = 120

Reference = Callable[[Feeds], np.ndarray]


@dataclass(frozen=True)
class Chosen:
    """Inputs of one data set with their places in it, and the items that they became."""

    dataset: Dataset
    places: list[int]
    items: list[Item]


def write(options: Mapping[str, Any], card: Card, exported: Path, reference: Reference, out: Path) -> dict[str, Any]:
    """Write the three sets below ``out``; returns what they hold, for the audit trail, with notes for the user.

    ``options``: ``calibration`` and ``evaluation`` (data specs, or empty), ``calibrates`` (whether anything is
    calibrated, else the first set is empty), ``calibration_samples`` and ``evaluation_samples``, ``unreadable`` (the
    share of inputs of the first set that may be skipped, with a note), ``skip`` (patterns of file names that are left
    out of it). `InputError` for data of another modality, without any input, or with more that cannot be read.
    """
    given, notes = _read(options, card)
    if given is None:
        for name in (CALIBRATION, EVALUATION, LENGTHS):
            write_cases([], out, name)
        return {"notes": notes}
    preprocessor = open_preprocessor(card, exported)
    count = options["calibration_samples"] if options["calibrates"] else 0
    given = _readable(_with_tokens(given[0], preprocessor), options, preprocessor, notes), given[1]
    given = given[0], None if given[1] is None else _with_tokens(given[1], preprocessor)
    open_to = _open_to_calibration(given[0]) if given[1] is None else list(range(len(given[0])))
    calibration, how = _calibration(given[0], open_to, count, preprocessor, reference)
    evaluation = _evaluation(given, calibration, options["evaluation_samples"], preprocessor, notes)
    alone = [preprocessor.collate([item]) for item in calibration.items]
    write_cases([Case(_sizes(card, feeds), feeds, np.empty(0)) for feeds in alone], out, CALIBRATION)
    batches = _batches(evaluation.items, card, preprocessor)
    write_cases([_answered(card, feeds, reference) for _, feeds in batches], out, EVALUATION)
    order = [place for places, _ in batches for place in places]
    _write_inputs(evaluation, order, out, notes)
    sweep = _sweep(card, given[0], preprocessor)
    write_cases([_answered(card, feeds, reference) for feeds in sweep], out, LENGTHS)
    return {
        **({"calibration": _facts(calibration) | {"chosen": how}} if calibration.items else {}),
        "evaluation": _facts(evaluation),
        "lengths": len(sweep),
        "notes": notes,
    }


def read_inputs(folder: Path) -> dict[str, list[Any]]:
    """What `write` kept of the evaluation inputs, in the order of the cases' rows: inputs, sizes, labels, pairs."""
    found: dict[str, list[Any]] = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    return found


def _read(options: Mapping[str, Any], card: Card) -> tuple[tuple[Dataset, Dataset | None] | None, list[str]]:
    """The data to calibrate on and, where it is given apart, to evaluate on; None where there is none at all."""
    notes: list[str] = []
    if not options["calibration"] and not options["evaluation"] and card.modality not in _BUILTIN:
        return None, ["there is no builtin data of ready tensors: nothing is calibrated, and drift is not measured"]
    calibration = None
    if options["calibration"]:
        calibration = _without(_dataset(options["calibration"], card), options.get("skip", ()))
    evaluation = _dataset(options["evaluation"], card) if options["evaluation"] else None
    if calibration is None:
        if card.modality not in _BUILTIN:
            assert evaluation is not None
            return (evaluation, None), notes
        own = _BUILTIN[card.modality]
        calibration = _dataset(own, card)
        if options["calibrates"]:
            notes.append(
                f"no calibration data was given: {own} stands in, which is not your data; ranges taken from it may "
                "not fit yours. Give some hundred of your own inputs (--calibration FILE)"
            )
    return (calibration, evaluation), notes


def _dataset(spec: str, card: Card) -> Dataset:
    found = data.read(spec)
    if found.modality != card.modality:
        raise InputError(
            f"the encoder takes {card.modality}, and '{spec}' holds {found.modality}",
            hint=f"give data of that kind, or try {_BUILTIN.get(card.modality, 'an .npz of tensors')}",
        )
    if spec == _BUILTIN["audio"] and "samples" in card.limits.axes:
        found = replace(found, inputs=tuple(builtin.fitted(found.inputs, *card.limits.axes["samples"])))
    if card.modality == "text":
        kept = [i for i, text in enumerate(found.inputs) if str(text).strip()]
        if not kept:
            raise InputError(f"'{spec}' holds only blank texts", hint="give a file with a text on each line")
        found = found.subset(kept)
    return found


def _without(dataset: Dataset, patterns: Sequence[str]) -> Dataset:
    """The data without the files whose names fit one of the patterns; inputs that are no files stay."""
    if not patterns:
        return dataset
    names = [item.name if isinstance(item, Path) else "" for item in dataset.inputs]
    kept = [i for i, name in enumerate(names) if not any(fnmatch(name, pattern) for pattern in patterns)]
    if not kept:
        hint = "leave calibration.skip out, or name other data"
        raise InputError(f"all files of '{dataset.name}' fit {', '.join(patterns)} and are left out", hint=hint)
    return dataset.subset(kept)


def _with_tokens(dataset: Dataset, preprocessor: Preprocessor) -> Dataset:
    """The data without texts of which the tokenizer makes nothing: they have no vector."""
    if dataset.modality != "text":
        return dataset
    kept = tokens.places_with_tokens(preprocessor, dataset.inputs)
    if not kept:
        hint = "the tokenizer does not know their words: give texts like those that the encoder was trained on"
        raise InputError(f"no text of '{dataset.name}' gives a token", hint=hint)
    return dataset if len(kept) == len(dataset) else dataset.subset(kept)


def _readable(dataset: Dataset, options: Mapping[str, Any], preprocessor: Preprocessor, notes: list[str]) -> Dataset:
    """The data without what cannot be read, as far as it will be looked at; all of it where nothing may miss."""
    if not options.get("unreadable"):
        return dataset
    most = 20 * options["calibration_samples"] + options["evaluation_samples"]
    places = coverage.evenly(most, len(dataset)) if dataset.pairs is None else list(range(len(dataset)))
    kept, faults = [], []
    for place in places:
        try:
            _items(preprocessor, dataset, [place])
            kept.append(place)
        except InputError as error:
            faults.append(error.message)
    if len(faults) > options["unreadable"] * len(places):
        raise InputError(
            f"{len(faults)} of {len(places)} inputs of '{dataset.name}' cannot be read; the first: {faults[0]}",
            hint="repair or remove them, or raise calibration.unreadable",
        )
    notes += [f"skipped, because it cannot be read: {fault}" for fault in faults]
    return dataset.subset(kept)


def _open_to_calibration(dataset: Dataset) -> list[int]:
    """The inputs of which some may be calibrated on: all, but of scored pairs every second one is held out whole."""
    held = {place for a, b, _ in (dataset.pairs or ())[1::2] for place in (a, b)}
    left = [place for place in range(len(dataset)) if place not in held]
    return left if min(len(left), len(held)) >= _TOO_FEW_HELD_OUT else list(range(len(dataset)))


def _calibration(
    dataset: Dataset, open_to: Sequence[int], count: int, preprocessor: Preprocessor, reference: Reference
) -> tuple[Chosen, str]:
    if not count:
        return Chosen(dataset, [], []), "none"
    pool = [open_to[i] for i in coverage.evenly(20 * count, len(open_to))]
    items = _items(preprocessor, dataset, pool)

    def embed(places: Sequence[int]) -> np.ndarray:
        return np.concatenate([reference(preprocessor.collate([items[place]])) for place in places])

    size = max(1, sum(array.nbytes for array in items[0].tensors.values()))
    chosen, how = coverage.choose([item.cost for item in items], min(count, max(8, _MAX_BYTES // size)), embed)
    return Chosen(dataset, [pool[i] for i in chosen], [items[i] for i in chosen]), how


def _evaluation(
    given: tuple[Dataset, Dataset | None], calibration: Chosen, count: int, preprocessor: Preprocessor, notes: list[str]
) -> Chosen:
    """Inputs to judge by: from data of their own, else those that were not calibrated on."""
    if given[1] is not None:
        dataset = given[1]
        left = list(range(len(dataset)))
    else:
        dataset = given[0]
        seen = set(calibration.places)
        left = [place for place in range(len(dataset)) if place not in seen]
        if seen and len(left) < _TOO_FEW_HELD_OUT:
            left = list(range(len(dataset)))
            notes.append(
                f"drift is measured on the {len(left)} inputs that were calibrated on: too few are left otherwise. "
                "Give more calibration data, or evaluation data of its own (--evaluation FILE)"
            )
    places = left if dataset.pairs is not None else [left[i] for i in coverage.evenly(count, len(left))]
    size = max(1, sum(array.nbytes for array in _items(preprocessor, dataset, places[:1])[0].tensors.values()))
    places = places[: max(_TOO_FEW_HELD_OUT, _MAX_BYTES // size)] if dataset.pairs is None else places
    return Chosen(dataset, places, _items(preprocessor, dataset, places))


def _items(preprocessor: Preprocessor, dataset: Dataset, places: Sequence[int]) -> list[Item]:
    if dataset.modality == "tensor":
        stacked = {name: np.stack([dataset.inputs[p][name] for p in places]) for name in dataset.inputs[0]}
        return preprocessor.items(stacked)  # type: ignore[arg-type]
    return preprocessor.items([dataset.inputs[place] for place in places])


def _batches(items: Sequence[Item], card: Card, preprocessor: Preprocessor) -> list[tuple[list[int], Feeds]]:
    """Batches of inputs of like size, with the places of their rows."""
    shape = shape_of(card, "fp32", 1, batch_size=_BATCH)
    pads, rows = shape.pads, shape.budget.rows
    order = sorted(range(len(items)), key=lambda i: (items[i].cost, i))
    batches: list[tuple[list[int], Feeds]] = []
    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        if items[group[0]].cost == items[group[-1]].cost or pads:
            batches.append((group, preprocessor.collate([items[i] for i in group])))
        else:
            batches += [([i], preprocessor.collate([items[i]])) for i in group]
    return batches


def _sweep(card: Card, dataset: Dataset, preprocessor: Preprocessor) -> list[Feeds]:
    """Real text cut to each length: ``_SWEEP_ROWS`` rows from different places of the data.

    Lengths at which nothing but the tokenizer's own frame is left are not text: they are proven, and have no drift.
    """
    if card.modality != "text" or not any("length" in spec.shape for spec in card.inputs):
        return []
    _, longest = card.limits.axes.get("length", (1, max(_SWEEP)))
    frame = tokens.count(preprocessor, "")
    sizes = [size for size in _SWEEP if frame < size <= longest]
    texts = [str(text) for text in dataset.inputs]
    items = []
    for start in coverage.evenly(_SWEEP_ROWS, len(texts)):
        item = preprocessor.items([_from(texts, start)])[0]
        items.append(item)
    sizes = [size for size in sizes if all(item.cost >= size for item in items)]
    return [_stacked([preprocessor.collate([_cut(item, card, size)]) for item in items]) for size in sizes]


def _from(texts: Sequence[str], start: int) -> str:
    """Texts from ``start`` on (round the end), joined until they surely fill the longest length."""
    words: list[str] = []
    for step in range(len(texts)):
        words += texts[(start + step) % len(texts)].split()
        if len(words) >= 2 * max(_SWEEP):
            break
    return " ".join(words[: 2 * max(_SWEEP)])


def _cut(item: Item, card: Card, size: int) -> Item:
    """The first ``size`` tokens, the last of them replaced by the text's last, which closes it."""
    axes = {spec.name: spec.shape for spec in card.inputs}
    tensors = {}
    for name, tensor in item.tensors.items():
        axis = axes[name].index("length") - 1
        keep = [*range(size - 1), tensor.shape[axis] - 1] if size > 1 else [0]
        tensors[name] = np.take(tensor, keep, axis=axis)
    return Item(tensors, size)


def _stacked(rows: Sequence[Feeds]) -> Feeds:
    """Batches of one and the same size as one batch; `collate` would round the length up."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _answered(card: Card, feeds: Feeds, reference: Reference) -> Case:
    return Case(_sizes(card, feeds), dict(feeds), reference(feeds))


def _sizes(card: Card, feeds: Feeds) -> dict[str, int]:
    """The sizes of the dynamic axes of these feeds."""
    pairs = [(spec.shape, feeds[spec.name].shape) for spec in card.inputs]
    return {axis: n for shape, have in pairs for axis, n in zip(shape, have, strict=True) if isinstance(axis, str)}


def _write_inputs(evaluation: Chosen, order: Sequence[int], out: Path, notes: list[str]) -> None:
    """What was evaluated, in the order of the cases' rows: for people (text or file), and its labels and scores."""
    dataset = evaluation.dataset
    rank = {evaluation.places[place]: row for row, place in enumerate(order)}
    kept: dict[str, Any] = {
        "inputs": [_shown(dataset.inputs[evaluation.places[place]], evaluation.places[place]) for place in order],
        "sizes": [evaluation.items[place].cost for place in order],
    }
    if dataset.labels is not None:
        kept["labels"] = [_plain(dataset.labels[evaluation.places[place]]) for place in order]
    if dataset.pairs is not None:
        pairs = [(rank[a], rank[b], score) for a, b, score in dataset.pairs if a in rank and b in rank]
        if pairs:
            kept["pairs"] = pairs
        else:
            notes.append(
                f"no scored pair of '{dataset.name}' has both its inputs left to judge by: the task is not measured. "
                "Give more pairs, or evaluation data of its own (--evaluation FILE)"
            )
    (out / "inputs.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def _shown(item: Any, place: int) -> str:
    if isinstance(item, str | Path):
        text = str(item)
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f"input {place}"


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _facts(chosen: Chosen) -> dict[str, Any]:
    """Name, number, sizes and digest of what was chosen."""
    digest = hashlib.sha256()
    for item in chosen.items:
        for name, array in item.tensors.items():
            digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    sizes = sorted(item.cost for item in chosen.items)
    return {
        "data": chosen.dataset.name,
        "samples": len(chosen.items),
        "of": len(chosen.dataset),
        "sizes": {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]},
        "digest": digest.hexdigest(),
    }
