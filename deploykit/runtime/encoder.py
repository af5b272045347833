"""The encoder: raw inputs in, vectors out, through one opened variant."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, overload

import numpy as np

from deploykit.runtime import further
from deploykit.runtime.batching import Shape, cut, shape_of, spread
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import ON_GPU, Engine, Feeds
from deploykit.runtime.errors import CheckError, InputError
from deploykit.runtime.manifest import Card, Modality, TensorSpec, Variant
from deploykit.runtime.preprocess import Item, Preprocessor
from deploykit.runtime.selection import Report

# Items, and the places of their inputs in the caller's list.
Chunk = tuple[Sequence[int], list[Item]]

# Below a quarter of a batch (some 256 tokens) one batch on all cores is done before several streams would be: measured
# on two cores, equal at 16 short texts, a sixth slower at 32.
_MANY_FROM = 0.25


class Encoder:
    """An opened variant. `encode` may be called from several threads; `close`, or a ``with`` block, frees the
    engine.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        engine: Engine,
        preprocessor: Preprocessor,
        report: Report,
        lanes: int,
        open_whole: Callable[[], Engine] | None = None,
    ) -> None:
        """``open_whole`` opens the same variant with every output of its graph, where ``engine`` has fewer."""
        self.bundle = bundle
        self.variant = variant
        self._engine = engine
        self._preprocessor = preprocessor
        self._report = report
        self._open_whole, self._whole, self._lock = open_whole, None if open_whole else engine, threading.Lock()
        self._card: Card = bundle.manifest.card
        self._output = self._card.embedding.output
        self._dim = self._card.embedding.dim
        self._shape = partial(shape_of, self._card, variant.precision, lanes, gpu=variant.target in ON_GPU)
        self._default = self._shape()
        # (input, axis, name of the axis, smallest, largest), for each axis with proven bounds.
        self._bounds = [
            (spec.name, index, axis, *self._card.limits.axes[axis])
            for spec in self._card.inputs
            for index, axis in enumerate(spec.shape)
            if isinstance(axis, str) and axis in self._card.limits.axes
        ]

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `encode` can give: the embedding, then what was asked for beside it at the export."""
        return further.names(self._card)

    @property
    def modality(self) -> Modality:
        """What `encode` takes: text, image, audio or tensor."""
        return self._card.modality

    @property
    def effective(self) -> Mapping[str, Any]:
        """What the engine really runs: its version, device, precision, threads and streams."""
        return self._engine.effective

    def report(self) -> Report:
        """Which variant was chosen, why, and why not the others; ``str()`` of it is for people."""
        return self._report

    @overload
    def encode(
        self,
        inputs: Any,
        *,
        kind: str | None = None,
        output: None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        inputs: Any,
        *,
        kind: str | None = None,
        output: str,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]: ...

    def encode(
        self,
        inputs: Any,
        *,
        kind: str | None = None,
        output: str | None = None,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors, float32 ``[n, dim]``, in the order of ``inputs``; one alone gives ``[1, dim]``.

        ``inputs``: texts, images or waveforms as the modality says, one or a list; or a dict of ready tensors with a
        batch axis, named as the graph's inputs. A bare 2-d array of sound is a batch of waveforms: put a stereo
        recording in a list. ``kind`` picks a prompt (``query``). ``batch_tokens`` and ``batch_size`` bound a batch
        where the defaults do not suit. ``output`` is one of `outputs`: token vectors come as a list of float32
        ``[tokens, width]``, one array for each input, without those at padding. `InputError` names the first input that
        cannot be encoded.
        """
        for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", hint="give 1 or more, or leave it out")
        shape = self._default
        if batch_tokens is not None or batch_size is not None:
            shape = self._shape(batch_tokens, batch_size)
        if output is not None and output != self._output:
            return self._encode_further(inputs, kind, further.spec_of(self._card, output), shape)
        if isinstance(inputs, Mapping):
            return self._encode_ready(inputs, kind, shape)
        listed = _as_list(inputs, self._card.modality)
        if len(listed) == 1:
            return self._encode_one(listed, kind)
        return self._encode_list(listed, kind, shape)

    def close(self) -> None:
        """Free the engine; a closed encoder cannot encode."""
        self._engine.close()
        if self._whole is not None and self._whole is not self._engine:
            self._whole.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Encoder {self._card.name}@{self.variant.name}, {self._card.modality} → {self._dim}>"

    def _encode_one(self, inputs: Sequence[Any], kind: str | None) -> np.ndarray:
        """The low-latency way: nothing to sort, cut or gather."""
        feeds = self._preprocessor.collate(self._preprocessor.items(inputs, kind=kind))
        self._check_bounds(feeds)
        vectors = self._engine.run(feeds)[self._output]
        self._check_vectors(vectors, 1)
        return vectors

    def _encode_list(self, inputs: Sequence[Any], kind: str | None, shape: Shape) -> np.ndarray:
        """Chunk by chunk: a chunk is preprocessed and cut while batches of the chunk before still run."""
        result = np.empty((len(inputs), self._dim), np.float32)
        rows: list[Sequence[int]] = []
        chunks = self._chunks(inputs, kind, shape)
        first = next(chunks, None)
        if first is None:
            return result
        items = first[1]
        cost = sum(item.cost for item in items)
        if len(items) == len(inputs) and cost <= shape.budget.cost * _MANY_FROM and len(items) <= shape.budget.rows:
            batches = self._batches(self._preprocessor, [first], replace(shape, lanes=1), rows)
            outputs = [self._engine.run(feeds) for feeds in batches]
        else:
            everything = itertools.chain([first], chunks)
            outputs = self._engine.run_many(self._batches(self._preprocessor, everything, shape, rows))
        for indices, output in zip(rows, outputs, strict=True):
            vectors = output[self._output]
            self._check_vectors(vectors, len(indices))
            result[indices] = vectors
        return result

    def _chunks(self, inputs: Sequence[Any], kind: str | None, shape: Shape) -> Iterator[Chunk]:
        """Inputs preprocessed a chunk at a time, with their places. Texts go by length, which tokens nearly follow:
        longest first.
        """
        order: Sequence[int] = range(len(inputs))
        if self._card.modality == "text":
            _check_texts(inputs)
            order = sorted(order, key=lambda index: -len(inputs[index]))
        for start in range(0, len(inputs), shape.chunk):
            places = order[start : start + shape.chunk]
            try:
                items = self._preprocessor.items([inputs[place] for place in places], kind=kind)
            except InputError as error:
                if start == 0 and isinstance(order, range):
                    raise
                raise self._relocated(error, inputs, places, kind) from error
            yield places, items

    def _relocated(
        self, error: InputError, inputs: Sequence[Any], places: Sequence[int], kind: str | None
    ) -> InputError:
        """The same error with the place of the input in the caller's list: messages count within one chunk."""
        try:
            self._preprocessor.items([], kind=kind)
        except InputError as general:
            return general
        for place in sorted(places):
            try:
                self._preprocessor.items([inputs[place]], kind=kind)
            except InputError as single:
                where = f"of {len(inputs)} inputs, number {place} fails"
                return type(single)(f"{where}: {single.message}", hint=single.hint)
        return error

    def _batches(
        self, preprocessor: Preprocessor, chunks: Iterable[Chunk], shape: Shape, rows: list[Sequence[int]]
    ) -> Iterator[Feeds]:
        """The feeds of each batch; the caller's places of its rows are appended to ``rows`` in step."""
        for places, items in chunks:
            costs = [item.cost for item in items]
            keys = [() if shape.pads else tuple(t.shape for t in item.tensors.values()) for item in items]
            for batch in cut(costs, keys, spread(costs, shape.budget, shape.lanes)):
                feeds = preprocessor.collate([items[index] for index in batch])
                self._check_bounds(feeds)
                rows.append([places[index] for index in batch])
                yield feeds

    def _encode_ready(self, tensors: Mapping[str, Any], kind: str | None, shape: Shape) -> np.ndarray:
        """Ready tensors with a batch axis, of any modality: they go to the engine as they are, in slices of rows."""
        checked, items = self._ready(tensors, kind)
        rows: list[Sequence[int]] = []
        batches = self._batches(checked, [(range(len(items)), items)], shape, rows)
        result = np.empty((len(items), self._dim), np.float32)
        outputs = self._engine.run_many(batches) if len(items) > 1 else [self._engine.run(f) for f in batches]
        for indices, output in zip(rows, outputs, strict=True):
            self._check_vectors(output[self._output], len(indices))
            result[indices] = output[self._output]
        return result

    def _ready(self, tensors: Mapping[str, Any], kind: str | None) -> tuple[Preprocessor, list[Item]]:
        from deploykit.runtime.preprocess import tensors as ready

        if kind is not None:
            raise InputError("ready tensors take no prompt", hint="leave kind out, or pass raw inputs")
        checked = ready.Preprocessor(self._card.inputs, self._card.limits.axes)
        return checked, checked.items(tensors)

    def _encode_further(
        self, inputs: Any, kind: str | None, spec: TensorSpec, shape: Shape
    ) -> np.ndarray | list[np.ndarray]:
        """Another output than the embedding. Where no mask tells its padding, only inputs of one size share a batch."""
        masked = further.is_masked(self._card, spec)
        if len(spec.shape) == 3 and not masked:
            shape = replace(shape, pads=False)
        preprocessor = self._preprocessor
        if isinstance(inputs, Mapping):
            preprocessor, items = self._ready(inputs, kind)
            chunks: Iterator[Chunk] = iter([(range(len(items)), items)])
            count = len(items)
        else:
            listed = _as_list(inputs, self._card.modality)
            chunks, count = self._chunks(listed, kind, shape), len(listed)
        places: list[Sequence[int]] = []
        masks: list[np.ndarray | None] = []

        def batches() -> Iterator[Feeds]:
            for feeds in self._batches(preprocessor, chunks, shape, places):
                masks.append(feeds[further.MASK] if masked else None)
                yield feeds

        engine = self._open()
        answers = engine.run_many(batches()) if count > 1 else [engine.run(feeds) for feeds in batches()]
        found: dict[int, np.ndarray] = {}
        for rows, mask, answer in zip(places, masks, answers, strict=True):
            array = answer[spec.name]
            self._check(array, further.fits(spec, array, len(rows)), f"{[len(rows), *spec.shape[1:]]} of '{spec.name}'")
            found.update(zip(rows, further.rows(array, mask), strict=True))
        ordered = [found[place] for place in range(count)]
        if len(spec.shape) == 3:
            return ordered
        return np.stack(ordered) if ordered else np.empty((0, *spec.shape[1:]), np.float32)  # type: ignore[arg-type]

    def _open(self) -> Engine:
        """The engine with all outputs, opened when it is first needed: it holds the weights once more."""
        with self._lock:
            if self._whole is None:
                assert self._open_whole is not None
                self._whole = self._open_whole()
            return self._whole

    def _check_bounds(self, feeds: Feeds) -> None:
        for name, index, axis, low, high in self._bounds:
            size = feeds[name].shape[index]
            if not low <= size <= high:
                raise InputError(
                    f"an input has {axis} {size}, and {low} to {high} was proven for this encoder",
                    hint="cut or pad the input, or export the encoder with other limits",
                )

    def _check_vectors(self, vectors: np.ndarray, count: int) -> None:
        """A vector of another shape, or with NaN in it, must never reach an index."""
        self._check(vectors, vectors.shape == (count, self._dim), f"{[count, self._dim]}")

    def _check(self, array: np.ndarray, fits: bool, wanted: str) -> None:
        if not fits:
            raise CheckError(
                f"variant '{self.variant.name}' returned {list(array.shape)} instead of {wanted}",
                hint="run `deploykit bundle selftest`, and load another variant",
            )
        if not np.isfinite(array).all():
            raise CheckError(
                f"variant '{self.variant.name}' returned values that are not finite",
                hint="check the input for NaN; else run `deploykit bundle selftest`, and load another variant",
            )


def _check_texts(inputs: Sequence[Any]) -> None:
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise InputError(f"input {index} is a {type(text).__name__}, not a text", hint="pass strings")


def _as_list(inputs: Any, modality: Modality) -> Sequence[Any]:
    """The inputs one by one: what is a single text, image or waveform becomes a list of one."""
    if modality == "audio" and isinstance(inputs, tuple) and len(inputs) == 2 and np.ndim(inputs[1]) == 0:
        # One waveform with its sampling rate.
        return [inputs]
    if isinstance(inputs, list | tuple):
        return inputs
    if isinstance(inputs, str | bytes | bytearray | memoryview | PathLike):
        return [inputs]
    if isinstance(inputs, np.ndarray) and modality in ("image", "audio"):
        # A batch has one axis more than an image [H, W] or [H, W, C], or than a waveform [samples].
        batched = inputs.ndim > (3 if modality == "image" else 1)
        return list(inputs) if batched else [inputs]
    if isinstance(inputs, Iterable):
        return list(inputs)
    return [inputs]
