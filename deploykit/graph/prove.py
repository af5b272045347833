"""The proof: an artefact's embeddings against torch's, over a matrix of shapes, judged at the embedding.

One random input at the tracing shape hides the commonest faults of exporters and engines: an axis that was silently
fixed, a mask that is ignored, a kernel that is wrong at one length. So torch answers for every batch size x every
size of each dynamic axis, with padding, and each artefact has to give the same answers on the engine that runs it.
The cases travel as files (`write_cases`), so that an engine is proven in a process that never sees torch.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import DeploykitError, InputError, ProofError

if TYPE_CHECKING:
    from deploykit.sources import Source

BATCHES = (1, 2, 5)
LONG_TOKENS = 128
"""Above it the largest batch is left out: it takes half of the time of a whole proof, and two rows show already what a
batch does at such a length.
"""
_EXACT = 0.99
"""A precision whose tolerance is below this cosine quantizes: it may be off everywhere with every operator right."""
_SHOWN = 5
"""Places of the matrix that a message names; it counts the others."""
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One point of the matrix: where it is (``{"batch": 2, "length": 7}``), what goes in, what torch said.

    ``reference`` is the embedding, ``further`` holds the other outputs by name, where the encoder has any.
    """

    at: dict[str, int]
    feeds: dict[str, np.ndarray] = field(repr=False)
    reference: np.ndarray = field(repr=False)
    further: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Tolerance:
    """The worst that a row may be: cosine to torch, and largest error relative to the largest |component|."""

    cosine: float
    relative_error: float


@dataclass(frozen=True)
class Score:
    """How one case came out: the worst row's cosine, and the largest error relative to the reference.

    ``failure`` is what the engine said where it gave no answer at all.
    """

    at: dict[str, int]
    cosine: float
    relative_error: float
    failure: str = ""

    def passes(self, tolerance: Tolerance) -> bool:
        """Both figures inside the tolerance; NaN never passes."""
        return self.cosine >= tolerance.cosine and self.relative_error <= tolerance.relative_error


def matrix(sizes: Mapping[str, Sequence[int]], batches: Sequence[int] = BATCHES) -> list[dict[str, int]]:
    """Every batch size x every combination of the axes' sizes, smallest first; of long texts the smaller batches."""
    axes = list(sizes)
    points = itertools.product(batches, *(sizes[axis] for axis in axes))
    named = [{"batch": point[0], **dict(zip(axes, point[1:], strict=True))} for point in points]
    return [at for at in named if at["batch"] < max(BATCHES) or at.get("length", 0) <= LONG_TOKENS]


def make_cases(
    source: Source,
    reference: Callable[[Feeds], np.ndarray],
    further: Callable[[Feeds], dict[str, np.ndarray]] = lambda feeds: {},
) -> list[Case]:
    """Ask the reference at every point of the matrix, and for the further outputs where there are any.

    Raises `ProofError` when it gives NaN or infinity itself.
    """
    cases = []
    for seed, at in enumerate(matrix(source.sizes, _batches(source))):
        inputs = source.make_inputs(at["batch"], {k: v for k, v in at.items() if k != "batch"}, seed)
        feeds = {name: np.asarray(tensor) for name, tensor in inputs.items()}
        try:
            answer, others = reference(feeds), further(feeds)
        except DeploykitError:
            raise
        except Exception as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise ProofError(
                f"the model itself fails at {describe(at)}: {type(error).__name__}: {first[:300]}",
                hint="it does not support this size: lower max_length, or give it one size (fixed_length)",
            ) from error
        if not all(np.isfinite(array).all() for array in (answer, *others.values())):
            raise ProofError(
                f"the model itself gives NaN or infinity at {describe(at)}",
                hint="it does not support this size: lower max_length, or look at its masking",
            )
        cases.append(Case(at, feeds, answer, others))
    return cases


def _batches(source: Source) -> tuple[int, ...]:
    """The batch sizes of the proof; one if the model takes no other."""
    fixed = [spec.shape[0] for spec in source.card.inputs if isinstance(spec.shape[0], int)]
    return (min(fixed),) if fixed else BATCHES


def one_batch_a_size(cases: Sequence[Case]) -> list[Case]:
    """Of every combination of the axes' sizes one case, the batch sizes taking turns; all of one combination alone.

    What a second way through an engine is proven with, whose graph was proven at all of them.
    """
    by_size: dict[tuple[int, ...], list[Case]] = {}
    for case in cases:
        by_size.setdefault(tuple(size for axis, size in case.at.items() if axis != "batch"), []).append(case)
    if len(by_size) == 1:
        return list(cases)
    return [found[place % len(found)] for place, found in enumerate(by_size.values())]


def write_cases(cases: Sequence[Case], folder: Path, name: str = "proof") -> None:
    """Write ``NAME.npz`` and ``NAME.json`` into ``folder``."""
    arrays = {f"{i}.reference": case.reference for i, case in enumerate(cases)}
    for i, case in enumerate(cases):
        arrays |= {f"{i}.feeds.{tensor}": array for tensor, array in case.feeds.items()}
        arrays |= {f"{i}.further.{tensor}": array for tensor, array in case.further.items()}
    np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
    (folder / f"{name}.json").write_text(json.dumps([case.at for case in cases]), encoding="utf-8")


def read_cases(folder: Path, name: str = "proof") -> list[Case]:
    """Read what `write_cases` wrote."""
    points = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    tensors: dict[str, list[dict[str, np.ndarray]]] = {kind: [{} for _ in points] for kind in ("feeds", "further")}
    references: dict[int, np.ndarray] = {}
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            place, kind, *tensor = key.split(".", 2)
            if kind in tensors:
                tensors[kind][int(place)][tensor[0]] = arrays[key]
            else:
                references[int(place)] = arrays[key]
    return [Case(at, tensors["feeds"][i], references[i], tensors["further"][i]) for i, at in enumerate(points)]


def score(case: Case, got: np.ndarray) -> Score:
    """Compare one answer, float [batch, dim], with torch's; a wrong shape or NaN scores cosine NaN."""
    want = case.reference.astype(np.float64)
    if got.shape != want.shape:
        return Score(case.at, float("nan"), float("inf"))
    got = got.astype(np.float64)
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
    both_zero = (norms == 0) & (np.linalg.norm(got - want, axis=-1) == 0)
    with np.errstate(invalid="ignore"):  # infinity over infinity is NaN, and NaN never passes
        cosine = np.where(both_zero, 1.0, np.sum(got * want, axis=-1) / np.where(norms == 0, np.nan, norms))
    scale = max(float(np.abs(want).max()), 1e-12)
    return Score(case.at, float(cosine.min()), float(np.abs(got - want).max()) / scale)


def prove(cases: Iterable[Case], run: Callable[[Feeds], np.ndarray], tolerance: Tolerance, what: str) -> dict[str, Any]:
    """Run every case through ``run`` and return the proof for the manifest.

    Raises `ProofError` with the axis that decides, the worst case and what to do, when any case is out of tolerance.
    """
    return _judged([score(case, run(case.feeds)) for case in cases], tolerance, what)


def prove_outputs(
    cases: Iterable[Case],
    run: Callable[[Feeds], Mapping[str, np.ndarray]],
    embedding: str,
    tolerance: Tolerance,
    what: str,
) -> dict[str, Any]:
    """`prove` of the embedding and of every further output; ``run`` gives outputs by name, and is called once a case.

    The figures of the further ones stand under ``outputs``. Token vectors [batch, length, width] of an input count as
    one vector of length x width.
    """
    scores: dict[str, list[Score]] = {embedding: []}
    for case in cases:
        try:
            answer = run(case.feeds)
        except InputError as error:  # the inputs are right: the graph runs at some sizes and not at these
            scores[embedding].append(Score(case.at, float("nan"), float("inf"), error.message))
            continue
        scores[embedding].append(score(case, answer[embedding]))
        for name, want in case.further.items():
            got = answer[name]
            flat = got.reshape(len(got), -1) if got.shape == want.shape else got  # of another shape, it is wrong
            scores.setdefault(name, []).append(score(Case(case.at, {}, want.reshape(len(want), -1)), flat))
    proof = _judged(scores.pop(embedding), tolerance, what)
    outputs = {name: _judged(found, tolerance, f"the output '{name}' of {what}") for name, found in scores.items()}
    return proof | ({"outputs": outputs} if outputs else {})


def _judged(scores: Sequence[Score], tolerance: Tolerance, what: str) -> dict[str, Any]:
    failed = [s for s in scores if not s.passes(tolerance)]
    if failed:
        error = ProofError(_complaint(what, scores, failed, tolerance), hint=_advice(scores, failed, tolerance))
        error.wrong_at = [s.at for s in failed]
        raise error
    worst = min(scores, key=lambda s: s.cosine)
    return {
        "cases": len(scores),
        "cosine_min": worst.cosine,
        "relative_error_max": max(s.relative_error for s in scores),
        "worst_at": worst.at,
        "tolerance": asdict(tolerance),
    }


def describe(at: Mapping[str, int]) -> str:
    """``batch 2, length 7``."""
    return ", ".join(f"{axis} {size}" for axis, size in at.items())


def _complaint(what: str, scores: Sequence[Score], failed: Sequence[Score], tolerance: Tolerance) -> str:
    worst = min(failed, key=lambda s: (not np.isnan(s.cosine), s.cosine))
    if worst.failure:
        return f"{what} fails in {len(failed)} of {len(scores)} cases, first at {describe(worst.at)}: {worst.failure}"
    figures = f"cosine {worst.cosine:.5f}, error {worst.relative_error:.2g} of the largest component"
    return (
        f"{what} disagrees with the original model in {len(failed)} of {len(scores)} cases; the worst is "
        f"{describe(worst.at)}: {figures} (allowed: {tolerance.cosine} and {tolerance.relative_error})"
    )


def _advice(scores: Sequence[Score], failed: Sequence[Score], tolerance: Tolerance) -> str:
    """Name the axis whose sizes separate the failures from the rest, when there is one."""
    if len(failed) == len(scores):
        if tolerance.cosine < _EXACT:
            return (
                "every shape is wrong, so the ranges do not fit or too much is quantized: calibrate on your own data, "
                "or take another precision"
            )
        return "every shape is wrong, so an operator is: try the other exporter or another opset, or another precision"
    bad = {id(s) for s in failed}
    for axis in failed[0].at:
        if not all(axis in s.at for s in scores):
            continue  # the real texts among the cases of a model with one length do not name it
        wrong = {s.at[axis] for s in failed}
        right = {s.at[axis] for s in scores if id(s) not in bad}
        if wrong.isdisjoint(right):
            sizes = ", ".join(map(str, sorted(wrong)))
            fact = f"axis '{axis}' decides: wrong at {sizes}, right at every other size"
            # The smallest and largest sizes of preprocessed tensors were found by trying on one engine alone.
            least, most = (f(s.at[axis] for s in scores) for f in (min, max))
            bounds = f" (--axis {axis}={min(right)}:{max(right)} leaves it out, of preprocessed tensors)"
            return fact + (bounds if axis not in ("batch", "length") and wrong & {least, most} else "")
    return _combinations(failed, [s for s in scores if id(s) not in bad])


def _combinations(failed: Sequence[Score], passed: Sequence[Score]) -> str:
    """Where it fails, each place once and the smallest first; whether other inputs of those very sizes are right."""
    wrong = sorted({tuple(s.at.items()) for s in failed}, key=lambda at: [size for _, size in at])
    shown = "; ".join(describe(dict(at)) for at in wrong[:_SHOWN])
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    if set(wrong) <= {tuple(s.at.items()) for s in passed}:
        return f"no size decides: other inputs of the same sizes are right ({shown}{more}), so some values go wrong"
    return f"it fails at some combinations of axes only: {shown}{more}"
