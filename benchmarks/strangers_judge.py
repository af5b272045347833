"""The verdict on one row of `benchmarks.strangers`, from what the command and the bundle did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RIGHT, REFUSED, WRONG, TRACEBACK, UNMADE = "right", "refused with a fix", "WRONG", "TRACEBACK", "not made"
VERDICTS = (RIGHT, REFUSED, WRONG, TRACEBACK, UNMADE)
LARGEST_SCALE_ERROR = 1e-3
"""How far a row's norm may be from the library's, relative: a lost normalization does not show in a cosine."""

_ARROW = "→"
_TRACE = "Traceback (most recent call last)"
_BUGS = ("this is a bug in deploykit", "the log below says where")
"""What the command says in the place of a fix if something unforeseen ended it, or one of its steps."""


@dataclass(frozen=True)
class Verdict:
    """How one row ended; ``cosine`` is the worst over all rows of all calls that could be compared."""

    result: str
    why: str = ""
    cosine: float | None = None


@dataclass(frozen=True)
class Answer:
    """What one call of `encode` gave: vectors, or an error with its hint, or an error that is not deploykit's own."""

    ended: str
    vectors: np.ndarray | None = None
    message: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the original library gave for the same call; None where it gives nothing, and a refusal is right."""

    vectors: np.ndarray | None
    least: float


def of_export(code: int | None, log: str) -> Verdict | None:
    """The verdict where the command wrote no bundle; None where it did. ``code`` None: it had to be stopped."""
    if code is None:
        return Verdict(TRACEBACK, "the export did not end in time")
    if _TRACE in log:
        lines = [line for line in log.splitlines() if line.strip()]
        return Verdict(TRACEBACK, lines[-1].strip()[:400])
    if code == 0:
        return None
    lines = [line.strip() for line in log.splitlines()]
    fix = next((index for index, line in enumerate(lines) if line.startswith(_ARROW)), None)
    if fix is None or code < 0 or any(words in log for words in _BUGS):
        told = next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no output")
        return Verdict(TRACEBACK, f"ended with code {code} and no fix: {told[:400]}")
    before = next((line for line in reversed(lines[:fix]) if line), "")
    return Verdict(REFUSED, f"{before} {lines[fix]}"[:600])


def of_calls(wanted: Sequence[Wanted], answers: Sequence[Answer]) -> Verdict:
    """The verdict on a bundle that was written: its worst call decides, and a refusal counts before a right one."""
    if not wanted:
        return Verdict(WRONG, "was exported, and only a refusal is right")
    found = [of_call(want, answer) for want, answer in zip(wanted, answers, strict=True)]
    cosines = [verdict.cosine for verdict in found if verdict.cosine is not None]
    worst = max(found, key=lambda verdict: (TRACEBACK, WRONG, REFUSED, RIGHT)[::-1].index(verdict.result))
    return Verdict(worst.result, worst.why, min(cosines) if cosines else None)


def of_call(wanted: Wanted, answer: Answer) -> Verdict:
    """The verdict on one call."""
    if answer.ended == "traceback":
        return Verdict(TRACEBACK, f"encode: {answer.message}")
    if answer.ended == "error":
        if answer.hint:
            return Verdict(REFUSED, f"encode: {answer.message} {_ARROW} {answer.hint}"[:600])
        return Verdict(TRACEBACK, f"encode: {answer.message}, and no fix")
    if wanted.vectors is None:
        return Verdict(WRONG, "was encoded, and only a refusal is right")
    assert answer.vectors is not None
    return compare(wanted.vectors, answer.vectors, wanted.least)


def compare(expected: np.ndarray, got: np.ndarray, least: float) -> Verdict:
    """Rows against rows: shape, finiteness, worst cosine, then the scale."""
    if expected.shape != got.shape:
        return Verdict(WRONG, f"gives {list(got.shape)}, expected {list(expected.shape)}")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(b).all():
        return Verdict(WRONG, "gives numbers that are not finite")
    norms_a, norms_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms_a * norms_b, 1e-30)
    worst = int(cosines.argmin())
    cosine = float(cosines[worst])
    if cosine < least:
        count = int((cosines < least).sum())
        return Verdict(WRONG, f"{count} of {len(a)} inputs differ, most of all number {worst}", cosine)
    scale = np.abs(norms_b / np.maximum(norms_a, 1e-30) - 1).max()
    if scale > max(LARGEST_SCALE_ERROR, 1 - least):
        return Verdict(WRONG, f"norms are off by up to {scale:.3g}, relative", cosine)
    return Verdict(RIGHT, "", cosine)


def answers_of(facts: Sequence[Mapping[str, Any]], vectors: Sequence[np.ndarray | None]) -> list[Answer]:
    """The worker's facts as answers."""
    return [
        Answer(fact["ended"], array, fact.get("message", ""), fact.get("hint", ""))
        for fact, array in zip(facts, vectors, strict=True)
    ]
