"""What the child processes do: the glue between a step's artefacts and the library functions.

Each action has the signature ``(options, inputs, out) -> metadata``: plain data in, files below ``out``, plain data
back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploykit import registry, sources
from deploykit.graph import prove
from deploykit.pipeline import selftest_data
from deploykit.runtime.manifest import Card, from_json, to_json

Options = Mapping[str, Any]
Inputs = Mapping[str, Path]


def export(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Open the source, export and prove it; leaves model, card, cases, self-test and preprocessing files."""
    from deploykit.graph.export import ExportOptions, reference
    from deploykit.graph.export import export as export_source

    source = sources.open_source(options["model"], sources.Options(**options["source"]))
    for name, path in source.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / name)
    if source.license is not None:
        shutil.copyfile(source.license, out / "LICENSE")
    exported, cases = export_source(source, ExportOptions(options["opset"], options["exporter"]), out)
    cases += selftest_data.write(source, reference(source), out)
    prove.write_cases(cases, out)
    (out / "card.json").write_text(json.dumps(to_json(source.card), indent=1, sort_keys=True), encoding="utf-8")
    return {"exporter": exported.exporter, "proof": exported.proof, "notes": list(exported.notes)}


def lower(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Bring the portable model to a precision; ``unchanged`` in the metadata where the graph stays as it is."""
    module = registry.module("precisions", options["precision"])
    facts: dict[str, Any] = module.lower(inputs["export"] / "model.onnx", module.Options(**options["options"]), out)
    return facts


def compile_variant(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Compile the lowered model for a target."""
    precision = options["precision"]
    lowered = inputs[f"lower:{precision}"] / "model.onnx"
    model = lowered if lowered.exists() else inputs["export"] / "model.onnx"
    module = registry.module("targets", options["target"])
    compiled = module.compile(model, read_card(inputs["export"]), precision, module.Options(**options["options"]), out)
    return {
        "path": compiled.path,
        "settings": dict(compiled.settings),
        "requires": dict(compiled.requires),
        "notes": list(compiled.notes),
    }


def verify(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Prove one variant on the engine that runs it, and audit what really runs."""
    from deploykit.runtime.engines import EngineOptions, open_engine

    target, precision = options["target"], options["precision"]
    name = f"{target}-{precision}"
    card = read_card(inputs["export"])
    artifact, settings = artifact_of(name, inputs)
    engine = open_engine(target, artifact, card, settings, EngineOptions())
    try:
        cases = prove.read_cases(inputs["export"])
        tolerance = registry.module("precisions", precision).TOLERANCE
        output = card.embedding.output
        proof = prove.prove(cases, lambda feeds: engine.run(feeds)[output], tolerance, name)
        # Many batches in flight take another way through the engine, which has to be proven as well.
        many = iter(engine.run_many([case.feeds for case in cases]))
        prove.prove(cases, lambda feeds: next(many)[output], tolerance, f"{name}, with several batches in flight,")
        effective = dict(engine.effective)
    finally:
        engine.close()
    audit = registry.module("targets", target).audit(artifact, card, settings)
    return {"proof": proof, "audit": audit, "effective": effective}


def measure(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Latency of every variant that passed, interleaved in this one process."""
    from deploykit.measure import latency

    names = [name for name in options["variants"] if f"verify:{name}" in inputs]
    card = read_card(inputs["export"])
    loaded = [latency.Subject(name, name.rpartition("-")[0], *artifact_of(name, inputs)) for name in names]
    feeds = selftest_data.latency_feeds(card, inputs["export"])
    return {"latency": latency.compare(loaded, card, feeds)}


def selftest(options: Options, inputs: Inputs, out: Path) -> dict[str, Any]:
    """Run the self-test of the bundle at ``options["bundle"]``: one row per variant."""
    from dataclasses import asdict

    from deploykit.runtime.bundle import Bundle
    from deploykit.runtime.selftest import selftest as run_selftest

    return {"variants": [asdict(result) for result in run_selftest(Bundle.open(Path(options["bundle"])))]}


def read_card(export_folder: Path) -> Card:
    """The encoder card that the export step wrote."""
    return from_json(Card, json.loads((export_folder / "card.json").read_text(encoding="utf-8")), "card.json")


def artifact_of(name: str, inputs: Inputs) -> tuple[Path, dict[str, Any]]:
    """The file to load for a variant, and its engine settings."""
    folder = inputs[f"compile:{name}"]
    metadata = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["metadata"]
    path = folder / metadata["path"] if metadata["path"] else inputs["export"] / "model.onnx"
    return path, metadata["settings"]
