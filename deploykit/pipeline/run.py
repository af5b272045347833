"""Carries out a plan: takes what the store has, makes the rest in child processes, and hands over a bundle."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploykit import report
from deploykit.bundle.write import check_output
from deploykit.errors import DeploykitError, RecipeError, nearest
from deploykit.pipeline import assemble, training
from deploykit.pipeline.child import Request, reproduce_command, run_in_child
from deploykit.pipeline.decide import decide
from deploykit.pipeline.plan import Plan, follow_up, measuring
from deploykit.pipeline.plan import plan as plan_again
from deploykit.pipeline.step import Step
from deploykit.pipeline.store import Artifact, Store, disk_errors

State = Literal["reused", "started", "running", "done", "failed", "skipped"]
FINAL_STEPS = ("bundle", "report")
_KINDS = ("export", "samples", "lower", "compile", "verify", "search", "measure", *FINAL_STEPS)


@dataclass(frozen=True)
class Event:
    """Something that happened to a step; ``note`` is a sentence for the user, or empty. Training tells ``running``."""

    step: str
    state: State
    seconds: float = 0.0
    note: str = ""


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


@dataclass
class _State:
    """The artefacts made so far, and the steps that could not be carried out."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    worked: bool = False


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
    state = _State()
    if plan.training is not None:
        state.worked = not plan.training.finished
        _train(plan.training, until, store, on_event)
        if until == training.NAME:
            return Outcome(unchanged=not state.worked, seconds=time.perf_counter() - started)
        plan = plan if plan.steps else plan_again(plan.recipe)
    steps = _until(plan, until)
    with disk_errors(f"the store at '{store.root}'"), store.lock(_lock_name(output), wait=False, what=str(output)):
        _carry_out_all(plan, steps, store, state, on_event)
        if until is not None and until not in FINAL_STEPS:
            refused = tuple(state.failures.values())
            return Outcome(refused=refused, notes=plan.notes, seconds=time.perf_counter() - started)
        finished = _finish(plan, state, output, store, on_event)
    return Outcome(**finished, notes=plan.notes, seconds=time.perf_counter() - started)


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


def _carry_out_all(
    plan: Plan, steps: Sequence[Step], store: Store, state: _State, on_event: Callable[[Event], None]
) -> None:
    """Every step in order, and what the outcome of one asks for directly behind it."""
    waiting = deque(steps)
    while waiting:
        step = waiting.popleft()
        if step.kind == "measure":
            step = measuring(step, [name.partition(":")[2] for name in state.artifacts if name.startswith("verify:")])
        _carry_out(step, store, state, on_event)
        if step.name in state.artifacts:
            waiting.extendleft(reversed(follow_up(plan.recipe, step, state.artifacts[step.name].metadata)))


def _carry_out(step: Step, store: Store, state: _State, on_event: Callable[[Event], None]) -> None:
    """Take the step's artefact from the store or make it; a failure of an optional step is kept in ``state``."""
    parents = _parents(step, state)
    if parents is None:
        on_event(Event(step.name, "skipped", note="what it needs was not made"))
        return
    key = step.key([artifact.digest for artifact in parents.values()])
    with store.lock(key, wait=True):  # another run may be making the same artefact: wait, then take it
        artifact = store.find(key) if step.reusable else None
        if artifact is not None:
            state.artifacts[step.name] = artifact
            on_event(Event(step.name, "reused"))
            return
        state.worked = True
        on_event(Event(step.name, "started", note=step.describe()))
        begun = time.perf_counter()
        try:
            state.artifacts[step.name] = artifact = _make(step, key, parents, store)
        except DeploykitError as error:
            on_event(Event(step.name, "failed", time.perf_counter() - begun, error.message))
            if step.required:
                raise
            state.failures[step.name] = _failure(step, error)
            return
        notes = "; ".join(artifact.metadata.get("notes", ()))
        on_event(Event(step.name, "done", time.perf_counter() - begun, notes))


def _parents(step: Step, state: _State) -> dict[str, Artifact] | None:
    """The artefacts that the step reads; None when one is missing, or there is nothing to measure."""
    if any(parent not in state.artifacts for parent in step.parents):
        return None
    if step.kind == "measure" and not step.options["variants"]:
        return None
    return {parent: state.artifacts[parent] for parent in step.parents}


def _make(step: Step, key: str, parents: Mapping[str, Artifact], store: Store) -> Artifact:
    """Run the step's action in a child process and commit what it made; keep request and log when it fails."""
    with store.workspace() as work:
        request = Request(
            step=step.name,
            action=step.action,
            options=dict(step.options),
            inputs={name: str(artifact.path) for name, artifact in parents.items()},
            out=str(work / "out"),
        )
        with _kept_failure(store, step, key, work):
            metadata = run_in_child(request, work, step.timeout_s)
        digests = tuple(artifact.digest for artifact in parents.values())
        return store.commit(key, step.kind, work / "out", metadata, digests)


@contextmanager
def _kept_failure(store: Store, step: Step, key: str, work: Path) -> Iterator[None]:
    """On failure keep the request and the log, and add the command that reproduces it to the error's hint."""
    try:
        yield
    except DeploykitError as error:
        files = {name: (work / name).read_text(errors="replace") for name in ("request.json", "log.txt")}
        folder = store.keep_failure(f"{step.name.replace(':', '-')}-{key[:8]}", files)
        request = folder / "request.json"
        request.write_text(files["request.json"].replace(str(work / "out"), str(folder / "out")), encoding="utf-8")
        reproduce = f"log: {folder / 'log.txt'}\n  → reproduce: {reproduce_command(request)}"
        error.hint = f"{error.hint}\n  → {reproduce}" if error.hint else reproduce
        raise


def _failure(step: Step, error: DeploykitError) -> dict[str, Any]:
    return {
        "variant": step.name.partition(":")[2],
        "step": step.name,
        "error": type(error).__name__,
        "reason": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def _finish(plan: Plan, state: _State, output: Path, store: Store, on_event: Callable[[Event], None]) -> dict[str, Any]:
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
        "unchanged": not state.worked and not built.written,
    }


def _lock_name(output: Path) -> str:
    """One lock per output path; the readable part is for people who look, the digest makes it unique."""
    return f"{output.name}-{hashlib.sha256(str(output).encode()).hexdigest()[:12]}"
