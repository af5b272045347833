"""Which variant to open here: what the bundle says where it was built, else what trials on this machine say.

A bundle's default is the fastest that passed where it was built. On that machine it is taken as it is. On another one
each variant that could run is tried in a process of its own (`deploykit.runtime.trial`), and the fastest of those that
reproduce the self-test's vectors is taken; what was found is remembered (`deploykit.runtime.choice`), so that this
happens once. Where no process can be started, the bundle's own order holds, and the report says so.

What was measured while the machine was busy, or left undecided, is provisional: it holds for the time being, is told,
and is measured again by the next load or self-test that finds the machine quiet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.runtime import busy, hardware
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.busy import Busy
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.errors import MissingError
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import (
    PORTABLE,
    WORTH,
    Candidate,
    Device,
    Prefer,
    Row,
    candidates,
    drift_of,
    engine_version,
    model_bytes,
    unmet,
)
from deploykit.runtime.selftest import VariantResult
from deploykit.runtime.trust.models import check_model

Select = Literal["auto", "measure", "manifest"]
SELECTIONS: tuple[Select, ...] = ("auto", "measure", "manifest")


@dataclass(frozen=True)
class Wish:
    """What the caller asked for: ``prefer`` says of what most, ``select`` how it is found out."""

    prefer: Prefer = "speed"
    select: Select = "auto"
    options: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True)
class Decision:
    """``order``: what to open, each with the reason, the first that opens; ``rows``: every variant, none marked as used
    yet; ``failed``: was something tried, and nothing reproduced its vectors?
    """

    order: tuple[tuple[Variant, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    failed: bool = False


def decide(bundle: Bundle, wish: Wish, device: Device, check: Callable[[Variant], None]) -> Decision:
    """What to open. ``check`` is called with each variant before a trial opens it, and raises for what is not trusted.

    The order is empty when nothing can run here: the rows say why.
    """
    listed = candidates(bundle, wish.prefer, device)
    usable = [candidate for candidate in listed if not candidate.unmet]
    if not usable or wish.select == "manifest":
        return _as_built(listed)
    known, unread = _known(bundle, wish, listed, device) if wish.select == "auto" else (None, "")
    if known is not None:
        return known
    for candidate in usable:
        check(candidate.variant)
    return _measured(bundle, wish, listed, device, unread)


def _known(bundle: Bundle, wish: Wish, listed: Sequence[Candidate], device: Device) -> tuple[Decision | None, str]:
    """What was found where the bundle was built, if that is here, or by an earlier load; None where it is to be
    measured (again), and why what is remembered cannot be used.

    What is provisional holds while the machine is busy, when another measurement would settle nothing.
    """
    usable = _usable(listed)
    here = _built_here(bundle, usable[0].variant)
    doubt = _provisional(bundle, usable) if wish.prefer == "speed" else ""
    as_built = f", measured on this machine (hw {here})"
    if here and not doubt:
        return _as_built(listed, as_built), ""
    from deploykit.runtime import choice

    wanted = choice.wanted(bundle, [c.variant for c in usable], wish.prefer, wish.options, device)
    remembered, unread = choice.read(wanted)
    if remembered:
        doubt = choice.provisional(wanted)
    elif not here:
        return None, unread
    now = busy.look() if doubt else None
    if doubt and not (now and now.is_busy):
        return None, unread
    if remembered:
        notes = ("remembered from an earlier load", *_told(doubt, now))
        return _as_tried(bundle, wish.prefer, listed, remembered, notes), ""
    return _as_built(listed, as_built, _told(doubt, now)), ""


def _measured(bundle: Bundle, wish: Wish, listed: Sequence[Candidate], device: Device, unread: str) -> Decision:
    """Trials of what can run here, remembered; the bundle's own order where no process can be started."""
    from deploykit.runtime import choice

    usable = _usable(listed)
    before = busy.look() if len(usable) > 1 else None
    try:
        results = _try(bundle, wish, usable)
    except MissingError as error:
        return _as_built(listed, notes=(f"the bundle's own order holds, nothing was measured: {error.message}",))
    doubt = _disturbed(before) if len(results) > 1 and wish.prefer == "speed" else ""
    wanted = choice.wanted(bundle, [c.variant for c in usable], wish.prefer, wish.options, device)
    unkept = choice.write(wanted, results, doubt) if any(result.passed for result in results) else ""
    notes = tuple(filter(None, (unread, unkept, *_told(doubt, None))))
    return _as_tried(bundle, wish.prefer, listed, results, notes)


def _provisional(bundle: Bundle, usable: Sequence[Candidate]) -> str:
    """Why the bundle's default is to be measured again; empty where it is settled or there is nothing to choose."""
    listed = {variant.name for variant in bundle.manifest.variants}
    if sum(candidate.variant.name in listed for candidate in usable) < 2:
        return ""
    return str(_entry(bundle.manifest.provenance, "default", "provisional") or "")


def _disturbed(before: Busy | None) -> str:
    """Why what was just timed is provisional: the machine was busy before it or is behind it."""
    seen = [found for found in (before, busy.look()) if found is not None and found.is_busy]
    return max(seen, key=lambda found: found.others + found.stolen).sentence if seen else ""


def _told(doubt: str, now: Busy | None) -> tuple[str, ...]:
    if not doubt:
        return ()
    still = "; it is busy now too" if now is not None and now.is_busy else ""
    return (f"the choice is provisional: {doubt}{still}; the next load on a quiet machine measures again",)


def try_all(bundle: Bundle, names: Sequence[str], threads: int | None) -> list[VariantResult]:
    """Try the variants of those names, the portable one among them; remembered for a load with as many ``threads``.

    `MissingError` when no process can be started here; `BundleError` for a model that is not trusted.
    """
    from deploykit.runtime import choice, trial

    device, options = Device(), EngineOptions(threads)
    variants = [bundle.variant(name) for name in names]
    lacks = {v.name: unmet(v, device, model_bytes(bundle, v)) for v in variants}
    usable = [variant for variant in variants if not lacks[variant.name]]
    for variant in usable:
        check_model(bundle, variant)
    before = busy.look() if len(usable) > 1 else None
    found = {result.variant: result for result in trial.run(bundle, usable, options, trial.SECONDS)} if usable else {}
    if any(result.passed for result in found.values()):
        doubt = _disturbed(before) if len(usable) > 1 else ""
        # The key counts every candidate, and those are all variants.
        choice.write(choice.wanted(bundle, usable, "speed", options, device), list(found.values()), doubt)
    refused = [VariantResult(name, "refused", None, reason, None) for name, reason in lacks.items() if reason]
    found |= {result.variant: result for result in refused}
    return [found[name] for name in names]


def taken(bundle: Bundle, results: Sequence[VariantResult]) -> tuple[str, str]:
    """The variant that a load takes after ``results`` were found here, and why; both empty when none can run."""
    device = Device()
    listed = candidates(bundle, "speed", device)
    usable = [candidate for candidate in listed if not candidate.unmet]
    settled = usable and not _provisional(bundle, usable)
    if settled and (machine := _built_here(bundle, usable[0].variant)):
        decision = _as_built(listed, f", measured on this machine (hw {machine})")
    else:
        tried = [result for result in results if not any(c.variant.name == result.variant and c.unmet for c in listed)]
        decision = _as_tried(bundle, "speed", listed, tried)
    if not decision.order:
        return "", ""
    variant, why = decision.order[0]
    return variant.name, why


def _built_here(bundle: Bundle, variant: Variant) -> str:
    """The hardware id of this machine where ``variant`` was built and measured on it with the engine that is installed;
    else empty.
    """
    provenance = bundle.manifest.provenance
    built_on = variant.latency.get("hardware") or _entry(provenance, "machine", "id")
    if not built_on or built_on != hardware.machine()["id"]:
        return ""
    built_with = _entry(provenance, "software", variant.target)
    return str(built_on) if built_with in (None, engine_version(variant.target)) else ""


def _entry(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _try(bundle: Bundle, wish: Wish, usable: Sequence[Candidate]) -> list[VariantResult]:
    """Trials of the bundle's own variants; of the portable model only where none of those passes."""
    from deploykit.runtime import trial

    listed = {variant.name for variant in bundle.manifest.variants}
    own = [c.variant for c in usable if c.variant.name in listed]
    results: list[VariantResult] = []
    if wish.prefer == "size":
        for variant in own:  # the smallest first: the first that passes is the one
            results += trial.run(bundle, [variant], wish.options)
            if results[-1].passed:
                break
    elif own:
        results += trial.run(bundle, own, wish.options, trial.SECONDS if len(own) > 1 else 0.0)
    spare = [c.variant for c in usable if c.variant.name not in listed]
    if spare and not any(result.passed for result in results):
        results += trial.run(bundle, spare, wish.options)
    return results


def _as_built(listed: Sequence[Candidate], where: str = "", notes: tuple[str, ...] = ()) -> Decision:
    """The order of the manifest."""
    order = tuple((c.variant, f"{c.why}{where if not i else ''}") for i, c in enumerate(_usable(listed)))
    return Decision(order, tuple(_untried(candidate) for candidate in listed), notes)


def _as_tried(
    bundle: Bundle,
    prefer: Prefer,
    listed: Sequence[Candidate],
    results: Sequence[VariantResult],
    notes: tuple[str, ...] = (),
) -> Decision:
    """The order that the trials found; the portable model last, where it was not tried."""
    found = {result.variant: result for result in results}
    passed = [c for c in _usable(listed) if c.variant.name in found and found[c.variant.name].passed]
    if prefer == "size":
        passed.sort(key=lambda c: model_bytes(bundle, c.variant))
    else:
        passed = _by_speed(passed, {name: _or_inf(result.p50_ms) for name, result in found.items()})
    untried = [c for c in _usable(listed) if bundle.is_portable(c.variant) and c.variant.name not in found]
    order = [(c.variant, _why(bundle, prefer, passed)) for c in passed] + [(c.variant, PORTABLE) for c in untried]
    rows = tuple(_row(c, found.get(c.variant.name)) for c in listed)
    return Decision(tuple(order), rows, notes, not order and any(r.cosine_min is not None for r in results))


def _by_speed(passed: Sequence[Candidate], p50_ms: Mapping[str, float]) -> list[Candidate]:
    """The fastest first, but behind those that are about as fast and drift less; last those whose vectors change with
    their batch.
    """
    order = sorted(passed, key=lambda c: (c.variant.batch_dependent, p50_ms[c.variant.name]))
    if not order:
        return []
    first = order[0]
    reach = WORTH * p50_ms[first.variant.name]
    equal = [
        c
        for c in order
        if p50_ms[c.variant.name] <= reach and c.variant.batch_dependent == first.variant.batch_dependent
    ]
    best = min(equal, key=lambda c: drift_of(c.variant)) if reach < math.inf else first
    return [best, *(c for c in order if c is not best)]


def _why(bundle: Bundle, prefer: Prefer, passed: Sequence[Candidate]) -> str:
    """Why the first of ``passed`` is taken."""
    if prefer == "size":
        return "the smallest that passes the self-test here"
    if len(passed) > 1:
        return f"the fastest of {len(passed)} that pass the self-test here"
    return PORTABLE if bundle.is_portable(passed[0].variant) else "the one that passes the self-test here"


def _row(candidate: Candidate, result: VariantResult | None) -> Row:
    if candidate.unmet or result is None:
        return _untried(candidate)
    status: Literal["usable", "refused"] = "usable" if result.passed else "refused"
    why = "passes the self-test here" if result.passed else result.reason
    if result.passed and candidate.variant.batch_dependent:
        why = f"{why}; its vectors change with their batch"
    return Row(result.variant, status, why, result.cosine_min, result.p50_ms)


def _untried(candidate: Candidate) -> Row:
    if candidate.unmet:
        return Row(candidate.variant.name, "refused", candidate.unmet)
    return Row(candidate.variant.name, "usable", f"can run ({candidate.known})")


def _usable(listed: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in listed if not candidate.unmet]


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
