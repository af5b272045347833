"""What is judged without statistics: what the artefacts run here, and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploykit.audit import describe, diff, is_kernel, kernel, products
from deploykit.budget import Budget, Limit, figure_text
from deploykit.gate.result import Row, RowStatus
from deploykit.gate.sides import Facts, Side
from deploykit.measure.paired import Arm

#: A change of bytes below this is nobody's regression, whatever its share.
LEAST_BYTES = 2**20
# Changes of an audit that fail alone: each is a silent fallback. Of the others the clock tells what they cost.
_FALLBACKS = frozenset({"device", "asked", "effective", "products", "attention"})


def audit_row(candidate: Side, found: Mapping[Arm, Facts]) -> Row:
    """FAIL when the candidate does not run here in what its manifest says, or runs a step below the baseline."""
    ours, theirs = found["candidate"], found["baseline"]
    changes = diff(theirs.audit, ours.audit)
    figures: dict[str, Any] = {
        "candidate": dict(ours.audit),
        "baseline": dict(theirs.audit),
        "changes": [vars(change) for change in changes],
    }
    faults = lost(ours) or [change.sentence for change in changes if change.worse and change.what in _FALLBACKS]
    if faults:
        sentence = f"{candidate.label} is not what it was: {'; '.join(faults)} (counted here, no noise)."
        return Row("audit", "FAIL", "nothing lost", sentence, _look(theirs, ours), figures)
    told = [change.sentence for change in changes]
    said = f" Changed, and nothing that fails alone: {'; '.join(told)}." if told else " As the baseline's."
    return Row("audit", "PASS", "nothing lost", f"{candidate.label}: {describe(ours.audit)}{said}", figures=figures)


def size_rows(budget: Budget, candidate: Side, baseline: Side) -> list[Row]:
    """The limits on size: relative ones hold for the variant's files and for the whole bundle, others for the files."""
    rows = []
    for limit in budget.only(["size"]).limits:
        pairs = [("size", candidate.size, baseline.size)]
        if limit.relative:
            pairs.append(("bundle size", candidate.total, baseline.total))
        for name, ours, theirs in pairs:
            look = "compare `deploykit inspect` of both: precision, what was left in fp32, files that came in addition"
            rows.append(bytes_row(name, candidate.label, limit, (ours, theirs), "exact", look))
    return rows


def bytes_row(name: str, label: str, limit: Limit, pair: tuple[float, float], sure: str, look: str) -> Row:
    """A limit on bytes. ``pair`` is (candidate, baseline); growth fails only above `LEAST_BYTES` too."""
    ours, theirs = pair
    term, text = limit.term, limit.text
    change = ours / theirs - 1 if theirs else 0.0
    if limit.relative:
        ok = limit.holds(change) or (limit.value >= 0 and ours - theirs <= LEAST_BYTES)
        against = f"{figure_text(term, ours)} against {figure_text(term, theirs)} ({100 * change:+.1f} %, {sure})"
    else:
        ok, against = limit.holds(ours), f"{figure_text(term, ours)} ({sure})"
    small = limit.relative and ok and not limit.holds(change)
    judged = f"outside {text}, but under 1 MiB" if small else f"{'inside' if ok else 'outside'} {text}"
    figures = {"candidate_bytes": ours, "baseline_bytes": theirs, "change": change}
    status: RowStatus = "PASS" if ok else "FAIL"
    return Row(name, status, text, f"{label}: {name} {against}, {judged}.", "" if ok else look, figures)


def lost(ours: Facts) -> list[str]:
    """The precision that the manifest promises and no product runs in, whatever the baseline does."""
    promised, counts = kernel(ours.precision), products(ours.audit)
    if not is_kernel(promised):  # a precision of another package: it was compiled as one that engines know
        promised = kernel(str(ours.audit.get("asked") or promised))
    # On CPUs fp16 is how weights are stored; their products are in fp32, and the target says so.
    stored_only = promised == "fp16" and "CPU" in str(ours.audit.get("device", ""))
    if promised == "fp32" or stored_only or not counts or counts.get(promised):
        return []
    return [f"asked for {ours.precision}, {describe(ours.audit).rstrip('.')}"]


def _look(theirs: Facts, ours: Facts) -> str:
    """What is most likely behind it: another variant, another engine version, or another way of building."""
    if theirs.precision != ours.precision:
        return f"{ours.variant} is held against {theirs.variant}: name variants that belong together with @"
    names = sorted({*theirs.software, *ours.software})
    moved = [
        f"{name} {theirs.software.get(name, 'none')} → {ours.software.get(name, 'none')}"
        for name in names
        if theirs.software.get(name) != ours.software.get(name)
    ]
    if moved:
        return f"the two ran with different software: {', '.join(moved)}"
    return (
        "look at how it was built: quantized operations that the engine cannot fuse, nodes left out of quantization, "
        "the session's settings; `deploykit inspect` shows the settings of both"
    )
