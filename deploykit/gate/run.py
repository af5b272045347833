"""The gate, in order of certainty: what is counted, then what is encoded, and the clock last, and only where it is
still needed.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploykit.budget import Budget
from deploykit.data import Dataset
from deploykit.errors import CheckError, InputError, RecipeError
from deploykit.gate import accuracy, fixed, inputs, retrained, timing
from deploykit.gate.limits import beyond_sameness, limits, spelled
from deploykit.gate.pace import Pace, check_minutes
from deploykit.gate.result import SCHEMA, AaResult, Identity, Result, Row, verdict
from deploykit.gate.sides import (
    Facts,
    Side,
    check_comparable,
    check_hardware,
    comparable_to_fp32,
    encode,
    facts,
    interpreter,
    open_side,
    unusable,
)
from deploykit.gate.timing import Timing
from deploykit.measure.noise import seen
from deploykit.measure.paired import Arm, Comparison, Rules, compare

Heard = Callable[[str], None]


@dataclass(frozen=True)
class Choices:
    """How to judge. ``budget``: text, a profile, a file, or None for the default. ``data`` None: the self-test's inputs
    and deploykit's own. ``workload``: time ``single`` or ``batch`` alone. ``everything``: go on after a failure.
    ``digest`` pins the baseline. ``calibration`` is the JSON of an earlier `aa` on this machine. ``python`` and
    ``baseline_python`` run the two sides. ``max_minutes``: no pair is timed that would end later, and what is not
    decided by then is INCONCLUSIVE. ``retrained``: the candidate's weights are others on purpose, see
    `deploykit.gate.retrained`.
    """

    budget: str | os.PathLike[str] | Budget | None = None
    data: str | None = None
    workload: str | None = None
    threads: int | None = None
    everything: bool = False
    seed: int = 0
    digest: str = ""
    calibration: str | os.PathLike[str] | None = None
    python: str | os.PathLike[str] | None = None
    baseline_python: str | os.PathLike[str] | None = None
    max_minutes: float | None = None
    retrained: bool = False
    timing: Timing = field(default_factory=Timing)
    rules: Rules = field(default_factory=Rules)


def gate(
    candidate: str | os.PathLike[str],
    baseline: str | os.PathLike[str],
    choices: Choices | None = None,
    on_progress: Heard = lambda text: None,
    on_estimate: Heard = lambda text: None,
) -> Result:
    """Judge ``candidate`` against ``baseline``, both ``NAME.bundle`` or ``NAME.bundle@variant``.

    ``on_estimate`` hears once how long the clock will take, before it runs.
    `BundleError` when one is missing or refused, `InputError` when the two are not forms of one encoder, `MissingError`
    when an engine is not there or the machine is another, `StepCrashError` when a process dies or hangs.
    """
    choices = choices or Choices()
    inputs.check_workload(choices.workload)
    check_minutes(choices.max_minutes)
    pace = Pace(choices.rules, max_minutes=choices.max_minutes)
    budget = limits(choices.budget)
    ours = open_side("candidate", candidate, choices.python)
    theirs = check_comparable(
        ours, open_side("baseline", baseline, choices.baseline_python, choices.digest), choices.retrained
    )
    known, note = _calibration(choices.calibration)
    spec = choices.data
    found = inputs.dataset(spec, None if spec else str(theirs.path))
    _check_data(found, ours)
    if choices.retrained:
        retrained.check(ours, theirs, found, spelled(choices.budget))
    on_progress("loading and auditing both")
    starting = time.monotonic()
    told = facts([ours, theirs], choices.threads, choices.timing.timeout_s)
    pace.process_s = time.monotonic() - starting
    hardware = check_hardware([f.hardware for f in told.values()], known, f"'{choices.calibration}'")
    ours, theirs = (replace(side, variant=told[side.arm].variant) for side in (ours, theirs))
    other = retrained.note(ours, theirs) if choices.retrained else ""
    same = _same(ours, theirs)
    judged = beyond_sameness(budget) if same else budget
    sides: dict[Arm, Side] = {"candidate": ours, "baseline": theirs}
    run = _Run(choices, judged, sides, found, hardware, pace, on_progress, on_estimate)
    unchanged = same and not judged.limits and not fixed.lost(told["candidate"])
    rows, skipped = _unchanged(ours) if unchanged else run.rows(told)
    if same and not unchanged:
        skipped.append("limits on a change were not looked at: the two bundles are the same, bit for bit")
    return Result(
        status=verdict([row.status for row in rows]),
        candidate=_identity(ours, told["candidate"]),
        baseline=_identity(theirs, told["baseline"]),
        budget=str(budget),
        data=f"{len(found):,} inputs of {found.name}",
        rows=tuple(rows),
        hardware=hardware,
        seed=choices.seed,
        seconds=round(time.monotonic() - pace.began, 1),
        noise=run.noise,
        notes=tuple(text for text in (note, other, run.stopped) if text),
        skipped=tuple(skipped),
    )


def aa(
    subject: str | os.PathLike[str],
    runs: int,
    choices: Choices | None = None,
    on_progress: Heard = lambda text: None,
    on_run: Callable[[tuple[Comparison, ...]], None] = lambda compared: None,
    on_estimate: Heard = lambda text: None,
) -> AaResult:
    """Time ``subject`` against itself ``runs`` times, by the gate's own rules: every FAIL is a false alarm.

    Every run has a seed of its own, counted up from ``choices.seed``; ``on_run`` hears what each found. A run that
    ``choices.max_minutes`` cuts short is left out, unless there is no other. `RecipeError` for limits on time that no
    false alarm can be counted of: absolute ones, and gains.
    """
    choices = choices or Choices()
    inputs.check_workload(choices.workload)
    check_minutes(choices.max_minutes)
    budget = limits(choices.budget).only(timing.TERMS)
    timing.check_counts_alarms(budget)
    if runs < 1:
        raise RecipeError(f"{runs} runs were asked for", hint="give 1 or more; 12 take about half an hour")
    pace = Pace(choices.rules, max_minutes=choices.max_minutes, runs=runs)
    side = open_side("candidate", subject, choices.python)
    found = inputs.dataset(choices.data, None if choices.data else str(side.path))
    _check_data(found, side)
    starting = time.monotonic()
    told = facts([side], choices.threads, choices.timing.timeout_s)["candidate"]
    pace.process_s = time.monotonic() - starting
    side = replace(side, variant=told.variant)
    sides: dict[Arm, Side] = {"candidate": side, "baseline": replace(side, arm="baseline")}
    done: list[tuple[Comparison, ...]] = []
    answers: list[Mapping[str, Any]] = []
    for index in range(runs):
        again = replace(choices, seed=choices.seed + index)
        text = f"run {index + 1} of {runs}: "
        run = _Run(
            again,
            budget,
            sides,
            found,
            told.hardware,
            pace,
            lambda said, text=text: on_progress(text + said),  # type: ignore[misc]
            on_estimate if index == 0 else lambda text: None,
            runs_left=runs - index - 1,
        )
        compared, clock, _ = run.timed()
        answers += clock.answers
        if run.stopped and done:
            break
        done.append(tuple(compared.values()))
        on_run(done[-1])
        if pace.over():
            break
    noise = seen([answer["noise"] for answer in answers]).sentence
    seconds = round(time.monotonic() - pace.began, 1)
    return AaResult(
        _identity(side, told), str(budget), tuple(done), told.hardware, choices.seed, seconds, noise, asked=runs
    )


@dataclass
class _Run:
    """One gate under way; ``noise`` is filled when the clock has run, ``stopped`` when the time was up before.

    ``runs_left`` are the gates that follow.
    """

    choices: Choices
    budget: Budget
    sides: dict[Arm, Side]
    found: Dataset
    hardware: Mapping[str, Any]
    pace: Pace
    on_progress: Heard
    on_estimate: Heard
    runs_left: int = 0
    noise: str = ""
    stopped: str = ""

    @property
    def spelled(self) -> frozenset[str]:
        """The terms that somebody limited by name."""
        return spelled(self.choices.budget)

    def rows(self, told: Mapping[Arm, Facts]) -> tuple[list[Row], list[str]]:
        """All rows, and what was skipped because the verdict was clear before."""
        candidate, baseline = self.sides["candidate"], self.sides["baseline"]
        rows = [fixed.audit_row(candidate, told), *fixed.size_rows(self.budget, candidate, baseline)]
        if self._clear(rows):
            return rows, [_skipped("vectors, times and memory")]
        rows += self._accuracy()
        if self._clear(rows):
            return rows, [_skipped("times and memory")]
        return rows + self._times(), []

    def _clear(self, rows: list[Row]) -> bool:
        return not self.choices.everything and any(row.status == "FAIL" for row in rows)

    def _accuracy(self) -> list[Row]:
        candidate, baseline = self.sides["candidate"], self.sides["baseline"]
        wanted = {"data": self.choices.data, "examples": None if self.choices.data else str(baseline.path.resolve())}
        with tempfile.TemporaryDirectory() as folder:
            files = (Path(folder) / "candidate.npy", Path(folder) / "baseline.npy")
            for side, path in zip((candidate, baseline), files, strict=True):
                self.on_progress(f"encoding with {side.label}")
                try:
                    # A second for every input is more than any encoder here takes.
                    patience = self.choices.timing.timeout_s + len(self.found)
                    encode(side, wanted, path, self.choices.threads, patience)
                except CheckError as error:
                    if side is baseline:
                        raise unusable(error) from error
                    return [accuracy.failed(candidate, error)]
            if self.choices.retrained:
                return retrained.task_rows(self.budget, self.found, (candidate, baseline), files)
            rows = accuracy.accuracy_rows(self.budget, self.spelled, self.found, (candidate, baseline), files)
            return rows + self._further(wanted, files)

    def _further(self, wanted: Mapping[str, str | None], files: tuple[Path, Path]) -> list[Row]:
        """The row on the drift to fp32, where both sides are the same precision of the same fp32 model."""
        candidate, baseline = self.sides["candidate"], self.sides["baseline"]
        limited = [limit for limit in self.budget.only(["drift"]).limits if limit.relative]
        if not limited or not comparable_to_fp32(candidate, baseline):
            return []
        fp32 = replace(baseline, variant=baseline.bundle.portable.name)
        path = files[0].with_name("fp32.npy")
        self.on_progress(f"encoding with {fp32.label}")
        encode(fp32, wanted, path, self.choices.threads, self.choices.timing.timeout_s + len(self.found))
        rows = [accuracy.further_row(limit, candidate, (*files, path)) for limit in limited]
        return [row for row in rows if row is not None]

    def _times(self) -> list[Row]:
        try:
            compared, clock, points = self.timed()
        except CheckError as error:
            return [accuracy.failed(self.sides["candidate"], error, "times")]
        if not compared:
            return []
        alpha, hardware = self.choices.rules.alpha, str(self.hardware["id"])
        return timing.rows(self.budget, self.spelled, compared, clock, points, alpha, hardware)

    def timed(self) -> tuple[dict[str, Comparison], timing.Clock, list[dict[str, Any]]]:
        """Run the pairs; the machine must be the same one to the end."""
        choices = self.choices
        with tempfile.TemporaryDirectory() as folder:
            points = inputs.points(self.found, Path(folder), choices.workload)
            limited = timing.metrics(self.budget, self.spelled, points)
            clock = timing.Clock(self.sides, points, choices.timing, choices.threads, self.pace.seen_s.append)
            if limited:
                self._estimate(len(points))
            compared = compare(clock, limited, choices.seed, choices.rules, self._heard, self.pace.over)
        if any(found.cut for found in compared.values()):
            minutes = self.pace.max_minutes
            self.stopped = (
                f"timing stopped: the {minutes:g} min of --max-minutes were up; what was not decided is INCONCLUSIVE"
            )
        if clock.answers:
            check_hardware([answer["hardware"] for answer in clock.answers], str(self.hardware["id"]), "the audit")
            self.noise = seen([answer["noise"] for answer in clock.answers]).sentence
        return compared, clock, points

    def _estimate(self, points: int) -> None:
        """Tell how long it will take, from what loading took and what each workload is timed for."""
        if not self.pace.seen_s:
            self.pace.process_s += points * (self.choices.timing.seconds + self.choices.timing.warm_seconds)
        self.on_estimate(self.pace.estimate)

    def _heard(self, stage: str, done: int, total: int) -> None:
        self.on_progress(self.pace.place(stage, done, total, self.runs_left))


def _calibration(path: str | os.PathLike[str] | None) -> tuple[str, str]:
    """The hardware id of an earlier A/A run, and what it says; empty without one."""
    if path is None:
        return "", ""
    hint = "give the file that `deploykit gate BUNDLE --aa 12 -o FILE` wrote"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON: {error}", hint=hint) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("kind") != "aa":
        raise InputError(f"'{path}' is no result of an A/A run", hint=hint)
    machine = data.get("hardware")
    told = (machine.get("id") if isinstance(machine, dict) else None, data.get("sentence"))
    if not all(isinstance(text, str) and text for text in told):
        raise InputError(f"'{path}' does not say on which hardware it was made, or what it found", hint=hint)
    return str(told[0]), str(told[1])


def _check_data(found: Dataset, side: Side) -> None:
    modality = side.bundle.manifest.card.modality
    if found.modality != modality:
        raise InputError(
            f"{side.label} encodes {modality}, and '{found.name}' holds {found.modality}",
            hint=f"give --data with {modality}",
        )


def _same(ours: Side, theirs: Side) -> bool:
    """Is a build that came out as the last one compared with it? One folder named twice is a mistake: `InputError`."""
    same = ours.bundle.digest == theirs.bundle.digest and ours.variant == theirs.variant
    if not same or interpreter(ours) != interpreter(theirs):
        return False
    if ours.path.resolve() == theirs.path.resolve():
        raise InputError(
            f"candidate and baseline are the same: {ours.name}, digest {ours.bundle.digest[:8]}",
            hint="give another bundle or variant; --aa shows what the gate says of one bundle against itself",
        )
    return True


def _unchanged(ours: Side) -> tuple[list[Row], list[str]]:
    said = f"{ours.label} is the baseline, bit for bit: digest {ours.bundle.digest[:8]}."
    return [Row("bundle", "PASS", "", said)], ["nothing was compared: the two bundles are the same"]


def _identity(side: Side, told: Facts) -> Identity:
    sentence = str(told.audit.get("sentence", ""))
    return Identity(side.name, side.bundle.digest, sentence, interpreter(side), dict(told.software))


def _skipped(what: str) -> str:
    return f"{what} were not looked at: the verdict is clear without; --all looks at everything"
