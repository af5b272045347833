"""Carries out a plan: its steps, several at a time where they do not disturb each other, and hands over a bundle."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import report
from deploykit.bundle.write import check_output
from deploykit.errors import RecipeError, nearest
from deploykit.pipeline import assemble, training
from deploykit.pipeline.decide import decide
from deploykit.pipeline.plan import Plan
from deploykit.pipeline.plan import plan as plan_again
from deploykit.pipeline.schedule import Event as Event
from deploykit.pipeline.schedule import State, carry_out
from deploykit.pipeline.step import Step
from deploykit.pipeline.store import Artifact, Store, disk_errors

FINAL_STEPS = ("bundle", "report")
_KINDS = ("export", "samples", "judge", "lower", "compile", "verify", "search", "measure", *FINAL_STEPS)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind. ``refused`` holds the variants that did not pass, with reason and reproduce command;
    ``candidates`` all that were measured, with figures, and why each was taken or not.

    ``unchanged`` is True when nothing had to be done: every artefact was in the store and the bundle in its place.
    """

    bundle: Path | None = None
    report: Path | None = None
    variants: tuple[dict[str, Any], ...] = ()
    refused: tuple[dict[str, Any], ...] = ()
    candidates: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    unchanged: bool = False
    seconds: float = 0.0


def run(
    plan: Plan,
    *,
    until: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    store: Store | None = None,
) -> Outcome:
    """Carry out ``plan``, up to and with step (or kind of step) ``until``.

    A step that only concerns one variant may fail: the variant is refused and the others go on. Raises the error of
    any other step, `BusyError` when another run writes the same bundle, `DiskError` when the disk is full.
    """
    store = store or Store()
    started = time.perf_counter()
    output = plan.recipe.bundle.output.absolute()
    check_output(output)  # before minutes of work, not after
    state = State()
    if plan.training is not None:
        state.worked = not plan.training.finished
        _train(plan.training, until, store, on_event)
        if until == training.NAME:
            return Outcome(unchanged=not state.worked, seconds=time.perf_counter() - started)
        plan = plan if plan.steps else plan_again(plan.recipe)
    steps = _until(plan, until)
    with disk_errors(f"the store at '{store.root}'"), store.lock(_lock_name(output), wait=False, what=str(output)):
        carry_out(plan.recipe, steps, store, state, on_event)
        if until is not None and until not in FINAL_STEPS:
            refused = tuple(state.failures.values())
            return Outcome(refused=refused, notes=plan.notes, seconds=time.perf_counter() - started)
        finished = _finish(plan, state, output, store, on_event)
    return Outcome(**finished, seconds=time.perf_counter() - started)


def status(plan: Plan, store: Store | None = None) -> list[tuple[Step, bool]]:
    """For each step: is its artefact in the store already? Steps behind one that is missing count as missing."""
    store = store or Store()
    found: dict[str, Artifact] = {}
    rows = [] if plan.training is None else [(plan.training.step, plan.training.finished)]
    for step in plan.steps:
        artifact = None
        if step.reusable and all(parent in found for parent in step.parents):
            artifact = store.find(step.key([found[parent].digest for parent in step.parents]))
        if artifact is not None:
            found[step.name] = artifact
        rows.append((step, artifact is not None))
    return rows


def _train(wanted: training.Training, until: str | None, store: Store, on_event: Callable[[Event], None]) -> None:
    """Carry out the training that the plan begins with, unless it is finished."""
    if until is not None and until.partition(":")[0] not in (training.NAME, *_KINDS):  # not after hours of training
        raise RecipeError(f"the plan has no step '{until}'", hint=nearest(until, [training.NAME, *_KINDS]))
    if wanted.finished:
        on_event(Event(training.NAME, "reused"))
        return
    begun = time.perf_counter()

    def tell(text: str) -> None:
        on_event(Event(training.NAME, "running", time.perf_counter() - begun, text))

    folder = wanted.recipe.output.absolute()
    with store.lock(_lock_name(folder), wait=False, what=str(folder)):
        on_event(Event(training.NAME, "started", note=wanted.step.describe()))
        note = training.carry_out(wanted, tell)
    on_event(Event(training.NAME, "done", time.perf_counter() - begun, note))


def _until(plan: Plan, until: str | None) -> tuple[Step, ...]:
    if until is None or until in FINAL_STEPS:
        return plan.steps
    matching = [i for i, step in enumerate(plan.steps) if until in (step.name, step.kind)]
    if not matching:
        known = [*dict.fromkeys(name for step in plan.steps for name in (step.kind, step.name)), *FINAL_STEPS]
        raise RecipeError(f"the plan has no step '{until}'", hint=nearest(until, known))
    return plan.steps[: matching[-1] + 1]


def _finish(plan: Plan, state: State, output: Path, store: Store, on_event: Callable[[Event], None]) -> dict[str, Any]:
    """Assemble the bundle and the report, unless they already stand there just as they would become."""
    begun = time.perf_counter()
    decided = decide(plan.recipe, state.artifacts, tuple(state.failures.values()))
    built = assemble.bundle(plan, decided, output, store)
    on_event(Event("bundle", "done" if built.written else "reused", time.perf_counter() - begun, str(output)))
    page = None
    if plan.recipe.report.enabled:
        page = report.write(built.manifest, output)
        on_event(Event("report", "done" if built.written else "reused", note=str(page)))
    return {
        "bundle": output,
        "report": page,
        "variants": built.variants,
        "refused": decided.refused,
        "candidates": decided.candidates,
        "notes": (*built.manifest.card.provenance.get("notes", ()), *plan.notes, *decided.notes, *built.notes),
        "unchanged": not state.worked and not built.written,
    }


def _lock_name(output: Path) -> str:
    """One lock per output path; the readable part is for people who look, the digest makes it unique."""
    return f"{output.name}-{hashlib.sha256(str(output).encode()).hexdigest()[:12]}"
