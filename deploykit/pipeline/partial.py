"""Partial quantization: when whole int8 breaks the budget, the kinds of products that cost most go back to float.

One decision per kind of product (every second feed-forward product of all blocks together), not one per layer: there
are few kinds, repeated blocks behave alike, and the outcome can be read. Each kind is put back alone, built, run on the
target and timed beside full int8. Kinds are ranked by the drift that this saves per millisecond that it costs; then
they go back in that order until the budget holds.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import registry, settings
from deploykit.budget import Budget
from deploykit.errors import CheckError, DeploykitError
from deploykit.graph import prove
from deploykit.measure import latency
from deploykit.pipeline import samples, selftest_data, variants
from deploykit.pipeline.choose import DRIFT_TERMS, drift_faults
from deploykit.precisions import Task
from deploykit.runtime.engines import EngineOptions, open_engine
from deploykit.runtime.further import embedding_alone

if TYPE_CHECKING:
    from deploykit.drift import Drift
    from deploykit.quantize.products import Product

# More groups than these are joined with their neighbours: each costs a quantization.
_MOST_GROUPS = 16
# A kind that costs less than this share of the time costs nothing that could be measured.
_NOISE = 0.01


@dataclass(frozen=True)
class Trial:
    """One set of kinds put back to float, built and judged; ``p50_ms`` is NaN until it was timed."""

    keep: tuple[str, ...]
    drift: Drift = field(repr=False)
    inside: bool
    artifact: Path
    settings: Mapping[str, Any]
    p50_ms: float = float("nan")

    def row(self) -> dict[str, Any]:
        """Plain data for the report."""
        figures = dict(self.drift.terms)
        time = {} if self.p50_ms != self.p50_ms else {"p50_ms": round(self.p50_ms, 4)}
        return {"keep": list(self.keep), "inside": self.inside, **figures, **time}


class Search:
    """Builds and judges trials below ``out`` for one target and precision.

    ``trials`` are those that were judged, ``not_built`` the others: what was to go back to float, and why it could not.
    """

    def __init__(self, options: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> None:
        self._options, self._inputs = options, inputs
        self._module = registry.module("precisions", options["precision"])
        self._chosen = settings.read(self._module.Options, options["options"], options["precision"])
        self._budget = Budget.parse(options["budget"]).only(DRIFT_TERMS)
        self._card = variants.read_card(inputs["export"])
        calibration = [case.feeds for case in prove.read_cases(inputs["samples"], samples.CALIBRATION)]
        self._task = Task(inputs["export"] / "model.onnx", self._card, options["form"], calibration)
        self._places = (out / f"trial{i}" for i in itertools.count())
        self.trials: list[Trial] = []
        self.not_built: list[dict[str, Any]] = []

    def groups(self) -> list[tuple[str, ...]]:
        """The kinds that were quantized, in the order of the graph, neighbours joined where there are many."""
        import onnx_ir as ir

        from deploykit.quantize import products

        lowered = variants.compiled_facts(self._options["name"], self._inputs)["lowered"]
        quantized = lowered.get("kinds", lowered["quantized"])
        kinds = [kind for kind in _kinds(products.find(ir.load(self._task.model))) if kind in quantized]
        size = -(-len(kinds) // _MOST_GROUPS)
        return [tuple(kinds[i : i + size]) for i in range(0, len(kinds), size)]

    def full(self) -> Trial:
        """The variant as it was built, with nothing put back."""
        return self._judge((), *variants.artifact_of(self._options["name"], self._inputs))

    def build(self, keep: tuple[str, ...]) -> Trial:
        """Lower with these kinds in float, compile, and measure the drift."""
        folder = next(self._places)
        lowered, compiled = folder / "lowered", folder / "compiled"
        lowered.mkdir(parents=True)
        compiled.mkdir()
        options = replace(self._chosen, keep=(*self._chosen.keep, *keep))
        facts = self._module.lower(self._task, options, lowered)
        o = self._options
        spec = variants.Spec(o["name"], o["target"], o["precision"], o["target_options"])
        model = variants.model_file(lowered, self._inputs["export"])
        made = variants.compile_model(spec, model, facts, self._inputs, compiled)
        return self._judge(keep, compiled / made["path"] if made["path"] else model, made["settings"])

    def time(self, trials: Sequence[Trial]) -> list[Trial]:
        """The same trials with the median time of the workload that decides, measured interleaved."""
        feeds = selftest_data.latency_feeds(self._card, self._inputs["export"])
        workload = self._options["workload"]
        subjects = [
            latency.Subject(str(i), self._options["target"], t.artifact, t.settings) for i, t in enumerate(trials)
        ]
        rows = latency.compare(subjects, embedding_alone(self._card), {workload: feeds[workload]})
        timed = [replace(t, p50_ms=rows[str(i)][workload]["p50_ms"]) for i, t in enumerate(trials)]
        by_keep = {trial.keep: trial for trial in timed}
        self.trials = [by_keep.get(trial.keep, trial) for trial in self.trials]
        return timed

    def _judge(self, keep: tuple[str, ...], artifact: Path, engine_settings: Mapping[str, Any]) -> Trial:
        engine = open_engine(self._options["target"], artifact, self._card, engine_settings, EngineOptions())
        try:
            output = self._card.embedding.output
            found = variants.evaluate(lambda feeds: engine.run(feeds)[output], self._inputs["samples"])
        finally:
            engine.close()
        if found is None:
            raise CheckError("there is no data to measure drift on", hint="give some with --calibration DATA")
        faults = drift_faults(found, self._budget)
        inside = not faults.outside and (not faults.unsure or self._options["undecided"] == "keep")
        trial = Trial(keep, found, inside, artifact, engine_settings)
        self.trials.append(trial)
        return trial


def search(options: Mapping[str, Any], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Search; ``keep`` in the result is empty where the whole is inside the budget already, or where nothing is.

    ``nothing`` then says so: what is left in the low precision saves nothing. The result tells of every trial.
    """
    if not variants.ran_here(options["name"], inputs):
        nothing = f"no partial {options['precision']} of {options['target']} was searched for: its device is not here"
        return {"keep": [], "nothing": nothing, "notes": [nothing]}
    look = Search(options, inputs, out)
    full = look.full()
    if full.inside:
        return {"keep": [], "notes": [f"full {options['precision']} is inside the budget"]}
    try:
        chosen, ranking = _put_back(look, full)
    finally:
        for folder in out.glob("trial*"):
            shutil.rmtree(folder)
    found = {"ranking": ranking, "trials": [trial.row() for trial in look.trials], "not_built": look.not_built}
    (out / "search.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    lost = [f"not built with {', '.join(row['keep'])} in float: {row['reason']}" for row in look.not_built]
    if chosen is None:
        nothing = _nothing(look)
        return {**found, "keep": [], "nothing": nothing, "notes": [nothing, *lost]}
    note = f"full {options['precision']} breaks the budget; back in float: {', '.join(chosen.keep)}"
    return {**found, "keep": list(chosen.keep), "notes": [note, *lost]}


def _put_back(look: Search, full: Trial) -> tuple[Trial | None, list[dict[str, Any]]]:
    """The first set of kinds that is inside the budget, in order of what they save per millisecond; and the ranking."""
    groups = look.groups()
    alone = [trial for group in groups if (trial := _built(look, group)) is not None]
    full, *alone = look.time([full, *alone])
    ranking = _rank(full, alone)
    enough = [trial for trial in alone if trial.inside]
    if enough:
        return min(enough, key=lambda trial: trial.p50_ms), ranking
    keep: tuple[str, ...] = ()
    for row in ranking:
        more = (*keep, *row["kinds"])
        if len(more) == sum(map(len, groups)):
            break
        if more not in {trial.keep for trial in alone}:
            trial = _built(look, more)
            if trial is None:
                continue
            if trial.inside:
                return look.time([full, trial])[1], ranking
        keep = more
    return None, ranking


def _nothing(look: Search) -> str:
    best = min(look.trials, key=lambda trial: trial.drift.terms["drift"])
    return (
        f"no partial {look._options['precision']} of {look._options['target']} is inside the budget: the best of "
        f"{len(look.trials)} has drift {best.drift.terms['drift']:.4f}"
    )


def _built(look: Search, keep: tuple[str, ...]) -> Trial | None:
    """A trial with these kinds in float; None for one that cannot be built, which is written down with its reason."""
    try:
        return look.build(keep)
    except DeploykitError as error:
        look.not_built.append({"keep": list(keep), "reason": error.message})
        return None


def _kinds(products: Iterable[Product]) -> list[str]:
    return list(dict.fromkeys(product.kind for product in products))


def _rank(full: Trial, alone: Sequence[Trial]) -> list[dict[str, Any]]:
    """Groups by drift saved per millisecond lost, best first; those that save nothing last."""
    least = _NOISE * full.p50_ms
    rows = []
    for trial in alone:
        saved = full.drift.terms["drift"] - trial.drift.terms["drift"]
        lost = trial.p50_ms - full.p50_ms
        rows.append(
            {"kinds": list(trial.keep), "drift_saved": saved, "ms_lost": lost, "worth": saved / max(lost, least)}
        )
    return sorted(rows, key=lambda row: -row["worth"])
