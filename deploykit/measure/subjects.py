"""Who takes part in a bench: the variants that were asked for, and the baselines that can run here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploykit.errors import InputError, MissingError, UnknownNameError, nearest
from deploykit.measure import baselines
from deploykit.measure.baselines import Baseline
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import install_hint
from deploykit.runtime.loading import split_variant
from deploykit.runtime.manifest import Manifest, Variant
from deploykit.runtime.selection import Device, unmet

# No figure of a manifest is larger; NaN and infinities are not smaller.
_MOST = 2**53


@dataclass(frozen=True)
class Opened:
    """A bundle, what it is called in the result, and the variants of it that are to be measured."""

    label: str
    path: str
    bundle: Bundle
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Subject:
    """One row of the result: a variant or a baseline, what the worker is given, and what is known beforehand."""

    name: str
    bundle: str
    job: Mapping[str, Any]
    facts: Mapping[str, Any]


def open_bundles(specs: Sequence[str], variants: Sequence[str]) -> list[Opened]:
    """Open the bundles and check every file of them.

    ``NAME.bundle@variant`` asks for one variant of that bundle, ``variants`` for those of every bundle that has them;
    without either all are meant. `UnknownNameError` gives the nearest variant, `InputError` says that the bundles
    encode different things.
    """
    if not specs:
        raise InputError("there is no bundle to measure", hint="name one: deploykit bench minilm.bundle")
    asked: dict[Path, list[str]] = {}
    for spec in specs:
        place, variant = split_variant(spec)
        asked.setdefault(place, []).extend([variant] if variant else [])
    opened = {place: Bundle.open(place) for place in asked}
    for bundle in opened.values():
        bundle.verify()
    known = {name for bundle in opened.values() for name in _names(bundle)}
    for name in variants:
        if name not in known:
            raise UnknownNameError(f"no bundle here has a variant '{name}'", hint=nearest(name, sorted(known)))
    kinds = {bundle.manifest.card.modality for bundle in opened.values()}
    if len(kinds) > 1:
        raise InputError(f"the bundles encode {' and '.join(sorted(kinds))}", hint="measure one kind at a time")
    labels = _labels(list(opened))
    found = []
    for place, bundle in opened.items():
        names = [*asked[place], *(name for name in variants if name in _names(bundle))]
        if not names and not variants:
            names = [variant.name for variant in bundle.manifest.variants] or ["portable"]
        chosen = {bundle.variant(name).name: bundle.variant(name) for name in names}
        found.append(Opened(labels[place], str(place), bundle, tuple(chosen.values())))
    return found


def choose(opened: Sequence[Opened], wanted: Sequence[str] | None) -> tuple[list[Subject], list[dict[str, str]]]:
    """The subjects in order, and what cannot take part with the reason. ``wanted`` None: every baseline.

    `MissingError` when no variant can run here.
    """
    found: list[Subject] = []
    missing: list[dict[str, str]] = []
    names = baselines.NAMES if wanted is None else baselines.wanted(wanted)
    seen: set[tuple[str, str]] = set()
    for one in opened:
        prefix = f"{one.label}@" if len(opened) > 1 else ""
        for variant in one.variants:
            reason = unmet(variant, Device())
            if reason:
                hint = install_hint([variant.target]) if "is not installed" in reason else ""
                missing.append(unavailable(prefix + variant.name, "variant", reason, hint))
            else:
                found.append(_of_variant(one, variant, prefix))
        # Two bundles of one model share its baselines.
        fresh = [name for name in names if (name, _origin(one.bundle)) not in seen]
        seen |= {(name, _origin(one.bundle)) for name in fresh}
        here, absent = baselines.find(one.bundle, fresh)
        found += [_of_baseline(one, baseline, prefix) for baseline in here]
        missing += [unavailable(prefix + item.name, "baseline", item.reason, item.hint) for item in absent]
    if not any(subject.facts["kind"] == "variant" for subject in found):
        reasons = "; ".join(f"'{item['name']}': {item['reason']}" for item in missing if item["kind"] == "variant")
        raise MissingError(
            f"no variant can be measured here ({reasons or 'none was asked for'})",
            hint="install what is missing, or build the bundle for this machine",
        )
    return found, missing


def unavailable(name: str, kind: str, reason: str, hint: str) -> dict[str, str]:
    """An entry of the result's ``unavailable``."""
    return {"name": name, "kind": kind, "reason": reason, "hint": hint}


def loaded_bytes(manifest: Manifest, path: str) -> int:
    """The size of an artefact with its companions: files beside it with the same stem (OpenVINO's ``.bin``)."""
    own = PurePosixPath(path)
    files = [(PurePosixPath(name), entry.size) for name, entry in manifest.files.items()]
    beside = [(file, size) for file, size in files if file.parent == own.parent]
    return sum(size for file, size in beside if file.name.split(".")[0] == own.name.split(".")[0])


def _of_variant(one: Opened, variant: Variant, prefix: str) -> Subject:
    from deploykit.report.model import audit_sentences

    manifest = one.bundle.manifest
    facts = {
        "name": prefix + variant.name,
        "kind": "variant",
        "bundle": one.label,
        "what": "the bundle's default" if variant.name == manifest.default else "",
        "target": variant.target,
        "precision": variant.precision,
        "bytes": loaded_bytes(manifest, variant.path),
        "accuracy": _accuracy(variant, manifest),
        "drift_by_size": _buckets(variant),
        "audit": list(audit_sentences(variant.audit)),
    }
    job = {"kind": "bundle", "path": str(one.bundle.root.resolve()), "variant": variant.name}
    return Subject(prefix + variant.name, one.label, job, facts)


def _of_baseline(one: Opened, baseline: Baseline, prefix: str) -> Subject:
    facts: dict[str, Any] = {
        "name": prefix + baseline.name,
        "kind": "baseline",
        "bundle": one.label,
        "what": baseline.what,
        "target": baseline.target,
        "precision": baseline.precision,
        "bytes": baseline.bytes,
        "accuracy": None,
        "drift_by_size": [],
        "audit": [],
    }
    return Subject(prefix + baseline.name, one.label, baseline.subject(), facts)


def _accuracy(variant: Variant, manifest: Manifest) -> dict[str, Any] | None:
    """Drift on real inputs as it was measured when the bundle was built, or None; what is no number says nothing."""
    mean = as_number(_inside(variant.drift, "figures", "cosine_mean", "value"))
    if mean is None:
        return None
    data = _inside(manifest.provenance, "samples", "evaluation", "data")
    count = int(as_number(variant.drift.get("n")) or 0)
    return {"drift": max(0.0, 1 - mean), "basis": "drift", "n": count, "data": str(data or "")}


def _buckets(variant: Variant) -> list[dict[str, Any]]:
    """Its drift by size, without rows that say nothing."""
    given = variant.drift.get("buckets")
    found = []
    for row in given if isinstance(given, list) else ():
        n, mean, low = (as_number(_inside(row, key)) for key in ("n", "mean", "min"))
        if n is not None and mean is not None and low is not None:
            found.append({"size": str(_inside(row, "size")), "n": int(n), "mean": mean, "min": low})
    return found


def as_number(value: Any) -> float | None:
    """A finite number out of a manifest, which holds what whoever wrote it put there; None for all else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST
    return float(value) if usable else None


def _inside(data: Any, *keys: str) -> Any:
    """What lies at the end of ``keys``, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _origin(bundle: Bundle) -> str:
    source = bundle.manifest.provenance.get("source")
    digest = source.get("digest") if isinstance(source, Mapping) else None
    return str(digest or bundle.digest)


def _names(bundle: Bundle) -> list[str]:
    return [*(variant.name for variant in bundle.manifest.variants), "portable"]


def _labels(places: Sequence[Path]) -> dict[Path, str]:
    """The bundles' names without their ending; the whole path where two would be called the same."""
    short = {place: place.name.removesuffix(".bundle").removesuffix(".dkb") for place in places}
    return {place: name if list(short.values()).count(name) == 1 else str(place) for place, name in short.items()}
