"""Carries out steps in child processes, several at a time, and takes what the store has.

Steps are pure, so those that do not need each other run side by side, each on its share of the cores. What measures
times, or runs an engine on all cores, runs alone, when nothing else is left to do (`Step.alone`). How many run at once
is as many as there are cores and as memory holds; ``DEPLOYKIT_JOBS`` sets another number, and 1 is one after the other.

What is told does not depend on which of two steps was faster: the ends of steps are told in the plan's order.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import BusyError, DeploykitError, RecipeError
from deploykit.pipeline.child import Children, Request, reproduce_command, run_in_child
from deploykit.pipeline.plan import follow_up, measuring
from deploykit.pipeline.reads import Reads
from deploykit.pipeline.step import Step
from deploykit.pipeline.store import Artifact, Found, Store
from deploykit.recipe import Recipe
from deploykit.runtime import busy
from deploykit.runtime.busy import Busy
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.memory import available

Progress = Literal["reused", "started", "running", "done", "failed", "skipped"]

_JOBS = "DEPLOYKIT_JOBS"
# What a step holds at its peak, as measured with small models and large ones: packages and statistics, and the model
# several times over.
_STEP_BYTES, _TIMES_THE_MODEL = 3 << 29, 6
_POLL_S = 0.1


@dataclass(frozen=True)
class Event:
    """Something that happened to a step; ``note`` is a sentence for the user, or empty. Training tells ``running``."""

    step: str
    state: Progress
    seconds: float = 0.0
    note: str = ""


@dataclass
class State:
    """The artefacts made so far, and the steps that could not be carried out."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    worked: bool = False


def carry_out(
    recipe: Recipe, steps: Sequence[Step], store: Store, state: State, on_event: Callable[[Event], None]
) -> None:
    """Every step, and what the outcome of one asks for, into ``state``.

    A failure of an optional step is kept there. Raises the error of any other step, once the children that ran beside
    it are ended; so does an interruption.
    """
    _Schedule(recipe, steps, store, state, on_event).carry_out()


def jobs(cores: int, memory: int | None, model_bytes: int) -> int:
    """How many steps run at once: one for each core, as far as ``memory`` (bytes that are free) holds them."""
    if (given := os.environ.get(_JOBS)) is not None:
        if not given.isdigit() or not int(given):
            raise RecipeError(f"{_JOBS} is '{given}'", hint="give how many steps may run at once: 1 or more")
        return int(given)
    room = cores if memory is None else memory // (_STEP_BYTES + _TIMES_THE_MODEL * model_bytes)
    return max(1, min(cores, room))


class _Schedule:
    """The steps of one run: those that wait, those that run in a thread each, and what was told of the others."""

    def __init__(
        self, recipe: Recipe, steps: Sequence[Step], store: Store, state: State, on_event: Callable[[Event], None]
    ) -> None:
        self._recipe, self._store, self._state, self._on_event = recipe, store, state, on_event
        self._waiting = list(steps)
        self._running: dict[Future[tuple[Artifact | DeploykitError, Event]], Step] = {}
        self._order = [step.name for step in steps]
        self._ended: dict[str, Event] = {}
        self._told = 0  # so many of the order were told to have ended
        self._children, self._telling = Children(), threading.Lock()
        self._cores = usable_cores()

    def carry_out(self) -> None:
        """See the function of that name."""
        with ThreadPoolExecutor(max(self._cores, self._jobs())) as pool:
            try:
                self._begin(pool)
                while self._running:
                    done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                    for future in sorted(done, key=lambda future: self._order.index(self._running[future].name)):
                        self._end(future, self._running.pop(future))
                    self._begin(pool)
            except BaseException:
                self._children.stop()
                raise
        assert not self._waiting, "every step comes behind its parents"
        made, failed = self._state.artifacts, self._state.failures
        self._state.artifacts = {name: made[name] for name in self._order if name in made}
        self._state.failures = {name: failed[name] for name in self._order if name in failed}

    def _jobs(self) -> int:
        exported = self._state.artifacts.get("export")
        sizes = [path.stat().st_size for path in exported.path.glob("model.onnx*")] if exported is not None else []
        return jobs(self._cores, available(), sum(sizes))

    def _begin(self, pool: ThreadPoolExecutor) -> None:
        """Start what can run now; what has to be alone when nothing else can."""
        ready = self._ready()
        beside = [step for step in ready if not step.alone]
        if any(step.alone for step in self._running.values()) or not ready:
            return
        if not beside:
            if not self._running:
                self._submit(pool, ready[0], None)
            return
        most = self._jobs()
        together = min(most, len(beside) + len(self._running))
        threads = max(1, self._cores // together) if together > 1 else None
        for step in beside[: max(0, most - len(self._running))]:
            self._submit(pool, step, threads)

    def _ready(self) -> list[Step]:
        """The waiting steps whose parents are made. Those whose parents cannot be made any more are skipped."""
        ready = []
        for waiting in list(self._waiting):
            pending = {other.name for other in (*self._waiting, *self._running.values())} - {waiting.name}
            if waiting.kind == "measure" and pending:
                continue
            step = self._with_parents(waiting)
            if pending.intersection(step.parents):
                continue
            missing = any(parent not in self._state.artifacts for parent in step.parents)
            if missing or (step.kind == "measure" and not step.options["variants"]):
                self._waiting.remove(waiting)
                self._tell_end(Event(step.name, "skipped", note="what it needs was not made"))
            else:
                ready.append(step)
        return ready

    def _with_parents(self, step: Step) -> Step:
        """The step; that which measures is told what there is to measure."""
        if step.kind != "measure":
            return step
        verified = [name for name in self._order if name.startswith("verify:") and name in self._state.artifacts]
        return measuring(step, [name.partition(":")[2] for name in verified])

    def _submit(self, pool: ThreadPoolExecutor, step: Step, threads: int | None) -> None:
        self._waiting = [other for other in self._waiting if other.name != step.name]
        parents = {parent: self._state.artifacts[parent] for parent in step.parents}
        self._running[pool.submit(self._take_or_make, step, parents, threads)] = step

    def _take_or_make(
        self, step: Step, parents: Mapping[str, Artifact], threads: int | None
    ) -> tuple[Artifact | DeploykitError, Event]:
        """The step's artefact from the store or made, or why it cannot be; in a thread of its own."""
        key = step.key([artifact.digest for artifact in parents.values()])
        with self._locked(key):
            found = self._store.look(key) if step.reusable else Found(None, "")
            if found.artifact is not None and (why := _disturbed(step, found.artifact)):
                found = Found(None, why)
            if found.artifact is not None:
                return found.artifact, Event(step.name, "reused")
            self._tell(Event(step.name, "started", note=step.describe()))
            begun = time.perf_counter()
            try:
                made = _make(step, key, parents, self._store, self._children, threads)
            except DeploykitError as error:
                return error, Event(step.name, "failed", time.perf_counter() - begun, error.message)
            again = [f"made again: {found.why}"] if found.why else []
            notes = "; ".join([*again, *made.metadata.get("notes", ())])
            return made, Event(step.name, "done", time.perf_counter() - begun, notes)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Another run may be making the same artefact: wait, then take it."""
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._store.lock(key, wait=False))
                    break
                except BusyError:
                    self._children.pause(_POLL_S)
            yield

    def _end(self, future: Future[tuple[Artifact | DeploykitError, Event]], step: Step) -> None:
        """Take up the outcome of a step, and the steps that it asks for. Raises the error of one that is required."""
        found, event = future.result()
        self._state.worked = self._state.worked or event.state != "reused"
        if isinstance(found, DeploykitError):
            if step.required:
                self._tell(event)
                raise found
            self._state.failures[step.name] = _failure(step, found)
        else:
            self._state.artifacts[step.name] = found
            more = follow_up(self._recipe, step, found.metadata)
            place = self._order.index(step.name) + 1
            self._order[place:place] = [new.name for new in more]
            behind = set(self._order[place + len(more) :])
            here = next((i for i, other in enumerate(self._waiting) if other.name in behind), len(self._waiting))
            self._waiting[here:here] = more
        self._tell_end(event)

    def _tell_end(self, event: Event) -> None:
        """Tell of it, and of those behind it in the order that ended before, once all in front of it have ended."""
        self._ended[event.step] = event
        while self._told < len(self._order) and (ended := self._ended.get(self._order[self._told])) is not None:
            self._told += 1
            self._tell(ended)

    def _tell(self, event: Event) -> None:
        with self._telling:
            self._on_event(event)


def _disturbed(step: Step, artifact: Artifact) -> str:
    """Why times are taken once more: the machine was busy when they were, and is not now."""
    was = artifact.metadata.get("busy") if step.kind == "measure" else None
    if not was or not Busy(**was).is_busy:
        return ""
    now = busy.look()
    return "" if now is None or now.is_busy else f"when these times were taken {Busy(**was).sentence}"


def _make(
    step: Step, key: str, parents: Mapping[str, Artifact], store: Store, children: Children, threads: int | None
) -> Artifact:
    """Run the step's action in a child process and commit what it made; keep request and log when it fails."""
    with store.workspace() as work:
        request = Request(
            step=step.name,
            action=step.action,
            options=dict(step.options),
            inputs={name: str(artifact.path) for name, artifact in parents.items()},
            out=str(work / "out"),
            watch=None if step.watch is None else vars(step.watch),
        )
        with _kept_failure(store, step, key, work):
            metadata = run_in_child(request, work, step.timeout_s, children, threads)
        digests = tuple(artifact.digest for artifact in parents.values())
        return store.commit(key, step.kind, work / "out", metadata, digests, _reads(step, work))


def _reads(step: Step, work: Path) -> Reads | None:
    """What the child left of it; what nobody could know is something that never is the same again."""
    if step.watch is None:
        return None
    try:
        return Reads.from_json(json.loads((work / "reads.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Reads(files={"what came over the network": (0, "")})


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
