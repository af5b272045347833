"""Measures bundles beside what they have to beat: every subject in fresh processes, interleaved over rounds.

A round opens each subject once, in an order drawn from the seed, each in a process of its own, and measures every point
there: what differs from process to process (memory layout, thread placement, a slow minute of the machine) then hits
all subjects alike and is seen as the span between rounds. Preprocessing is measured once a round by itself, in a
process that has no engine.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploykit.errors import DeploykitError, InputError
from deploykit.measure import baselines, fingerprint, process, result, workload
from deploykit.measure.subjects import Opened, Subject, as_number, choose, open_bundles, unavailable
from deploykit.measure.workload import Point
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.preprocess import open_preprocessor

# A slow point is called at least so often in a process, a fast one for as long as `Choices.seconds` says.
_BOUNDS = {"calls": 6, "warm_calls": 2, "warm_seconds": 0.3}
_PREPROCESS_SECONDS = 0.1
_PREPROCESS = "preprocessing"
# From here on noise is told where the user reads: load per core, shares of the machine's time, of its clock's rate, of
# a subject's median.
_LOAD, _STEAL, _FREQUENCY, _SPREAD = 0.3, 0.02, 0.10, 0.10
_TOLD = 4

Progress = Callable[[str], None]
Jobs = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Choices:
    """What to measure and how long. ``variants`` empty: all; ``baselines`` None: all that can run here; ``lengths``
    None: the defaults; ``seconds`` of every point in every process; ``threads`` None: every core; ``timeout_s`` of a
    process, None: as long as `process.limit_s` says.
    """

    variants: tuple[str, ...] = ()
    baselines: tuple[str, ...] | None = None
    batches: tuple[int, ...] = workload.BATCHES
    lengths: tuple[str, ...] | None = None
    concurrency: tuple[int, ...] = workload.CONCURRENCY
    data: str | None = None
    seconds: float = 1.0
    rounds: int = 3
    threads: int | None = None
    seed: int = 0
    timeout_s: float | None = None


@dataclass
class _Record:
    """What came of one subject: the answers of its processes, or why there are no more."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    error: DeploykitError | None = None


def bench(
    specs: Sequence[str],
    choices: Choices | None = None,
    on_progress: Progress = lambda text: None,
    command: str = "",
) -> dict[str, Any]:
    """Measure the bundles at ``specs`` (``NAME.bundle`` or ``NAME.bundle@variant``); data as ``bench.schema.json``.

    A subject whose process dies or hangs is dropped and listed in ``unavailable`` with the reason; the error is raised
    when no variant is left. `InputError` and `UnknownNameError` say what cannot be meant, before anything is measured.
    """
    choices = choices or Choices()
    _check(choices)
    began, created = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    load_before = _load()
    on_progress("checking the bundles")
    opened = open_bundles(specs, choices.variants)
    card = opened[0].bundle.manifest.card
    points = workload.grid(card, choices.batches, choices.lengths, choices.concurrency)
    for one in opened[1:]:
        workload.grid(one.bundle.manifest.card, choices.batches, choices.lengths, choices.concurrency)
    dataset = workload.read(choices.data, card)
    subjects, missing = choose(opened, choices.baselines)
    with tempfile.TemporaryDirectory(prefix="deploykit-bench.") as scratch:
        jobs = {}
        for index, one in enumerate(opened):
            folder = Path(scratch) / str(index)
            folder.mkdir()
            preprocessor = open_preprocessor(one.bundle.manifest.card, one.bundle.root)
            jobs[one.label] = [workload.inputs(p, dataset, preprocessor, choices.seed, folder) for p in points]
        records = _run(subjects, opened, jobs, choices, on_progress)
        accuracies = _judge(subjects, records, opened, jobs, choices, on_progress)
    missing += _failures(subjects, records)
    rows = [
        _row(s, records[s.name], records, points, accuracies.get(s.name)) for s in subjects if _ran(records[s.name])
    ]
    if not any(row["kind"] == "variant" for row in rows):
        raise next(e for s in subjects if s.facts["kind"] == "variant" and (e := records[s.name].error))
    found = {
        "schema": result.SCHEMA,
        "created": created,
        "command": command,
        "options": _options(choices, points),
        "data": _data(choices.data, dataset.name, card.modality, len(dataset)),
        "hardware": fingerprint.machine(),
        "software": fingerprint.software(),
        "noise": _noise(rows, load_before),
        "bundles": [{"label": o.label, "path": o.path, "digest": o.bundle.digest} for o in opened],
        "points": [{"name": p.name, **vars(p)} for p in points],
        "subjects": rows,
        "unavailable": missing,
        "notes": [*_notes(choices.data, dataset.name), *_untimed(opened, records)],
        "seconds": round(time.monotonic() - began, 1),
    }
    result.check(found)
    return found


def _check(choices: Choices) -> None:
    if choices.rounds < 1:
        raise InputError(f"rounds is {choices.rounds}", hint="give 1 or more; from 2 on processes can be compared")
    if not 0 < choices.seconds <= 3600:
        raise InputError(f"seconds is {choices.seconds:g}", hint="give more than 0, and no more than 3600")
    if choices.threads is not None and choices.threads < 1:
        raise InputError(f"threads is {choices.threads}", hint="give 1 or more, or leave it out for every core")
    if choices.baselines is not None:
        baselines.wanted(choices.baselines)


def _run(
    subjects: Sequence[Subject], opened: Sequence[Opened], jobs: Jobs, choices: Choices, on_progress: Progress
) -> dict[str, _Record]:
    """Every subject once a round, in an order drawn from the seed; one that failed is not asked again."""
    extra = [_preprocessing(one) for one in opened]
    records = {subject.name: _Record() for subject in (*subjects, *extra)}
    draw = random.Random(choices.seed)
    for number in range(1, choices.rounds + 1):
        order = draw.sample([*subjects, *extra], len(subjects) + len(extra))
        for place, subject in enumerate(order, start=1):
            record = records[subject.name]
            if record.error is not None:
                continue
            on_progress(f"round {number} of {choices.rounds}, {place} of {len(order)}: {subject.name}")
            job = _job(subject, jobs, choices)
            try:
                answer = process.measure(job, subject.name, timeout_s=choices.timeout_s)
            except DeploykitError as error:
                record.error = error
                continue
            record.answers.append({**answer, "round": number})
    return records


def _job(subject: Subject, jobs: Jobs, choices: Choices) -> dict[str, Any]:
    threads = choices.threads or usable_cores()
    job = {"subject": dict(subject.job), "threads": threads, "points": list(jobs[subject.bundle]), **_BOUNDS}
    alone = subject.facts["kind"] == _PREPROCESS
    return {**job, "seconds": min(choices.seconds, _PREPROCESS_SECONDS) if alone else choices.seconds}


def _preprocessing(one: Opened) -> Subject:
    options = {"bundle": str(one.bundle.root.resolve())}
    job = {"kind": f"python:{baselines.__name__}:preprocess_subject", "options": options}
    return Subject(_preprocessing_name(one.label), one.label, job, {"kind": _PREPROCESS})


def _preprocessing_name(label: str) -> str:
    return f"{_PREPROCESS} of {label}"


def _judge(
    subjects: Sequence[Subject],
    records: Mapping[str, _Record],
    opened: Sequence[Opened],
    jobs: Jobs,
    choices: Choices,
    on_progress: Progress,
) -> dict[str, dict[str, Any]]:
    """How near each subject's vectors are to fp32: as the bundle says, else on its self-test, else as it was proven."""
    found: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        record = records[subject.name]
        if subject.facts["accuracy"] is not None or not _ran(record):
            continue
        judged = record.answers[0]["effective"].get("selftest")
        if judged is None and subject.facts["kind"] == "variant":
            on_progress(f"how near to fp32: {subject.name}")
            judged = _selftest(subject, jobs, choices)
        if judged is not None:
            drift = max(0.0, 1 - judged["mean"])
            found[subject.name] = {"drift": drift, "basis": "self-test", "n": judged["n"], "data": "the self-test"}
        elif subject.facts["kind"] == "variant":
            one = next(o for o in opened if o.label == subject.bundle)
            proof = one.bundle.variant(str(subject.job["variant"])).proof
            if (lowest := as_number(proof.get("cosine_min"))) is not None:
                cases = int(as_number(proof.get("cases")) or 0)
                found[subject.name] = {"drift": max(0.0, 1 - lowest), "basis": "proof", "n": cases, "data": ""}
    return found


def _selftest(subject: Subject, jobs: Jobs, choices: Choices) -> dict[str, Any] | None:
    """Cosine of a variant to the bundle's reference vectors, from a process that is not timed; None where it fails."""
    options = {"bundle": subject.job["path"], "variant": subject.job["variant"]}
    job = {
        "subject": {"kind": f"python:{baselines.__name__}:variant_subject", "options": options},
        "threads": choices.threads,
        "points": [jobs[subject.bundle][0]],
        **{"warm_seconds": 0, "warm_calls": 0, "seconds": 0, "calls": 1},
    }
    try:
        judged: dict[str, Any] = process.measure(job, subject.name, timeout_s=choices.timeout_s)["effective"][
            "selftest"
        ]
    except DeploykitError:
        return None
    return judged


def _ran(record: _Record) -> bool:
    """Measured in every round: a subject that failed half-way has no place beside those that did not."""
    return bool(record.answers) and record.error is None


def _failures(subjects: Sequence[Subject], records: Mapping[str, _Record]) -> list[dict[str, str]]:
    failed = [(s, error) for s in subjects if (error := records[s.name].error)]
    return [unavailable(s.name, s.facts["kind"], error.message, error.hint) for s, error in failed]


def _untimed(opened: Sequence[Opened], records: Mapping[str, _Record]) -> list[str]:
    failed = [(one.label, error) for one in opened if (error := records[_preprocessing_name(one.label)].error)]
    return [f"the preprocessing of {label} could not be timed alone: {error.message}" for label, error in failed]


def _row(
    subject: Subject,
    record: _Record,
    records: Mapping[str, _Record],
    points: Sequence[Point],
    accuracy: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One subject of the result."""
    answers = record.answers
    alone = records[_preprocessing_name(subject.bundle)]
    measurements = []
    for index, point in enumerate(points):
        rounds = [{**answer["points"][index], "round": answer["round"]} for answer in answers]
        ready = [ms for answer in alone.answers for ms in answer["points"][index]["times_ms"]]
        measurements.append(result.measurement(point.name, rounds, statistics.median(ready) if ready else None))
    effective = {key: value for key, value in answers[0]["effective"].items() if key != "selftest"}
    starts = {key: result.span([a["start"][key] for a in answers]) for key in ("import_ms", "load_ms", "first_call_ms")}
    kept = ("round", "start", "peak_rss_bytes", "noise")
    return {
        **subject.facts,
        "accuracy": subject.facts["accuracy"] or accuracy,
        "effective": effective,
        "start": starts,
        "peak_rss_bytes": result.span([answer["peak_rss_bytes"] for answer in answers]),
        "processes": [{key: answer[key] for key in kept} for answer in answers],
        "measurements": measurements,
    }


def _noise(rows: Sequence[Mapping[str, Any]], load_before: float | None) -> dict[str, Any]:
    """What disturbed the measurement, and in words where it makes the figures poor."""
    noises = [process_["noise"] for row in rows for process_ in row["processes"]]
    steal = max((n["steal"] for n in noises if n.get("steal") is not None), default=None)
    clocks = [n["frequency"]["mean"] for n in noises if n.get("frequency")]
    warnings = []
    if load_before is not None and load_before > _LOAD * usable_cores():
        said = f"the load was {load_before:.2f} on {usable_cores()} cores before anything was measured"
        warnings.append(f"{said}: something else is running, and every time here is too long")
    if steal is not None and steal > _STEAL:
        warnings.append(f"the host took up to {steal:.1%} of this machine's time (steal)")
    if clocks and max(clocks) > (1 + _FREQUENCY) * min(clocks):
        warnings.append(f"the clock ran at {min(clocks):,.0f} to {max(clocks):,.0f} MHz")
    return {"load_before": load_before, "steal_max": steal, "warnings": warnings + _disagreements(rows)}


def _disagreements(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the processes of a subject differ by so much that the interval over its calls says too little."""
    found = []
    for row in rows:
        for measured in row["measurements"]:
            medians = [r["p50_ms"] for r in measured["rounds"]]
            spread = max(medians) / min(medians) - 1
            if spread > _SPREAD:
                found.append((spread, f"{row['name']} at {measured['point']}"))
    if not found:
        return []
    found.sort(reverse=True)
    told = ", ".join(f"{name} by {spread:.0%}" for spread, name in found[:_TOLD])
    more = f", and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    return [f"processes of one subject disagree ({told}{more}): trust the span between rounds, not the interval"]


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _options(choices: Choices, points: Sequence[Point]) -> dict[str, Any]:
    return {
        "batch": list(choices.batches),
        "length": list(dict.fromkeys(p.length or workload.REAL for p in points)),
        "concurrency": list(choices.concurrency),
        "seconds": choices.seconds,
        "rounds": choices.rounds,
        "threads": choices.threads or usable_cores(),
        "seed": choices.seed,
    }


def _data(spec: str | None, name: str, modality: str, count: int) -> dict[str, Any]:
    builtin = spec is None or spec.startswith("builtin:")
    return {"name": name, "builtin": builtin, "modality": modality, "inputs": count}


def _notes(spec: str | None, name: str) -> list[str]:
    if spec is not None:
        return []
    return [f"no data was given: {name} stands in, which is not yours; --data FILE measures your own inputs"]
