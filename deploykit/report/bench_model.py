"""What a bench report says, as figures and texts: the one source of its terminal, Markdown and HTML forms."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploykit.report import int8_gain
from deploykit.report.model import clean, number, size_text

# float32 cannot tell a smaller drift from none.
DRIFT_FLOOR = 1e-8
_BASES = {"drift": "1 − mean cosine", "self-test": "1 − mean cosine on the self-test", "proof": "1 − the worst cosine"}


@dataclass(frozen=True)
class Quantile:
    """A quantile in ms with its 95 % interval; ``value`` None where there are too few calls, and ``why`` says so."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    why: str = ""

    def interval(self) -> str:
        """``[1.69, 1.79]``; an end that cannot be told is a question mark."""
        ends = ["?" if end is None else number(end) for end in (self.low, self.high)]
        return f"[{', '.join(ends)}]"

    def text(self) -> str:
        """``1.72 [1.69, 1.79]``, or a dash."""
        return "–" if self.value is None else f"{number(self.value)} {self.interval()}"


@dataclass(frozen=True)
class Span:
    """Median over processes, with the least and the most."""

    value: float
    least: float
    most: float
    n: int

    def text(self, form: Callable[[float], str] = number) -> str:
        """``1,234 [1,200, 1,260]``; of one process the value alone."""
        return form(self.value) + (f" [{form(self.least)}, {form(self.most)}]" if self.n > 1 else "")


@dataclass(frozen=True)
class Measured:
    """One subject at one point. ``rounds`` are the medians of its processes, in ms."""

    p50: Quantile
    p90: Quantile
    p99: Quantile
    items: Span
    tokens: Span | None
    padding: float | None
    preprocess_ms: float | None
    rounds: tuple[float, ...]

    def between(self) -> str:
        """The lowest and the highest median of a process: ``1.69 to 1.80``."""
        return f"{number(min(self.rounds))} to {number(max(self.rounds))}"


@dataclass(frozen=True)
class Accuracy:
    """``drift`` is 1 − cosine to fp32: the mean over ``n`` inputs, or the worst of ``n`` cases where ``basis`` is
    proof.
    """

    drift: float
    basis: str
    n: int
    data: str

    def text(self) -> str:
        """``8.1e-05 (1 − mean cosine, n = 512, valid.txt)``."""
        said = [_BASES.get(self.basis, self.basis), f"n = {self.n:,}", *([self.data] if self.basis == "drift" else [])]
        return f"{drift_text(self.drift)} ({', '.join(filter(None, said))})"


@dataclass(frozen=True)
class SizeBucket:
    """Cosine to fp32 of inputs of like size."""

    size: str
    n: int
    mean: float
    worst: float


@dataclass(frozen=True)
class SubjectRow:
    """A variant or a baseline. ``measured`` goes by the name of the point; ``start`` is import, load, first call."""

    name: str
    baseline: bool
    what: str
    bytes: int | None
    accuracy: Accuracy | None
    sizes: tuple[SizeBucket, ...]
    audit: tuple[str, ...]
    effective: str
    start: tuple[Span, Span, Span]
    memory: Span
    measured: Mapping[str, Measured]


@dataclass(frozen=True)
class PointRow:
    """A place of the grid."""

    name: str
    batch: int
    length: int | None
    concurrency: int

    @property
    def group(self) -> str:
        """What stays the same when only the batch changes: ``16 tokens, 1 at a time``."""
        size = "inputs as they come" if self.length is None else f"{self.length} tokens"
        calls = "one call at a time" if self.concurrency == 1 else f"{self.concurrency} calls at a time"
        return f"{size}, {calls}"

    @property
    def text(self) -> str:
        """``batch 8, 16 tokens, one call at a time``."""
        return f"batch {self.batch}, {self.group}"


@dataclass(frozen=True)
class BenchReport:
    """Everything that a report of a bench shows. ``against`` is the baseline that ratios are to, empty if none."""

    title: str
    subtitle: str
    command: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    points: tuple[PointRow, ...]
    subjects: tuple[SubjectRow, ...]
    against: str
    unavailable: tuple[tuple[str, str, str], ...]
    facts: tuple[tuple[str, str], ...]
    int8_gains: tuple[str, ...] = ()

    def subject(self, name: str) -> SubjectRow | None:
        """The subject of that name."""
        return next((subject for subject in self.subjects if subject.name == name), None)

    def fact(self, label: str) -> str:
        """The fact of that label; empty where there is none."""
        return dict(self.facts).get(label, "")

    def groups(self) -> dict[str, list[PointRow]]:
        """Points by what they share but for the batch, by batch."""
        found: dict[str, list[PointRow]] = {}
        for point in self.points:
            found.setdefault(point.group, []).append(point)
        return {name: sorted(points, key=lambda p: p.batch) for name, points in found.items()}

    def ratio(self, subject: SubjectRow, point: PointRow) -> str:
        """How many times faster than ``against``, round by round: ``3.21x [3.05, 3.30]``, least and most."""
        base = self.subject(self.against)
        if base is None or base is subject:
            return ""
        pairs = zip(base.measured[point.name].rounds, subject.measured[point.name].rounds, strict=False)
        found = [theirs / ours for theirs, ours in pairs]
        between = f" [{min(found):.2f}, {max(found):.2f}]" if len(found) > 1 else ""
        return f"{statistics.median(found):.2f}x{between}"

    def fastest(self, point: PointRow, *, baselines: bool) -> SubjectRow | None:
        """The variant, or baseline, with the lowest median there."""
        found = [s for s in self.subjects if s.baseline == baselines]
        return min(found, key=lambda s: s.measured[point.name].p50.value or math.inf, default=None)

    def lead(self, point: PointRow) -> str:
        """``1.43x the speed of plain-openvino, the fastest baseline``; empty without baselines."""
        ours, theirs = self.fastest(point, baselines=False), self.fastest(point, baselines=True)
        if ours is None or theirs is None:
            return ""
        mine, other = ours.measured[point.name].p50.value, theirs.measured[point.name].p50.value
        return f"{(other or 0) / (mine or 1):.2f}x the speed of {theirs.name}, the fastest baseline"

    def frontier(self, point: PointRow) -> list[SubjectRow]:
        """The subjects that no other beats in both time and drift, fastest first."""
        known = [s for s in self.subjects if s.accuracy]
        best, found = math.inf, []
        for subject in sorted(known, key=lambda s: (_p50(s, point), _drift(s))):
            if _drift(subject) < best:
                best = _drift(subject)
                found.append(subject)
        return found


def _p50(subject: SubjectRow, point: PointRow) -> float:
    return subject.measured[point.name].p50.value or math.inf


def _drift(subject: SubjectRow) -> float:
    return max(DRIFT_FLOOR, subject.accuracy.drift) if subject.accuracy else math.inf


def from_result(data: Mapping[str, Any]) -> BenchReport:
    """The report of a result as `deploykit.measure.result.read` gives it."""
    subjects = tuple(_subject(row) for row in data["subjects"])
    baselines = [subject.name for subject in subjects if subject.baseline]
    labels = ", ".join(clean(bundle["label"]) for bundle in data["bundles"])
    count = sum(not subject.baseline for subject in subjects)
    said = (
        f"{_count(count, 'variant')} and {_count(len(baselines), 'baseline')} at {_count(len(data['points']), 'point')}"
    )
    return BenchReport(
        title=f"Bench of {labels}",
        subtitle=clean(f"{said}, {data['created'].replace('T', ' ').replace('+00:00', ' UTC')}"),
        command=clean(data["command"]),
        warnings=tuple(map(clean, data["noise"]["warnings"])),
        notes=tuple(map(clean, data["notes"])),
        points=tuple(PointRow(clean(p["name"]), p["batch"], p["length"], p["concurrency"]) for p in data["points"]),
        subjects=subjects,
        against=next((name for name in baselines if name.endswith("torch")), next(iter(baselines), "")),
        unavailable=tuple((clean(u["name"]), clean(u["reason"]), clean(u["hint"])) for u in data["unavailable"]),
        facts=_facts(data),
        int8_gains=_int8_gains(data),
    )


def _int8_gains(data: Mapping[str, Any]) -> tuple[str, ...]:
    """What int8 gains here, a sentence a variant; the interval is from the lowest and highest round."""
    timed = [
        int8_gain.Timed(clean(row["name"]), row["target"], row["precision"], clean(m["point"]), _least_most(m))
        for row in data["subjects"]
        if row["kind"] == "variant" and "target" in row
        for m in row["measurements"]
    ]
    return int8_gain.sentences(timed, data["hardware"].get("features", ()))


def _least_most(measurement: Mapping[str, Any]) -> tuple[float, float, float]:
    rounds = [float(item["p50_ms"]) for item in measurement["rounds"]]
    return min(rounds), float(measurement["p50_ms"]["value"]), max(rounds)


def start_text(span: Span) -> str:
    """``152 ms [150, 160]``, or seconds from 1,000 ms on."""
    scale, unit = (1000, "s") if span.value >= 1000 else (1, "ms")
    value, _, interval = span.text(lambda ms: number(ms / scale)).partition(" ")
    return f"{value} {unit}" + (f" {interval}" if interval else "")


def rate_text(span: Span | None) -> str:
    """``1,234 [1,200, 1,260]``, or a dash."""
    return "–" if span is None else span.text()


def drift_text(drift: float) -> str:
    """``8.1e-05``; what float32 cannot tell from 0 is said so."""
    return f"{drift:.1e}" if drift >= DRIFT_FLOOR else "below 1e-08"


def p99_reasons(report: BenchReport) -> tuple[str, ...]:
    """Why there is no p99 where there is none, one sentence."""
    missing = [m.p99 for s in report.subjects for m in s.measured.values() if m.p99.value is None]
    if not missing:
        return ()
    fewest, most = min(q.n for q in missing), max(q.n for q in missing)
    counts = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    return (
        f"p99 is a dash where there are too few calls ({counts}): below 662 it would rest on one outlier; "
        "--seconds and --rounds give more",
    )


def _subject(row: Mapping[str, Any]) -> SubjectRow:
    accuracy = row["accuracy"]
    start = row["start"]
    effective = row["effective"]
    return SubjectRow(
        name=clean(row["name"]),
        baseline=row["kind"] == "baseline",
        what=clean(row.get("what", "")),
        bytes=row["bytes"],
        accuracy=_accuracy(accuracy) if accuracy else None,
        sizes=tuple(_bucket(item) for item in row.get("drift_by_size", ())),
        audit=tuple(map(clean, row["audit"])),
        effective=clean(", ".join(f"{key} {value}" for key, value in effective.items() if value not in (None, ""))),
        start=(_span(start["import_ms"]), _span(start["load_ms"]), _span(start["first_call_ms"])),
        memory=_span(row["peak_rss_bytes"]),
        measured={clean(m["point"]): _measured(m) for m in row["measurements"]},
    )


def _measured(row: Mapping[str, Any]) -> Measured:
    return Measured(
        p50=_quantile(row["p50_ms"]),
        p90=_quantile(row["p90_ms"]),
        p99=_quantile(row["p99_ms"]),
        items=_span(row["items_per_s"]),
        tokens=_span(row["tokens_per_s"]) if row["tokens_per_s"] else None,
        padding=row["padding"],
        preprocess_ms=row["preprocess_ms"],
        rounds=tuple(float(item["p50_ms"]) for item in row["rounds"]),
    )


def _quantile(row: Mapping[str, Any]) -> Quantile:
    return Quantile(row["value"], row["low"], row["high"], row["n"], clean(row.get("why", "")))


def _span(row: Mapping[str, Any]) -> Span:
    return Span(row["value"], row["least"], row["most"], row["n"])


def _accuracy(row: Mapping[str, Any]) -> Accuracy:
    return Accuracy(float(row["drift"]), row["basis"], row["n"], clean(row.get("data", "")))


def _bucket(row: Mapping[str, Any]) -> SizeBucket:
    return SizeBucket(clean(row["size"]), int(row["n"]), float(row["mean"]), float(row["min"]))


def _facts(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    options, machine, noise = data["options"], data["hardware"], data["noise"]
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    steal = noise["steal_max"]
    return tuple(
        (label, clean(value))
        for label, value in (
            ("hardware", f"{machine['id']}: {machine.get('cpu', 'unknown CPU')}{cores}"),
            ("threads", options["threads"]),
            ("data", f"{data['data']['name']}, {_count(data['data']['inputs'], 'input')}"),
            (
                "rounds",
                f"{options['rounds']}, a fresh process of every subject in each, order from seed {options['seed']}",
            ),
            ("each point", f"{options['seconds']:g} s and 6 calls at the least in every process, after a warm-up"),
            (
                "noise",
                f"load before {noise['load_before']}; "
                + ("steal not known" if steal is None else f"steal up to {steal:.2%}"),
            ),
            ("software", ", ".join(f"{key} {value}" for key, value in data["software"].items())),
            *(("bundle", f"{b['path']}, digest {b['digest'][:16]}") for b in data["bundles"]),
            ("took", f"{data['seconds']:,.0f} s"),
        )
    )


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def cells(report: BenchReport, subject: SubjectRow, point: PointRow) -> Sequence[str]:
    """The figures of one subject at one point, in the order of `HEADER`."""
    m = subject.measured[point.name]
    return (
        m.p50.text(),
        m.between(),
        m.p90.text(),
        m.p99.text(),
        rate_text(m.items),
        rate_text(m.tokens),
        "–" if m.padding is None else f"{m.padding:.0%}",
        "–" if m.preprocess_ms is None else number(m.preprocess_ms),
        f"{m.p50.n:,} in {len(m.rounds)}",
        report.ratio(subject, point) or "–",
    )


HEADER = ("p50 ms", "rounds ms", "p90 ms", "p99 ms", "items/s", "tokens/s", "padding", "preprocess ms", "n", "speed")


def costs(subject: SubjectRow) -> Sequence[str]:
    """What a subject costs besides time, in the order of `COSTS`."""
    drift = subject.accuracy.text() if subject.accuracy else "not measured"
    size = "–" if subject.bytes is None else size_text(subject.bytes)
    return (*map(start_text, subject.start), subject.memory.text(size_text), size, drift)


COSTS = ("import", "load", "first call", "peak memory", "files", "drift")
