"""One architecture of the coverage sweep, in the process that `benchmarks.coverage` forks for it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.coverage_models import Architecture, save
from benchmarks.coverage_more import EVERY

if TYPE_CHECKING:
    from deploykit.pipeline.run import Event, Outcome

_LOWERED = ("onnxruntime", "openvino", "tensorrt")
_POLL_S = 0.05
_STEP_SHARE = 0.8
_LATE = "was still running after"
Results = dict[str, dict[str, Any]]


def work(arm: str, name: str, stages: str, scratch: Path, timeout_s: float) -> dict[str, Any]:
    """Run one architecture through ``arm``; the facts of its row: for each stage the result and why, peak MiB.

    A step may take most of ``timeout_s``, so that one that hangs ends with its own diagnosis and not with the process.
    """
    warnings.simplefilter("ignore")
    entry = EVERY[name]
    folder = save(entry, scratch / name)
    step_s = max(1, round(_STEP_SHARE * timeout_s))
    if arm == "optimum":
        row = with_optimum(entry, scratch / "theirs", step_s)
    else:
        row = with_deploykit(entry, folder, stages, step_s) if arm == "deploykit" else with_torch(entry, folder)
    used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {**row, "peak_mib": round(used / 1024)}


def with_deploykit(entry: Architecture, folder: Path, stages: str, step_s: int) -> dict[str, Any]:
    """Export with the public interface, a step in ``step_s`` seconds at most; every step's end becomes a result."""
    from deploykit import api
    from deploykit.errors import DeploykitError

    lowered = stages == "lowered"
    events: list[Event] = []
    try:
        recipe = api.recipe(
            folder,
            output=folder.with_suffix(".bundle"),
            variants={
                "targets": list(_LOWERED) if lowered else ["onnxruntime", "openvino"],
                "precisions": ["int8" if lowered else "fp32"],
            },
            settings={"timeout_s": step_s},
            overrides=dict(entry.export),
            report=False,
        )
        # What was lowered is proven, and not timed: the bundle, its self-test included, was made of the fp32 variants.
        outcome = api.run(recipe, until="verify" if lowered else None, on_event=events.append)
    except DeploykitError as error:
        failed = next((event.step for event in reversed(events) if event.state == "failed"), "export")
        return {"results": {failed: _refused(type(error).__name__, error.message, error.hint)}}
    ended = [event.step for event in events if event.state == "done" and event.step.startswith("verify:")]
    return {"results": _results(outcome, [step.removeprefix("verify:") for step in ended]), "notes": _notes(events)}


def wait(process: int, timeout_s: float) -> int | None:
    """The exit code of a forked process, negative for a signal; None where it had to be killed."""
    end = time.perf_counter() + timeout_s
    while time.perf_counter() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_S)
    for kill in (os.killpg, os.kill):  # its steps too, where it leads a group
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def _results(outcome: Outcome, proven: Iterable[str]) -> Results:
    """A result for the export and for every variant; a variant fails at its first step that fails."""
    from deploykit.precisions import int8

    of_form = {f"int8@{int8.FORMS[target]}": f"{target}-int8" for target in _LOWERED}
    results: Results = {"export": {"result": "proven"}}
    results |= {name: {"result": "proven"} for name in proven}
    for refused in outcome.refused:
        fact = _refused(refused["error"], refused["reason"], refused.get("hint", ""))
        name = of_form.get(refused["variant"], refused["variant"])  # a form that was not lowered is of one target here
        results[name] = {**fact, "step": refused["step"]}
    return results


def _notes(events: list[Event]) -> list[str]:
    return [event.note for event in events if event.step == "export" and event.state == "done" and event.note]


def _refused(kind: str, message: str, hint: str | None) -> dict[str, Any]:
    result = "refused"
    if kind == "StepCrashError":
        result = "hang" if _LATE in message else "crash"
    told = (hint or "").split("\n")[0]
    return {"result": result, "error": kind, "why": f"{message} → {told}" if told else message}


def with_torch(entry: Architecture, folder: Path) -> dict[str, Any]:
    """torch.onnx.export as its documentation shows it, with the same wrapper, axes and proof as deploykit's."""
    from benchmarks.coverage_plain import export, judge
    from deploykit import sources
    from deploykit.errors import DeploykitError

    given: Mapping[str, Any] = entry.export
    try:
        source = sources.open_source(str(folder), sources.Options(**given))
    except DeploykitError as error:
        return {"results": {"source": _refused(type(error).__name__, error.message, error.hint)}}
    path = folder / "plain.onnx"
    try:
        export(source, path)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        return {"results": {"export": {"result": "refused", "error": type(error).__name__, "why": first[:300]}}}
    return {"results": {"export": {"result": "proven"}, **judge(source, path)}}


def with_optimum(entry: Architecture, folder: Path, step_s: int) -> dict[str, Any]:
    """Optimum's export of a checkpoint that its own transformers wrote, judged at the same points and engines."""
    from benchmarks import coverage_optimum
    from deploykit import sources
    from deploykit.errors import DeploykitError

    failed = coverage_optimum.export(entry.name, folder, step_s)
    if failed:
        return {"results": {failed.pop("step"): failed}}
    given: Mapping[str, Any] = entry.export
    try:
        source = sources.open_source(str(folder), sources.Options(**given))
        judged = coverage_optimum.judge(entry, source, folder)
    except (DeploykitError, KeyError) as error:
        # No inputs to judge it with: what it wrote is neither right nor wrong.
        return {"results": {"judge": {"result": "refused", "error": type(error).__name__, "why": str(error)}}}
    return {"results": {"export": {"result": "proven"}, **judged}}
