"""The self-test: raw inputs that travel in the bundle, through the whole encoder, against the vectors that they must
give.

``selftest/inputs.json`` is a JSON list of texts. ``selftest/inputs.npz`` holds arrays (no pickle): for ready tensors
one per input of the graph, with a batch axis; for images and waveforms one per example, named ``0000``, ``0001``, …
``selftest/reference.npy`` is float32 ``[n, dim]``.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.errors import BundleError, DeploykitError, MissingError
from deploykit.runtime.trust import arrays as arrays_on_disk

if TYPE_CHECKING:
    from deploykit.runtime.encoder import Encoder

_TIMED_CALLS = 10


@dataclass(frozen=True)
class VariantResult:
    """``refused``: the variant cannot run here. ``cosine_min`` is the worst example's; ``p50_ms`` the median time of
    one input: over 10 calls in this process, or of the best turn of a trial (`deploykit.runtime.trial`).
    """

    variant: str
    status: Literal["passed", "failed", "refused"]
    cosine_min: float | None
    reason: str
    p50_ms: float | None

    @property
    def passed(self) -> bool:
        """Did it run, and reproduce every vector?"""
        return self.status == "passed"


def selftest(bundle: Bundle, threads: int | None = None, isolated: bool = False) -> list[VariantResult]:
    """Run every variant of ``bundle``, the portable model included; the files are verified first (`BundleError`).

    ``isolated``: each variant in a process of its own, so that one which crashes or hangs here fails alone; what was
    found is remembered for `deploykit.runtime.load`. `MissingError` where no process can be started.
    """
    from deploykit.runtime import decide

    bundle.verify()
    names = [variant.name for variant in bundle.manifest.variants]
    if bundle.manifest.portable and bundle.portable.name not in names:
        names.append(bundle.portable.name)
    if isolated:
        return decide.try_all(bundle, names, threads)
    inputs, reference = read_inputs(bundle), read_reference(bundle)
    return [_test(bundle, name, inputs, reference, threads) for name in names]


def read_inputs(bundle: Bundle) -> Any:
    """The raw inputs, as `Encoder.encode` takes them."""
    path = bundle.file(bundle.manifest.selftest.inputs)
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        arrays_on_disk.check(path)
        with np.load(path, allow_pickle=False) as arrays:
            if bundle.manifest.card.modality == "tensor":
                return dict(arrays)
            return [arrays[name] for name in sorted(arrays)]
    except (ValueError, OSError) as error:
        raise BundleError(f"'{path.name}' cannot be read: {error}", hint="build the bundle again") from error


def read_reference(bundle: Bundle) -> np.ndarray:
    """The vectors that the inputs must give, float32 ``[n, dim]``."""
    path = bundle.file(bundle.manifest.selftest.reference)
    try:
        arrays_on_disk.check(path)
        reference = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BundleError(f"'{path.name}' cannot be read: {error}", hint="build the bundle again") from error
    if not isinstance(reference, np.ndarray) or reference.ndim != 2 or not len(reference):
        raise BundleError(f"'{path.name}' holds no vectors [n, dim]", hint="build the bundle again")
    return np.asarray(reference, np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each row of ``a`` with the same row of ``b``; 1 where both are zero, 0 where one is."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms == 0, 1.0, norms))


def judge(bundle: Bundle, name: str, encoder: Encoder, inputs: Any, reference: np.ndarray) -> VariantResult:
    """Encode ``inputs`` and hold the vectors against ``reference`` and the bound of that variant. Not timed."""
    # The portable model is the reference's own precision: where no bound is given for it, the strictest one given
    # holds.
    bounds = bundle.manifest.selftest.min_cosine
    bound = bounds.get(name, max(bounds.values(), default=0.999))
    vectors = encoder.encode(inputs)
    if vectors.shape != reference.shape:
        shapes = f"{list(vectors.shape)} instead of {list(reference.shape)}"
        return VariantResult(name, "failed", None, f"the vectors are {shapes}", None)
    worst = float(cosines(vectors, reference).min())
    if not worst >= bound:
        return VariantResult(name, "failed", worst, f"cosine {worst:.6f} is below {bound:.6f}", None)
    return VariantResult(name, "passed", worst, "", None)


def refusal(name: str, error: DeploykitError) -> VariantResult:
    """The result of a variant that could not be opened, or raised."""
    return VariantResult(name, "refused" if isinstance(error, MissingError) else "failed", None, error.message, None)


def one_of(inputs: Any) -> Any:
    """The first of the inputs, as a batch of one."""
    return {name: array[:1] for name, array in inputs.items()} if isinstance(inputs, dict) else inputs[:1]


def times_ms(encoder: Encoder, single: Any, calls: int, seconds: float = 0.0) -> list[float]:
    """Milliseconds of each call, after one that does not count: until both bounds are reached."""
    encoder.encode(single)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < calls or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        encoder.encode(single)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _test(bundle: Bundle, name: str, inputs: Any, reference: np.ndarray, threads: int | None) -> VariantResult:
    from dataclasses import replace

    from deploykit.runtime.loading import load

    try:
        with load(bundle.root, name, threads, verify=False) as encoder:
            result = judge(bundle, name, encoder, inputs, reference)
            if result.cosine_min is None:
                return result
            return replace(result, p50_ms=statistics.median(times_ms(encoder, one_of(inputs), _TIMED_CALLS)))
    except DeploykitError as error:
        return refusal(name, error)
