"""What the child processes do: the glue between a step's artefacts and the library functions.

Each action has the signature ``(options, inputs, out) -> metadata``: plain data in, files below ``out``, plain data
back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploykit import registry, settings, sources
from deploykit.graph import prove
from deploykit.graph.ranges import threads
from deploykit.pipeline import child, selftest_data, variants
from deploykit.pipeline.samples import CALIBRATION
from deploykit.pipeline.variants import Spec, artifact_of, read_card, target_of
from deploykit.precisions import Task
from deploykit.runtime.manifest import BATCH_DEPENDENT, to_json

Options = Mapping[str, Any]
Inputs = Mapping[str, Path]


def export(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Open the source, export and prove it; leaves model, card, cases, self-test and preprocessing files."""
    from deploykit.graph.export import ExportOptions, reference
    from deploykit.pipeline.narrowing import export_or_narrow

    how = ExportOptions(options["opset"], options["exporter"], child.seconds_left())
    source, exported, proven = export_or_narrow(options["model"], sources.Options(**options["source"]), how, out)
    for name, path in source.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    if source.license is not None:
        shutil.copyfile(source.license, out / "LICENSE")
    cases = [*proven, *selftest_data.write(source, reference(source), out)]
    prove.write_cases(cases, out)
    (out / "card.json").write_text(json.dumps(to_json(source.card), indent=1, sort_keys=True), encoding="utf-8")
    return {"exporter": exported.exporter, "proof": exported.proof, "notes": list(exported.notes)}


def samples(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Choose and preprocess what variants are calibrated on and judged by; the portable model gives the reference."""
    from deploykit.pipeline import samples as sets
    from deploykit.runtime.engines import EngineOptions, open_engine

    card = read_card(inputs["export"])
    engine = open_engine("onnxruntime", inputs["export"] / "model.onnx", card, {}, EngineOptions(threads=threads()))
    try:
        output = card.embedding.output
        return sets.write(options, card, inputs["export"], lambda feeds: engine.run(feeds)[output], out)
    finally:
        engine.close()


def judge(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Hold the portable model's vectors against those of the library that the source comes from."""
    from deploykit.pipeline import judging

    return judging.carry_out(options, inputs, out)


def lower(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Bring the portable model to a precision; ``unchanged`` in the metadata where the graph stays as it is."""
    module = registry.module("precisions", options["precision"])
    facts: dict[str, Any] = module.lower(
        _task(options["form"], inputs), settings.read(module.Options, options["options"], options["precision"]), out
    )
    return facts | ({BATCH_DEPENDENT: True} if getattr(module, "BATCH_DEPENDENT", False) else {})


def compile_variant(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Compile the lowered model for a target."""
    lowered = inputs[options["lower"]]
    facts = json.loads((lowered / "artifact.json").read_text(encoding="utf-8"))["metadata"]
    return variants.compile_model(_spec(options), variants.model_file(lowered, inputs["export"]), facts, inputs, out)


def verify(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Prove one variant on the engine that runs it, measure its drift, and audit what really runs."""
    spec = _spec(options)
    artifact, engine_settings = artifact_of(spec.name, inputs)
    requires = variants.compiled_facts(spec.name, inputs).get("requires", {})
    return variants.verify(spec, artifact, engine_settings, requires, inputs)


def search(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Find the products that have to go back to float, so that the variant is inside the budget."""
    from deploykit.pipeline import partial

    return partial.search(options, inputs, out)


def measure(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Latency of every variant that passed and runs here, interleaved in this one process."""
    from deploykit.measure import latency
    from deploykit.runtime.busy import Meter
    from deploykit.runtime.further import embedding_alone

    card = embedding_alone(read_card(inputs["export"]))  # as a loaded encoder runs it
    loaded = [
        latency.Subject(name, target_of(name, inputs), *artifact_of(name, inputs))
        for name in options["variants"]
        if variants.ran_here(name, inputs)
    ]
    feeds = selftest_data.latency_feeds(card, inputs["export"])
    meter = Meter()
    found = latency.compare(loaded, card, feeds)
    busy = meter.read()
    return {"latency": found, "busy": None if busy is None else asdict(busy)}


def selftest(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Run the self-test of the bundle at ``options["bundle"]``: one row per variant."""
    from deploykit.runtime.bundle import Bundle
    from deploykit.runtime.selftest import selftest as run_selftest

    return {"variants": [asdict(result) for result in run_selftest(Bundle.open(Path(options["bundle"])))]}


def _spec(options: Options) -> Spec:
    return Spec(options["name"], options["target"], options["precision"], options["options"])


def _task(form: str, inputs: Inputs) -> Task:
    """What a precision is given; calibration batches where the step reads samples."""
    calibration: list[prove.Feeds] = []
    if "samples" in inputs:
        calibration = [case.feeds for case in prove.read_cases(inputs["samples"], CALIBRATION)]
    return Task(inputs["export"] / "model.onnx", read_card(inputs["export"]), form, calibration)
