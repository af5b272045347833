"""Where two readings of one raw input part: decoding, preprocessing or tokens, hidden states, pooling or head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.judge import Library, Raw
from deploykit.runtime.encoder import Encoder
from deploykit.runtime.preprocess import Item, Preprocessor

_CLOSE = 1e-3
"""Of tensors with values about 1: both resize with Pillow and take spectra in float32."""
_SAME = 0.9999
_IDS, _MASK = "input_ids", "attention_mask"


@dataclass(frozen=True)
class Ours:
    """Our side: the encoder that users run, its preprocessor, and the hidden states of the exported module.

    ``hidden`` maps feeds to the last hidden state [1, …], or None where there is none; it is called on failure alone.
    """

    encoder: Encoder
    preprocessor: Preprocessor
    prompts: Mapping[str, str]
    hidden: Callable[[Mapping[str, np.ndarray]], np.ndarray | None]

    def items(self, raw: Raw, value: Any = None) -> list[Item]:
        """The preprocessed input; ``value`` stands in for what ``raw`` names."""
        return self.preprocessor.items([raw.value if value is None else value], kind=raw.prompt)

    def feeds(self, raw: Raw, value: Any = None) -> dict[str, np.ndarray]:
        """The tensors of the input alone."""
        return self.preprocessor.collate(self.items(raw, value))


def first_difference(library: Library, ours: Ours, raw: Raw, want: np.ndarray) -> tuple[str, str]:
    """(the first place at which the two sides differ on ``raw``, what differs there).

    ``want`` is the library's vector. A place that the library does not show is passed over.
    """
    alone = np.asarray(ours.encoder.encode([raw.value], kind=raw.prompt)[0], np.float64)
    if _cosine(alone, want) >= _SAME and np.isclose(np.linalg.norm(alone), np.linalg.norm(want), rtol=_CLOSE):
        return "batching", "encoded alone, the vector is right: what shares its batch changes it"
    if _cosine(alone, want) >= _SAME:
        return "the scale of the vector", "its direction is right and its L2 norm is not: a normalization or a factor"
    feeds = ours.feeds(raw)
    for place, found in (
        ("decoding", _of_decoding(library, ours, raw, feeds)),
        ("tokens" if _IDS in feeds else "preprocessing", _of_tensors(library, raw, feeds)),
        ("the hidden states", _of_hidden(library, ours, raw, feeds)),
    ):
        if found:
            return place, found
    return "the pooling or the head behind it", "what the model is given and its last hidden state are the same"


def _of_decoding(library: Library, ours: Ours, raw: Raw, feeds: Mapping[str, np.ndarray]) -> str:
    """The file by our decoder and by the library's, both through our preprocessing."""
    decoded = library.decoded(raw)
    if decoded is None:
        return ""
    again = ours.feeds(raw, decoded)
    differing = next((name for name in feeds if not _close(feeds[name], again[name])), None)
    if differing is None:
        return ""
    return f"the library reads {_shape(decoded)} from the file, and '{differing}' made of that is another"


def _of_tensors(library: Library, raw: Raw, feeds: Mapping[str, np.ndarray]) -> str:
    theirs = library.tensors(raw)
    if _IDS in feeds and _IDS in theirs:
        return _of_ids(_tokens(theirs), _tokens(feeds))
    for name, have in feeds.items():
        want = theirs.get(name)
        if want is not None and not _close(have, want):
            if have.shape != want.shape:
                return f"'{name}' is {list(have.shape)}, expected {list(want.shape)}"
            off = np.abs(have.astype(np.float64) - want)
            return f"'{name}' differs by {off.max():.3g} at most, {off.mean():.3g} in the mean"
    return ""


def _of_ids(want: list[int], have: list[int]) -> str:
    if want == have:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(want, have, strict=False)) if a != b), min(len(want), len(have)))
    return (
        f"{len(have)} of them, expected {len(want)}; from token {place} on {have[place : place + 5]}, "
        f"expected {want[place : place + 5]}"
    )


def _of_hidden(library: Library, ours: Ours, raw: Raw, feeds: Mapping[str, np.ndarray]) -> str:
    try:
        want, have = library.hidden(raw), ours.hidden(feeds)
    except Exception:  # a side that cannot show its hidden states shows none
        return ""
    if want is None or have is None:
        return ""
    want, have = (np.asarray(array, np.float64) for array in (want, have))
    if want.shape != have.shape:
        return f"{list(have.shape)}, expected {list(want.shape)}"
    cosine = _cosine(have.reshape(-1), want.reshape(-1))
    return "" if cosine >= _SAME else f"cosine {cosine:.5f} over {list(want.shape)}"


def _tokens(tensors: Mapping[str, np.ndarray]) -> list[int]:
    """The ids that the mask leaves; all where there is no mask."""
    ids = tensors[_IDS][0]
    mask = tensors.get(_MASK)
    return [int(i) for i in (ids if mask is None else ids[mask[0] > 0])]


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms and one.shape == other.shape else float("nan")


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=_CLOSE, atol=_CLOSE)


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"
