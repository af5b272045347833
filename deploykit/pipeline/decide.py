"""From the artefacts of a run to the variants that are handed over: candidates, choice, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.budget import Budget
from deploykit.drift import Drift
from deploykit.errors import CheckError, DeploykitError, MissingError
from deploykit.pipeline.choose import (
    DRIFT_TERMS,
    REFERENCE_PRECISION,
    Candidate,
    Choice,
    DriftFaults,
    choose,
    drift_faults,
)
from deploykit.pipeline.store import Artifact
from deploykit.recipe import AUTO, Recipe
from deploykit.runtime.busy import Busy
from deploykit.runtime.manifest import BATCH_DEPENDENT

Artifacts = Mapping[str, Artifact]


@dataclass(frozen=True)
class Decided:
    """What goes into the bundle: the artefacts without those of variants that were not taken, and a row for each.

    ``notes`` are sentences for the user: what is handed over and was not judged, and a choice under noise.
    """

    artifacts: dict[str, Artifact]
    refused: tuple[dict[str, Any], ...]
    candidates: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


def decide(recipe: Recipe, artifacts: Artifacts, refused: Sequence[dict[str, Any]]) -> Decided:
    """Keep the variants inside the budget.

    Raises `BudgetError` when there was a choice and none of them is inside; `CheckError`, or `MissingError` where each
    of them only lacks something here, when no variant came out at all: a bundle of none is no bundle.
    """
    budget, auto = recipe.budget.parsed(), AUTO in recipe.variants.precisions
    candidates = _candidates(recipe, artifacts, budget)
    if refused and not candidates:
        raise _none_left(refused)
    choice = choose(candidates, budget, auto=auto)
    rows = tuple(decision.row() for decision in choice.decisions)
    if candidates and not choice.kept:
        raise BudgetError(recipe.budget.limits, rows, _tried(artifacts))
    over = [_refusal(d.candidate.name, d.reason) for d in choice.decisions if d.refused]
    over += [_refusal(f"{target}-{AUTO}", "nothing is inside the budget") for target in choice.empty_targets if auto]
    gone = {c.name for c in candidates} - set(choice.kept)
    dropped = {f"{kind}:{name}" for kind in ("compile", "verify") for name in gone}
    kept = {name: item for name, item in artifacts.items() if name not in dropped}
    still, lost = _failures(recipe, refused, choice)
    notes = (*_not_judged(recipe, choice), *(_disturbed(artifacts) if auto else ()))
    return Decided(kept, (*still, *over), (*rows, *lost), notes)


def _none_left(refused: Sequence[dict[str, Any]]) -> DeploykitError:
    reasons = "; ".join(f"{item['variant']}: {item['reason']}" for item in refused)
    hints = dict.fromkeys(str(item["hint"]) for item in refused if item.get("hint"))
    failed = any(int(item["exit_code"]) == 1 for item in refused)
    kind = CheckError if failed else MissingError
    return kind(f"no variant is left, so no bundle was written ({reasons})", hint="; ".join(hints))


def _disturbed(artifacts: Artifacts) -> tuple[str, ...]:
    """That the times, by which one variant of each target was kept, were taken on a busy machine."""
    was = artifacts["measure"].metadata.get("busy") if "measure" in artifacts else None
    if not was or not Busy(**was).is_busy:
        return ()
    return (f"what auto kept is provisional: {Busy(**was).sentence}; run it again in quiet, and the times are new",)


def _not_judged(recipe: Recipe, choice: Choice) -> tuple[str, ...]:
    """What is handed over though nothing decided whether it is inside the budget, and what would decide it."""
    return tuple(
        f"{d.candidate.name} was not judged by the budget '{recipe.budget.limits}': {' '.join(d.candidate.unsure)} "
        "More inputs decide it (--evaluation FILE); --budget none says that none is wanted"
        for d in choice.decisions
        if d.kept and d.candidate.unsure
    )


class BudgetError(CheckError):
    """Nothing that was built is inside the budget; ``rows`` hold the figures of all of it, a search's trials too."""

    def __init__(self, budget: str, rows: Sequence[Mapping[str, Any]], tried: Sequence[Mapping[str, Any]] = ()) -> None:
        reasons = "; ".join(f"{row['variant']}: {row['reason']}" for row in rows)
        super().__init__(
            f"nothing is inside the budget '{budget}' ({reasons})",
            hint="widen the budget (--budget none: no budget at all), or give more calibration data and more inputs to "
            "judge by (--calibration, --evaluation); no bundle was written",
        )
        self.rows = (*rows, *tried)


def _tried(artifacts: Artifacts) -> list[dict[str, Any]]:
    """A row for each set of kinds that a search put back to float."""
    rows = []
    for name, found in artifacts.items():
        for trial in found.metadata.get("trials", ()) if name.startswith("search:") else ():
            if trial["keep"]:
                figures = {key: trial[key] for key in ("drift", "p1", "task") if key in trial}
                reason = f"tried, with {', '.join(trial['keep'])} in float: not inside the budget"
                rows.append(
                    {"variant": f"{name.partition(':')[2]}-partial", "kept": False, "reason": reason, **figures}
                )
    return rows


def _candidates(recipe: Recipe, artifacts: Artifacts, budget: Budget) -> list[Candidate]:
    latency = artifacts["measure"].metadata["latency"] if "measure" in artifacts else {}
    names = [name.partition(":")[2] for name in artifacts if name.startswith("verify:")]
    return [_candidate(name, recipe, artifacts, latency.get(name, {}), budget) for name in names]


def _candidate(
    name: str, recipe: Recipe, artifacts: Artifacts, latency: Mapping[str, Any], budget: Budget
) -> Candidate:
    compiled, verified = artifacts[f"compile:{name}"].metadata, artifacts[f"verify:{name}"].metadata
    row = latency.get(recipe.budget.workload, {})
    figures: dict[str, float] = {"size": float(_bytes(artifacts, name))}
    if row:
        figures |= {"p50": row["p50_ms"], "throughput": 1000 * row["shape"][0] / row["p50_ms"]}
    drift = Drift.from_json(verified["drift"]) if verified["drift"] else None
    figures |= drift.terms if drift else {}
    found = _drift_faults(drift, compiled["precision"], budget)
    faults, unsure = found.outside, found.unsure
    if recipe.budget.undecided == "refuse":
        faults, unsure = (*faults, *unsure), ()
    searched = artifacts[f"search:{name}"].metadata if f"search:{name}" in artifacts else {}
    if faults and searched.get("nothing"):
        faults = (*faults, searched["nothing"])
    return Candidate(
        name=name,
        target=compiled["target"],
        precision=compiled["precision"],
        figures=figures,
        low_ms=row.get("low_ms", float("nan")),
        high_ms=row.get("high_ms", float("nan")),
        asked=compiled["precision"] in recipe.variants.precisions and not _is_partial(name),
        partial=_is_partial(name),
        faults=faults,
        unsure=unsure,
        batch_dependent=bool(compiled["lowered"].get(BATCH_DEPENDENT)),
        ran="checked_on" not in verified["proof"],
    )


def _drift_faults(drift: Drift | None, precision: str, budget: Budget) -> DriftFaults:
    """What the budget says of a drift; the reference by itself has nothing to prove, however few the inputs are."""
    limited = budget.only(DRIFT_TERMS)
    if precision == REFERENCE_PRECISION or not limited.limits:
        return DriftFaults()
    if drift is None:
        return DriftFaults(unsure=("Its drift could not be measured: there is no evaluation data.",))
    return drift_faults(drift, limited)


def _is_partial(name: str) -> bool:
    return name.endswith("-partial")


def _bytes(artifacts: Artifacts, name: str) -> int:
    """What the engine loads: the variant's own files, or the portable model where it has none."""
    compiled = artifacts[f"compile:{name}"]
    if not compiled.metadata["path"]:
        return _size(artifacts["export"].path, "model.onnx*")
    return _size(compiled.path, "*") - _size(compiled.path, "artifact.json")


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def _failures(
    recipe: Recipe, refused: Sequence[dict[str, Any]], choice: Choice
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Failures of what was asked for, and rows for those of candidates that nobody asked for by name."""
    still, lost = [], []
    for item in refused:
        precisions = [p for p in recipe.variants.precisions if p != AUTO]
        asked = any(item["variant"].endswith(f"-{p}") or item["step"].startswith(f"lower:{p}") for p in precisions)
        if asked or not choice.kept:
            still.append(item)
        else:
            name = item["variant"] + ("-partial" if item["step"].startswith("search:") else "")
            lost.append({"variant": name, "kept": False, "reason": f"not built: {item['reason']}"})
    return still, lost


def _refusal(variant: str, reason: str) -> dict[str, Any]:
    return {
        "variant": variant,
        "step": "budget",
        "error": "BudgetError",
        "reason": reason,
        "hint": "give calibration data of your own, widen the budget (--budget none: no budget at all), or take "
        "--precision auto",
        "exit_code": CheckError.exit_code,
    }
