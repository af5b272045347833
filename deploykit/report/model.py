"""What a report says, as rows of text and figures: the one source of the terminal, Markdown and HTML forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from deploykit.report import int8_gain
from deploykit.runtime import devices, further, judged
from deploykit.runtime.manifest import Manifest, Variant, to_json

SCHEMA = "deploykit.report/1"
_LISTED = 12
_TOLD = ("search", judged.KEY)
"""Of a manifest's provenance: what the report tells elsewhere."""
_UNITS = ("B", "KB", "MB", "GB")


@dataclass(frozen=True)
class Timing:
    """The median call of one workload in ms, its 95 % interval, and what it rests on."""

    workload: str
    shape: str
    p50_ms: float
    low_ms: float
    high_ms: float
    blocks: int
    calls: int

    def text(self) -> str:
        """``6.61 ms [6.55, 6.70], n = 12 blocks of 640 calls``."""
        interval = f"[{number(self.low_ms)}, {number(self.high_ms)}]"
        return f"{number(self.p50_ms)} ms {interval}, n = {self.blocks} blocks of {self.calls:,} calls in all"


@dataclass(frozen=True)
class Proof:
    """The worst of ``cases`` comparisons with the reference."""

    cases: int
    cosine_min: float
    error_max: float
    worst_at: str
    allowed_cosine: float | None

    @property
    def drift(self) -> float:
        """1 − the worst cosine, never below 0."""
        return max(0.0, 1.0 - self.cosine_min)


@dataclass(frozen=True)
class Drift:
    """How far a variant is from fp32 on real inputs: cosine mean, 1st percentile and minimum over ``n``; the length
    whose mean is lowest, of ``lengths`` tried.
    """

    n: int
    mean: float
    p1: float
    low: float
    data: str
    lengths: int
    worst_length: str
    worst_mean: float

    def text(self) -> str:
        """``cosine to fp32 0.9957, p1 0.9861, lowest 0.951, over 512 of valid.txt; …``."""
        said = f"cosine to fp32 {cosine_text(self.mean)}, p1 {cosine_text(self.p1)}, lowest {cosine_text(self.low)}"
        said += f", over {self.n:,} inputs" + (f" of {self.data}" if self.data else "")
        if self.lengths:
            said += f"; of {self.lengths} lengths the worst is {self.worst_length} with {cosine_text(self.worst_mean)}"
        return said


@dataclass(frozen=True)
class CandidateRow:
    """One variant that was measured, whether it was taken, and why. Cells are text, empty where not measured."""

    name: str
    kept: bool
    drift: str
    p1: str
    task: str
    time: str
    size: str
    reason: str

    def cells(self) -> tuple[str, ...]:
        """In the order of `CANDIDATE_HEADER`."""
        taken = "yes" if self.kept else "no"
        return (self.name, taken, self.drift, self.p1, self.task, self.time, self.size, self.reason)


CANDIDATE_HEADER = ("candidate", "taken", "drift", "p1", "task lost", "p50 ms", "size", "why")


TRIAL_HEADER = ("variant", "back in float", "drift", "p1", "p50 ms", "inside the budget")


def trial_rows(provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """What a search for a partial variant tried, cells in the order of `TRIAL_HEADER`; least drift last."""
    rows = []
    for step, found in (provenance.get("search") or {}).items():
        trials = sorted(found.get("trials") or (), key=lambda trial: -float(trial.get("drift", 0)))
        for trial in trials:
            kept = ", ".join(trial.get("keep") or ()) or "nothing"
            time = number(float(trial["p50_ms"])) if "p50_ms" in trial else ""
            figures = (f"{float(trial.get('drift', 0)):.5f}", cosine_text(float(trial.get("p1", 1))), time)
            inside = "yes" if trial.get("inside") else "no"
            rows.append(tuple(clean(cell) for cell in (step.partition(":")[2], kept, *figures, inside)))
        for lost in found.get("not_built") or ():
            kept, reason = ", ".join(lost.get("keep") or ()), f"not built: {lost.get('reason')}"
            rows.append(tuple(clean(cell) for cell in (step.partition(":")[2], kept, "", "", "", reason)))
    return tuple(rows)


@dataclass(frozen=True)
class VariantRow:
    """One variant that passed. ``audit`` and ``devices`` are sentences; ``size`` is the bytes that it loads."""

    name: str
    target: str
    precision: str
    default: bool
    size: int
    proof: Proof | None
    drift: Drift | None
    timings: tuple[Timing, ...]
    hardware: str
    audit: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    requires: tuple[tuple[str, str], ...]
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """One variant that was asked for and is not in the bundle."""

    name: str
    reason: str
    hint: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows. ``facts`` and ``provenance`` are (label, value) pairs in order."""

    title: str
    subtitle: str
    location: str
    size: int
    facts: tuple[tuple[str, str], ...]
    variants: tuple[VariantRow, ...]
    refused: tuple[Refusal, ...]
    candidates: tuple[CandidateRow, ...]
    trials: tuple[tuple[str, ...], ...]
    provenance: tuple[tuple[str, str], ...]
    usage: str
    int8_gains: tuple[str, ...] = ()

    def workloads(self) -> list[str]:
        """The workloads that were measured, in order of appearance."""
        return list(dict.fromkeys(t.workload for v in self.variants for t in v.timings))

    def fastest(self, workload: str) -> tuple[VariantRow, Timing] | None:
        """The variant with the lowest median in ``workload``."""
        found = [(v, t) for v in self.variants for t in v.timings if t.workload == workload]
        return min(found, key=lambda pair: pair[1].p50_ms) if found else None


def result(manifest: Manifest) -> dict[str, Any]:
    """The report as data, schema ``deploykit.report/1``: what ``result.json`` holds."""
    data = to_json(manifest)
    total = sum(entry.size for entry in manifest.files.values())
    return {
        "schema": SCHEMA,
        "card": data["card"],
        "variants": data["variants"],
        "refused": data["refused"],
        "candidates": data["candidates"],
        "default": manifest.default,
        "provenance": data["provenance"],
        "bundle": {"schema": manifest.schema, "files": len(manifest.files), "bytes": total},
    }


def from_manifest(manifest: Manifest, location: str) -> Report:
    """The report of a bundle that lies, or will lie, at ``location``."""
    card = manifest.card
    pooled = f"{card.embedding.pooling} pooling" if card.embedding.pooling not in ("", "none") else "no pooling"
    scale = "normalised" if card.embedding.normalized else "not normalised"
    return Report(
        title=clean(card.name),
        subtitle=clean(f"{card.modality} encoder, {card.embedding.dim} dimensions, {pooled}, {scale}"),
        location=clean(location),
        size=sum(entry.size for entry in manifest.files.values()),
        facts=_facts(manifest),
        variants=tuple(_variant(manifest, variant) for variant in manifest.variants),
        refused=tuple(_refusal(item) for item in manifest.refused),
        candidates=candidate_rows(manifest.candidates),
        trials=trial_rows(manifest.provenance),
        provenance=_flat({**card.provenance, **{k: v for k, v in manifest.provenance.items() if k not in _TOLD}}),
        usage=usage(manifest, clean(location)),
        int8_gains=_int8_gains(manifest),
    )


def _int8_gains(manifest: Manifest) -> tuple[str, ...]:
    """What int8 gains where the bundle was built, a sentence a variant."""
    timed = [
        int8_gain.Timed(
            clean(v.name), v.target, v.precision, t.workload.replace("_", " "), (t.low_ms, t.p50_ms, t.high_ms)
        )
        for v in manifest.variants
        for t in _timings(v.latency)
        if t.p50_ms > 0 and t.low_ms > 0
    ]
    machine = manifest.provenance.get("machine")
    features = machine.get("features") if isinstance(machine, Mapping) else None
    return int8_gain.sentences(timed, features if isinstance(features, list) else [])


def usage(manifest: Manifest, location: str) -> str:
    """Python lines that load the bundle and encode with it."""
    example = {
        "text": '["hello", "world"]',
        "image": '["photo.jpg"]',
        "audio": '["voice.wav"]',
        "tensor": "[{" + ", ".join(f'"{spec.name}": …' for spec in manifest.card.inputs) + "}]",
    }[manifest.card.modality]
    return (
        "import deploykit\n\n"
        f"encoder = deploykit.load({location!r})\n"
        f"vectors = encoder.encode({example})  # float32 [n, {manifest.card.embedding.dim}]"
    )


def clean(text: Any) -> str:
    """Text without control characters: a manifest may come from anybody, and a terminal obeys escape sequences."""
    return "".join(c if c.isprintable() or c in "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def size_text(count: float) -> str:
    """``90.9 MB``: decimal units."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def number(value: float) -> str:
    """Three significant digits without an exponent, and whole numbers whole."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def cosine_text(value: float) -> str:
    """Four decimals, or as many more (up to 8) as it takes not to be rounded to 1."""
    decimals = next((d for d in range(4, 8) if round(value, d) < 1), 8)
    return f"{value:.{decimals}f}"


def shape_text(at: Mapping[str, Any]) -> str:
    """``batch 2, length 7``."""
    return clean(", ".join(f"{axis} {size}" for axis, size in at.items()))


def _facts(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    card = manifest.card
    inputs = "; ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in card.inputs)
    axes = [f"{axis} {low} to {high}" for axis, (low, high) in card.limits.axes.items()]
    outputs = further.names(card)
    facts = [("inputs", inputs), ("output" if len(outputs) == 1 else "outputs", ", ".join(outputs))]
    prompts = sorted(card.preprocess.get("prompts") or {})
    facts += [("prompts", ", ".join(prompts))] if prompts else []
    facts += [("proven sizes", ", ".join(axes))] if axes else []
    facts += [("preprocessing", str(card.preprocess.get("kind", "none")))]
    judgement = judged.sentence(manifest.provenance)
    facts += [("judged by", judgement)] if judgement else []
    return tuple((label, clean(value)) for label, value in facts)


def _variant(manifest: Manifest, variant: Variant) -> VariantRow:
    return VariantRow(
        name=clean(variant.name),
        target=clean(variant.target),
        precision=clean(variant.precision),
        default=variant.name == manifest.default,
        size=_loaded_bytes(manifest, variant.path),
        proof=_proof(variant.proof),
        drift=_drift(variant.drift, manifest.provenance),
        timings=_timings(variant.latency),
        hardware=clean(variant.latency.get("hardware", "")),
        audit=audit_sentences(variant.audit),
        settings=_flat(variant.settings),
        requires=_flat(variant.requires),
        devices=tuple(clean(devices.sentence(row)) for row in devices.rows(variant)),
    )


def _loaded_bytes(manifest: Manifest, path: str) -> int:
    """The size of the artefact and of its companions: files beside it with the same stem (OpenVINO's .bin)."""
    own = PurePosixPath(path)
    files = [(PurePosixPath(name), entry.size) for name, entry in manifest.files.items()]
    return sum(
        size for file, size in files if file.parent == own.parent and file.name.split(".")[0] == own.name.split(".")[0]
    )


def _proof(proof: Mapping[str, Any]) -> Proof | None:
    if "cosine_min" not in proof:
        return None
    return Proof(
        cases=int(proof.get("cases", 0)),
        cosine_min=float(proof["cosine_min"]),
        error_max=float(proof.get("relative_error_max", float("nan"))),
        worst_at=shape_text(proof.get("worst_at") or {}),
        allowed_cosine=(proof.get("tolerance") or {}).get("cosine"),
    )


def _drift(drift: Mapping[str, Any], provenance: Mapping[str, Any]) -> Drift | None:
    figures = drift.get("figures") or {}
    wanted = [figures[name]["value"] for name in ("cosine_mean", "cosine_p1", "cosine_min") if name in figures]
    if len(wanted) < 3:
        return None
    lengths = drift.get("lengths") or {}
    evaluated = (provenance.get("samples") or {}).get("evaluation") or {}
    return Drift(
        n=int(drift.get("n", 0)),
        mean=float(wanted[0]),
        p1=float(wanted[1]),
        low=float(wanted[2]),
        data=clean(evaluated.get("data", "")),
        lengths=int(lengths.get("checked", 0)),
        worst_length=clean(lengths.get("worst_at", "")),
        worst_mean=float(lengths.get("worst_mean", float("nan"))),
    )


def candidate_rows(candidates: Iterable[Mapping[str, Any]]) -> tuple[CandidateRow, ...]:
    """Rows of what was measured, as the manifest or the outcome of a run has them; none when there was no choice."""
    listed = list(candidates)
    if all(item.get("kept") for item in listed):
        return ()
    return tuple(_candidate(item) for item in listed)


def _candidate(item: Mapping[str, Any]) -> CandidateRow:
    def text(key: str, form: Callable[[float], str]) -> str:
        return form(float(item[key])) if item.get(key) is not None else ""

    time = text("p50", number)
    if time and item.get("low_ms") is not None:
        time += f" [{number(float(item['low_ms']))}, {number(float(item['high_ms']))}]"
    return CandidateRow(
        name=clean(item.get("variant", "?")),
        kept=bool(item.get("kept")),
        drift=text("drift", lambda value: f"{max(value, 0):.5f}"),
        p1=text("p1", cosine_text),
        task=text("task", lambda value: f"{round(value, 2) + 0.0:.2f}"),  # + 0.0: no minus before a zero
        time=time,
        size=text("size", size_text),
        reason=clean(item.get("reason", "")),
    )


def _timings(latency: Mapping[str, Any]) -> tuple[Timing, ...]:
    rows = [(name, row) for name, row in latency.items() if isinstance(row, Mapping) and "p50_ms" in row]
    return tuple(
        Timing(
            workload=clean(name).replace("_", " "),
            shape=" x ".join(str(size) for size in row.get("shape", ())),
            p50_ms=float(row["p50_ms"]),
            low_ms=float(row["low_ms"]),
            high_ms=float(row["high_ms"]),
            blocks=int(row["blocks"]),
            calls=int(row["calls"]),
        )
        for name, row in rows
    )


def audit_sentences(audit: Mapping[str, Any]) -> tuple[str, ...]:
    """What an audit says to people: its own sentence, else its figures; its notes; how the engine was set.

    Notes that are no list, and settings that are no object, say nothing: a manifest may come from anybody.
    """
    said = [clean(audit[key]) for key in ("sentence", "summary") if audit.get(key)][:1]
    figures = {key: value for key, value in audit.items() if key not in ("notes", "effective")}
    said = said or [f"{label}: {value}" for label, value in _flat(figures)]
    notes, settings = audit.get("notes"), audit.get("effective")
    said += [clean(note) for note in notes] if isinstance(notes, (list, tuple)) else []
    flat = _flat(settings) if isinstance(settings, Mapping) else ()
    effective = ", ".join(f"{label} {value}" for label, value in flat)
    return tuple(said + ([f"as proven: {effective}"] if effective else []))


def _refusal(item: Mapping[str, Any]) -> Refusal:
    name = item.get("variant") or item.get("name") or item.get("step", "?")
    return Refusal(clean(name), clean(item.get("reason", "")), clean(item.get("hint", "")))


def _flat(data: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Nested data as (dotted label, value) pairs; empty values are left out."""
    pairs: list[tuple[str, str]] = []
    for key, value in data.items():
        label = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label}.")
        elif isinstance(value, (list, tuple)):
            shown = [str(item) for item in value[:_LISTED]]
            shown += [f"and {len(value) - _LISTED} more"] if len(value) > _LISTED else []
            pairs += [(clean(label), clean(", ".join(shown)))] if value else []
        elif value not in (None, ""):
            pairs.append((clean(label), clean(value)))
    return tuple(pairs)
