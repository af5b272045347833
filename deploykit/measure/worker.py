"""One measurement in a process of its own: a JSON job on standard input, one line of JSON on standard output.

::

    python -P -m deploykit.measure.worker < job.json

    {"subject": {"kind": "bundle", "path": "a.bundle", "variant": "openvino-int8"},   variant null: the best one here
     "threads": 2,                                                       null: every core
     "points": [{"name": "single", "inputs": ["a text"], "concurrency": 1}],
     "warm_seconds": 0.3, "warm_calls": 10, "seconds": 1.0, "calls": 64}

A subject of the kind ``python:module:function`` is a baseline: ``function(threads=…, **options)``, with the subject's
``options``, returns an object with ``encode(inputs)``, and where it can ``effective`` (what really runs), ``tokens
(inputs) -> (useful, padded)`` and ``close()``.

A point's ``inputs`` are a list as `Encoder.encode` takes it (texts, names of files), or the name of a ``.json`` list
or an ``.npz`` of arrays: of ready tensors one per input of the graph, else one per example. ``places`` picks some of
them. Every call encodes all of them, or, with ``batch``, the next so many. ``concurrency`` threads call at once. Both
bounds hold: a point is over after ``seconds`` and ``calls``, and warm after ``warm_seconds`` and ``warm_calls``.

``extra_work`` is for proving the gate: a share of each call's time that is burnt after it and counted with it.

The answer::

    {"start": {"import_ms", "load_ms", "first_call_ms"},
     "points": [{"name", "times_ms": [...], "wall_s", "items", "tokens", "padded"}],     the last three per call
     "peak_rss_bytes", "effective", "noise", "software", "hardware"}

``tokens`` are the useful ones and ``padded`` all that the engine is given, null where there are none to count. What
cannot be done is ``{"error": {"type", "message", "hint"}}``, and the exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from deploykit.runtime.encoder import Encoder

Job = Mapping[str, Any]
Call = Callable[[Any], Any]

BOUNDS = {"warm_seconds": 0.3, "warm_calls": 10, "seconds": 1.0, "calls": 64}
_PYTHON = "python:"
_SUBJECT_KEYS = {"kind", "path", "variant", "options"}
_JOB_KEYS = {"subject", "threads", "points", "extra_work", *BOUNDS}
_POINT_KEYS = {"name", "inputs", "places", "batch", "concurrency"}
# The package of each engine: no other is imported because a bundle names it.
_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


class _BundleSubject:
    """A variant of a bundle, and how many tokens a call of it means."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.encode = encoder.encode
        self.effective = {"variant": encoder.variant.name, **encoder.effective}
        self.tensors = encoder.modality == "tensor"
        self._counting: tuple[Encoder, _Counter] | None = None

    def tokens(self, inputs: Any) -> tuple[int, int] | None:
        """Useful tokens, and all with their padding, that the engine is given for ``inputs``."""
        if self._encoder.modality != "text":
            return None
        if self._counting is None:
            self._counting = self._open_counting()
        encoder, engine = self._counting
        engine.useful = engine.padded = 0
        encoder.encode(inputs)
        return engine.useful, engine.padded

    def _open_counting(self) -> tuple[Encoder, _Counter]:
        """The same batches without the engine; it brings a tokenizer of its own."""
        from deploykit.runtime.encoder import Encoder
        from deploykit.runtime.preprocess import open_preprocessor

        engine = _Counter(self._encoder.dim, self._encoder.bundle.manifest.card.embedding.output)
        bundle, variant = self._encoder.bundle, self._encoder.variant
        preprocessor = open_preprocessor(bundle.manifest.card, bundle.root)
        lanes = int(self._encoder.effective.get("threads", 1))
        return Encoder(bundle, variant, engine, preprocessor, self._encoder.report(), lanes), engine

    def close(self) -> None:
        """Free the engine."""
        self._encoder.close()


class _Counter:
    """An engine that runs nothing and counts the tokens that it is given."""

    def __init__(self, dim: int, output: str) -> None:
        self._dim, self._output = dim, output
        self.effective: Mapping[str, Any] = {}
        self.useful = self.padded = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Count one batch; the vectors are zeros."""
        import numpy as np

        ids = feeds["input_ids"]
        self.padded += ids.size
        self.useful += int(feeds["attention_mask"].sum()) if "attention_mask" in feeds else ids.size
        return {self._output: np.zeros((len(ids), self._dim), np.float32)}

    def run_many(self, batches: Iterable[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Count many."""
        return [self.run(feeds) for feeds in batches]

    def close(self) -> None:
        """There is nothing to free."""


def measure(job: Job) -> dict[str, Any]:
    """Carry out ``job``; the answer as plain data. `InputError` when the job is not as the module says."""
    check(job)
    subject, start = _open(job["subject"], job.get("threads"))
    try:
        chosen = {point["name"]: _batches(point, subject) for point in job["points"]}
        began = time.perf_counter()
        subject.encode(next(iter(chosen.values()))[0])
        start["first_call_ms"] = 1e3 * (time.perf_counter() - began)
        before = _counters()
        points = [_point(job, point, chosen[point["name"]], subject) for point in job["points"]]
        # Both before the tokens are counted, which takes memory and time that is not the subject's.
        noise, peak = _noise(before, _counters()), peak_rss_bytes()
        points = [{**point, **_tokens(subject, chosen[point["name"]])} for point in points]
        answer = {"start": start, "points": points, "peak_rss_bytes": peak}
        effective = dict(getattr(subject, "effective", {}))
    finally:
        if hasattr(subject, "close"):
            subject.close()
    from deploykit.measure import fingerprint

    return {
        **answer,
        "effective": effective,
        "noise": noise,
        "software": fingerprint.software(),
        "hardware": fingerprint.machine(),
    }


def check(job: Job) -> None:
    """`InputError` for a key that is missing or that nobody would read."""
    subject = job.get("subject") or {}
    named = [("job", job, _JOB_KEYS, {"subject", "points"}), ("subject", subject, _SUBJECT_KEYS, {"kind"})]
    named += [("point", point, _POINT_KEYS, {"name", "inputs"}) for point in job.get("points", ())]
    for what, given, known, needed in named:
        for key in sorted({*given} - known):
            raise _wrong(f"the {what} has the unknown key '{key}'", f"it has {', '.join(sorted(known))}")
        for key in sorted(needed - {*given}):
            raise _wrong(f"the {what} lacks '{key}'", "see deploykit.measure.worker")
    if not job["points"]:
        raise _wrong("the job has no points", "give at least one")
    if subject["kind"] != "bundle" and not str(subject["kind"]).startswith(_PYTHON):
        raise _wrong(f"the subject is of the kind '{subject['kind']}'", "it is bundle or python:module:function")


def peak_rss_bytes() -> int:
    """The most memory that this program has held.

    ``VmHWM`` where there is one: ``ru_maxrss`` counts in what the parent held when it started this process by vfork.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _open(subject: Mapping[str, Any], threads: int | None) -> tuple[Any, dict[str, float]]:
    """The opened subject, and how long its imports and its loading took."""
    began = time.perf_counter()
    if subject["kind"] != "bundle":
        import importlib

        module, _, function = subject["kind"].removeprefix(_PYTHON).partition(":")
        factory = getattr(importlib.import_module(module), function)
        imported = time.perf_counter()
        opened = factory(threads=threads, **subject.get("options", {}))
    else:
        import importlib.util

        from deploykit.runtime.loading import load

        package = _engine_package(subject)
        # What is not installed, `load` says better.
        if package and importlib.util.find_spec(package):
            importlib.import_module(package)
        imported = time.perf_counter()
        opened = _BundleSubject(load(subject["path"], subject.get("variant"), threads, verify=False))
    loaded = time.perf_counter()
    return opened, {"import_ms": 1e3 * (imported - began), "load_ms": 1e3 * (loaded - imported)}


def _engine_package(subject: Mapping[str, Any]) -> str:
    """The package of the named variant's engine; without a name, and of an engine that others registered, its import
    counts as loading.
    """
    from deploykit.runtime.bundle import Bundle

    name = subject.get("variant")
    return _PACKAGES.get(Bundle.open(subject["path"]).variant(name).target, "") if name else ""


def _batches(point: Mapping[str, Any], subject: Any) -> list[Any]:
    """What the calls of a point encode, one after the other."""
    inputs = point["inputs"]
    if isinstance(inputs, str):
        inputs = _read(Path(inputs), getattr(subject, "tensors", False))
    places = point.get("places")
    if isinstance(inputs, Mapping):
        if places is not None:
            inputs = {name: array[list(places)] for name, array in inputs.items()}
        count = len(next(iter(inputs.values())))
    else:
        inputs = [inputs[place] for place in places] if places is not None else list(inputs)
        count = len(inputs)
    if not count:
        raise _wrong(f"the point '{point['name']}' has no inputs", "give at least one")
    step = min(int(point.get("batch") or count), count)
    starts = range(0, count - step + 1, step)
    if isinstance(inputs, Mapping):
        return [{name: array[start : start + step] for name, array in inputs.items()} for start in starts]
    return [inputs[start : start + step] for start in starts]


def _read(path: Path, tensors: bool) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays) if tensors else [arrays[name] for name in sorted(arrays)]


def _point(job: Job, point: Mapping[str, Any], batches: Sequence[Any], subject: Any) -> dict[str, Any]:
    """Warm up, then time."""
    call = _burning(subject.encode, float(job.get("extra_work") or 0.0))
    concurrency = int(point.get("concurrency") or 1)
    bounds = {key: job.get(key, value) for key, value in BOUNDS.items()}
    _times(call, batches, concurrency, bounds["warm_seconds"], bounds["warm_calls"])
    times_ms, wall_s = _times(call, batches, concurrency, bounds["seconds"], bounds["calls"])
    times = [round(ms, 6) for ms in times_ms]
    return {"name": point["name"], "times_ms": times, "wall_s": wall_s, "items": _items(batches[0])}


def _tokens(subject: Any, batches: Sequence[Any]) -> dict[str, float | None]:
    """Tokens of a call, useful and with their padding: the mean over its batches."""
    counted = [subject.tokens(batch) for batch in batches] if hasattr(subject, "tokens") else []
    known = [pair for pair in counted if pair is not None]
    return {
        "tokens": sum(useful for useful, _ in known) / len(known) if known else None,
        "padded": sum(padded for _, padded in known) / len(known) if known else None,
    }


def _burning(encode: Call, share: float) -> Call:
    """``encode``, slower by ``share`` of each call."""
    if not share:
        return encode

    def call(inputs: Any) -> Any:
        began = time.perf_counter()
        result = encode(inputs)
        end = began + (time.perf_counter() - began) * (1 + share)
        while time.perf_counter() < end:
            pass
        return result

    return call


def _times(
    call: Call, batches: Sequence[Any], concurrency: int, seconds: float, calls: int
) -> tuple[list[float], float]:
    """Milliseconds of each call and seconds of all, until both bounds are reached over all threads."""
    each = -(-calls // concurrency)
    found: list[list[float]] = [[] for _ in range(concurrency)]
    failed: list[BaseException] = []
    began = time.perf_counter()

    def repeat(lane: int) -> None:
        times, place = found[lane], lane
        try:
            while not failed and (len(times) < each or time.perf_counter() - began < seconds):
                batch = batches[place % len(batches)]
                started = time.perf_counter()
                call(batch)
                times.append(1e3 * (time.perf_counter() - started))
                place += concurrency
        except BaseException as error:
            failed.append(error)

    lanes = [threading.Thread(target=repeat, args=(lane,)) for lane in range(1, concurrency)]
    for thread in lanes:
        thread.start()
    repeat(0)
    for thread in lanes:
        thread.join()
    if failed:
        raise failed[0]
    return [ms for times in found for ms in times], time.perf_counter() - began


def _items(batch: Any) -> int:
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


def _counters() -> dict[str, float]:
    """What the kernel has counted so far: ticks of all cores, stolen ones, context switches forced on this process."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"forced": float(usage.ru_nivcsw), "wanted": float(usage.ru_nvcsw)}
    try:
        ticks = [float(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return found
    # user nice system idle iowait irq softirq steal; guest time is counted in user already.
    return {**found, "ticks": sum(ticks[:8]), "stolen": ticks[7] if len(ticks) > 7 else 0.0}


def _noise(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """What else went on: ``steal`` (share of the machine's time that its host took), ``frequency`` (MHz over the
    cores: smallest, mean, largest), ``load`` (1 minute), ``context_switches`` of this process.
    """
    passed = after.get("ticks", 0.0) - before.get("ticks", 0.0)
    return {
        "steal": (after["stolen"] - before["stolen"]) / passed if passed > 0 else None,
        "frequency": _frequency(),
        "load": os.getloadavg()[0],
        "context_switches": {kind: int(after[kind] - before[kind]) for kind in ("forced", "wanted")},
    }


def _frequency() -> dict[str, float] | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        mhz = [float(line.partition(":")[2]) for line in text.splitlines() if line.lower().startswith("cpu mhz")]
    except (OSError, ValueError):
        return None
    return {"low": min(mhz), "mean": round(sum(mhz) / len(mhz), 1), "high": max(mhz)} if mhz else None


def _wrong(message: str, hint: str) -> Exception:
    from deploykit.runtime.errors import InputError

    return InputError(message, hint=hint)


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed."""
    if sys.platform != "linux":
        return
    import ctypes
    import signal

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def serve(function: Callable[[Job], dict[str, Any]]) -> int:
    """Answer the JSON on standard input with the JSON of ``function`` on standard output, and return the exit code.

    Whatever libraries print goes to standard error. For the main module of a child process.
    """
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    code = 0
    try:
        text = json.dumps(function(json.loads(sys.stdin.read())))
    except Exception as error:
        import traceback

        traceback.print_exc()
        text, code = json.dumps({"error": _described(error)}), 1
    answers.write(text + "\n")
    answers.flush()
    return code


def _described(error: Exception) -> dict[str, str]:
    """A `DeploykitError` by its name; of any other its first line."""
    if hasattr(error, "hint") and hasattr(error, "message"):
        return {"type": type(error).__name__, "message": str(error.message), "hint": str(error.hint)}
    first = (str(error).strip().splitlines() or [""])[0]
    return {"type": "", "message": f"{type(error).__name__}: {first}"[:600], "hint": ""}


if __name__ == "__main__":
    # The engines' exit handlers have crashed after the work was done: leave without running them.
    status = serve(measure)
    sys.stderr.flush()
    os._exit(status)
