"""Both sides over the raw inputs, row by row: agreement in figures, or a `ProofError` that says where it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploykit.errors import CheckError, InputError, ProofError
from deploykit.judge import Library, Raw, first_line, where
from deploykit.judge.where import Ours

COSINE, SCALE = 0.9999, 1e-3
"""The lowest cosine of a row to the library's vector, and how far its L2 norm may be off, as a share."""
_ANSWERS = 3
"""Answers of the library to one input, to see whether it draws random numbers."""


@dataclass(frozen=True)
class Row:
    """One input that both sides answered: the vectors as float64 [dim]."""

    raw: Raw
    theirs: np.ndarray
    ours: np.ndarray

    @property
    def cosine(self) -> float:
        """1 where both are zero, NaN where one is, or where the dimensions differ."""
        if self.theirs.shape != self.ours.shape:
            return float("nan")
        norms = float(np.linalg.norm(self.theirs) * np.linalg.norm(self.ours))
        if not norms:
            return 1.0 if not self.theirs.any() and not self.ours.any() else float("nan")
        return float(self.theirs @ self.ours) / norms

    @property
    def scale(self) -> float:
        """How far our L2 norm is off theirs, as a share of theirs."""
        norm = float(np.linalg.norm(self.theirs))
        return abs(float(np.linalg.norm(self.ours)) - norm) / norm if norm else 0.0

    @property
    def agrees(self) -> bool:
        """Both figures inside; NaN never is."""
        return self.cosine >= COSINE and self.scale <= SCALE


def judge(library: Library, ours: Ours, raws: Sequence[Raw]) -> dict[str, Any]:
    """The record of the manifest.

    Raises `ProofError` for a row that disagrees, or a prompt that we lack. An input that the library cannot run, or
    answers differently each time, is left out, and so is one that we refuse with an `InputError`: both are listed.
    """
    _refuse_lost_prompts(library, ours)
    theirs, left_out = _answers(raws, library.encode)
    mine, refused = _encoded([raw for raw in raws if raw in theirs], ours)
    rows = [Row(raw, theirs[raw], mine[raw]) for raw in raws if raw in mine]
    failed = []
    for row in rows:
        if row.agrees:
            continue
        if _draws(library, row.raw):
            left_out[row.raw] = "the library gives another vector each time"
        else:
            failed.append(row)
    rows = [row for row in rows if row.raw not in left_out]
    if failed:
        raise _disagreement(library, ours, failed, len(rows))
    said = {
        "library": library.name,
        "version": library.version,
        "call": library.call,
        "inputs": len(raws),
        "compared": len(rows),
        "overridden": list(library.overridden),
        "left_out": _listed(left_out),
        "refused": _listed(refused),
    }
    if not rows:
        reasons = [*left_out.values(), *refused.values()]
        return {"judged": False, "reason": f"none of the {len(raws)} inputs can be compared: {reasons[0]}", **said}
    worst = min(rows, key=lambda row: row.cosine)
    figures = {"cosine_min": worst.cosine, "worst": worst.raw.name, "scale_max": max(row.scale for row in rows)}
    return {"judged": True, **said, **figures, "allowed": {"cosine": COSINE, "scale": SCALE}}


def _answers(raws: Sequence[Raw], encode: Callable[[Raw], np.ndarray]) -> tuple[dict[Raw, np.ndarray], dict[Raw, str]]:
    """The library's vectors, and the inputs that it cannot run with the reason."""
    found, left_out = {}, {}
    for raw in raws:
        try:
            vector = encode(raw)
        except Exception as error:  # the library's own limits: it raises anything
            left_out[raw] = first_line(error)
            continue
        if np.isfinite(vector).all():
            found[raw] = vector
        else:
            left_out[raw] = "the library gives NaN or infinity"
    return found, left_out


def _encoded(raws: Sequence[Raw], ours: Ours) -> tuple[dict[Raw, np.ndarray], dict[Raw, str]]:
    """Our vectors, many at once as users ask for them, and the inputs that are refused with the reason."""
    found: dict[Raw, np.ndarray] = {}
    refused: dict[Raw, str] = {}
    for prompt in dict.fromkeys(raw.prompt for raw in raws):
        group = [raw for raw in raws if raw.prompt == prompt]
        for raw in group:
            try:
                ours.items(raw)
            except InputError as error:
                refused[raw] = error.message
        kept = [raw for raw in group if raw not in refused]
        try:
            vectors: Sequence[np.ndarray] = list(ours.encoder.encode([raw.value for raw in kept], kind=prompt))
        except CheckError as error:
            error.hint = "the library gives finite vectors for the same inputs"
            raise
        found |= {raw: np.asarray(vector, np.float64) for raw, vector in zip(kept, vectors, strict=True)}
    return found, refused


def _draws(library: Library, raw: Raw) -> bool:
    """Whether the library answers the same input differently each time, further apart than a row may be."""
    first, *others = (library.encode(raw) for _ in range(_ANSWERS))
    return not all(Row(raw, first, other).agrees for other in others)


def _refuse_lost_prompts(library: Library, ours: Ours) -> None:
    """Prompts that are empty change nothing: the library has some of these for every folder."""
    lost = [name for name, text in library.prompts.items() if text and name not in ours.prompts]
    if lost:
        raise ProofError(
            f"{library.name} {library.version} has the prompt '{lost[0]}' for this folder, and the export has none",
            hint=_HINT,
        )


_HINT = (
    "the folder was read otherwise than by its own library: report it with the folder's JSON files; "
    "judge = false under [proof] (--no-judge) hands the bundle over all the same, which its manifest records"
)


def _disagreement(library: Library, ours: Ours, failed: Sequence[Row], count: int) -> ProofError:
    worst = min(failed, key=lambda row: (not np.isnan(row.cosine), row.agrees, row.cosine))
    norms = f"L2 norm {np.linalg.norm(worst.ours):.5g}, expected {np.linalg.norm(worst.theirs):.5g}"
    sizes = f"{len(worst.ours)} dimensions, expected {len(worst.theirs)}"
    figures = f"cosine {worst.cosine:.5f}, {norms}" if worst.ours.shape == worst.theirs.shape else sizes
    place, fact = where.first_difference(library, ours, worst.raw, worst.theirs)
    return ProofError(
        f"the exported encoder disagrees with {library.name} {library.version} on {len(failed)} of {count} raw inputs "
        f"({library.call}); the worst is {worst.raw.name}: {figures}. It begins at {place}: {fact}",
        hint=_HINT,
    )


def _listed(found: Mapping[Raw, str]) -> list[dict[str, str]]:
    return [{"input": raw.name, "reason": reason} for raw, reason in found.items()]
