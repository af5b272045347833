"""One variant from lowered graph to evidence: compiled, proven on its engine, its drift measured, audited.

The steps ``compile:NAME`` and ``verify:NAME`` are these functions; the search for a partial variant calls them for each
of its trials.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import registry, settings
from deploykit.errors import ExportError, MissingError, ProofError
from deploykit.graph import prove
from deploykit.graph.prove import Case, Feeds
from deploykit.pipeline import samples
from deploykit.runtime.engines import Engine, EngineOptions, open_engine
from deploykit.runtime.manifest import Card, Variant, from_json
from deploykit.runtime.selection import Device, unmet

if TYPE_CHECKING:
    from deploykit.drift import Drift

Inputs = Mapping[str, Path]
# A kernel that is wrong at one length was seen at a cosine of 0.82 where all other lengths had 0.998. Lengths differ by
# themselves too: short texts drift up to three times as much as long ones.
_LENGTH_FACTOR, _LENGTH_FLOOR = 6.0, 0.02


@dataclass(frozen=True)
class Spec:
    """Which variant: its name, what it is made for, and the target's options as plain data."""

    name: str
    target: str
    precision: str
    options: Mapping[str, Any]


def compile_model(spec: Spec, model: Path, lowered: Mapping[str, Any], inputs: Inputs, out: Path) -> dict[str, Any]:
    """Compile ``model`` for the target; ``lowered`` are the facts of the lower step, whose demands and notes go on."""
    module = registry.module("targets", spec.target)
    options = settings.read(module.Options, spec.options, spec.target)
    as_precision = registry.compiled_as(spec.target, spec.precision)
    compiled = module.compile(model, read_card(inputs["export"]), as_precision, options, out)
    if compiled.path and (out / f"{compiled.path}.data").exists():
        raise ExportError(
            f"the graph of {spec.name} has more weights than one ONNX file holds, and only the portable fp32 model of "
            "a bundle may have them in a second file",
            hint="a lower precision has fewer; files of openvino have no such limit",
        )
    return {
        "target": spec.target,
        "precision": spec.precision,
        "path": compiled.path,
        "settings": dict(compiled.settings),
        "requires": _together(compiled.requires, lowered.get("requires", {})),
        "notes": [*compiled.notes, *lowered.get("notes", ())],
        "lowered": {key: value for key, value in lowered.items() if key not in ("notes", "requires", "unchanged")},
    }


def verify(
    spec: Spec, artifact: Path, engine_settings: Mapping[str, Any], requires: Mapping[str, Any], inputs: Inputs
) -> dict[str, Any]:
    """Proof, drift (where there are samples) and audit.

    Raises `ProofError` when a shape or a length is wrong, `MissingError` where this machine lacks what the variant
    requires: an engine may run it all the same, in another precision or in reference code. A target for devices that
    few build machines have offers ``check_engine`` (`deploykit.targets`): where the device lacks, that proves the
    numbers, and the proof says under ``checked_on`` that the variant itself did not run.
    """
    variant = Variant(spec.name, spec.target, spec.precision, artifact.name, requires=dict(requires))
    module = registry.module("targets", spec.target)
    lacking = unmet(variant, Device())
    if lacking and not hasattr(module, "check_engine"):
        raise MissingError(f"{spec.name} cannot be proven here: {lacking}", hint="build it on a machine that has that")
    card = read_card(inputs["export"])
    tolerance = registry.module("precisions", spec.precision).TOLERANCE
    cases = prove.read_cases(inputs["export"])
    output = card.embedding.output
    if lacking:
        engine: Engine = module.check_engine(artifact, card, engine_settings)
    else:
        engine = open_engine(spec.target, artifact, card, engine_settings, EngineOptions())
    try:
        proof = prove.prove_outputs(cases, engine.run, output, tolerance, spec.name)
        if not lacking:
            # Many batches in flight take another way through the engine, which has to be proven as well.
            some = prove.one_batch_a_size(cases)
            many = iter(engine.run_many([case.feeds for case in some]))
            several = f"{spec.name}, with several batches in flight,"
            prove.prove_outputs(some, lambda feeds: next(many), output, tolerance, several)
        effective = dict(engine.effective)
        drift = {}
        if "samples" in inputs:
            drift = measure_drift(engine, card, inputs["samples"], spec.name, ran=not lacking)
    finally:
        engine.close()
    audit = module.audit(artifact, card, engine_settings)
    found = {"proof": proof, "drift": drift, "audit": audit, "effective": effective}
    return found if not lacking else _only_checked(found, spec, lacking)


def _only_checked(found: Mapping[str, Any], spec: Spec, lacking: str) -> dict[str, Any]:
    """The evidence of a variant whose numbers were checked on the CPU, and that did not run."""
    checker = f"{found['effective']['engine']} {found['effective']['version']} on the CPU"
    note = f"its numbers were checked by {checker}; it was not run on its own device here: {lacking}"
    effective = {"engine": spec.target, "device": "not run here", "checked_on": checker}
    sentence = f"{found['audit']['sentence']} Not run here: {lacking}; its numbers were checked by {checker}."
    return {
        **found,
        "proof": {**found["proof"], "checked_on": checker, "not_run": lacking},
        "audit": {**found["audit"], "sentence": sentence},
        "effective": effective,
        "notes": [note],
    }


def ran_here(name: str, inputs: Inputs) -> bool:
    """Whether the variant itself was proven by its verify step, and can be timed."""
    text = (inputs[f"verify:{name}"] / "artifact.json").read_text(encoding="utf-8")
    return "checked_on" not in json.loads(text)["metadata"]["proof"]


def measure_drift(engine: Engine, card: Card, folder: Path, what: str, *, ran: bool = True) -> dict[str, Any]:
    """Drift on the evaluation inputs and at every length; empty where there are none.

    ``ran`` False: it is not the variant's own engine, whose kernels could be wrong at one length, so some will do.
    Raises `ProofError` when one length stands out: its kernels are wrong.
    """
    found = evaluate(lambda feeds: engine.run(feeds)[card.embedding.output], folder)
    if found is None:
        return {}
    cases = prove.read_cases(folder, samples.LENGTHS)
    lengths = _lengths(engine, card, cases if ran else [case for case in cases if _is_some(case.at["length"])], what)
    return found.to_json() | ({"lengths": lengths} if lengths else {})


def evaluate(run: Callable[[Feeds], np.ndarray], folder: Path) -> Drift | None:
    """How far the vectors that ``run`` gives are from the reference, on the evaluation inputs at ``folder``."""
    from deploykit.drift import compare

    cases = prove.read_cases(folder, samples.EVALUATION)
    if not cases:
        return None
    known = samples.read_inputs(folder)
    return compare(
        np.concatenate([case.reference for case in cases]),
        np.concatenate([run(case.feeds) for case in cases]),
        **known,
    )


def _is_some(length: int) -> bool:
    """1 to 4, the powers of two, and what is above 64: a sample of short and long lengths."""
    return length < 4 or length > 64 or length.bit_count() == 1


def _lengths(engine: Engine, card: Card, cases: Sequence[Case], what: str) -> dict[str, Any]:
    """The mean cosine at every length of the sweep, and the worst of them."""
    if not cases:
        return {}
    output = card.embedding.output
    means = {case.at["length"]: _mean_cosine(case.reference, engine.run(case.feeds)[output]) for case in cases}
    numbers = [mean for mean in means.values() if not np.isnan(mean)]
    worst = min(means, key=lambda length: (not np.isnan(means[length]), means[length]))  # NaN is the worst
    usual = 1 - float(np.median(numbers)) if numbers else float("nan")
    if not 1 - means[worst] <= _LENGTH_FLOOR + _LENGTH_FACTOR * usual:  # NaN is never inside
        raise ProofError(
            f"{what} is wrong at length {worst}: mean cosine {means[worst]:.4f} to fp32 there, {1 - usual:.4f} at most "
            f"of the {len(means)} lengths tried",
            hint="a kernel of the engine is wrong at that size: build another precision, or try another engine version",
        )
    return {"checked": len(means), "worst_at": worst, "worst_mean": means[worst], "means": means}


def _mean_cosine(reference: np.ndarray, got: np.ndarray) -> float:
    a, b = reference.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a vector of zeros has no direction: NaN, which is wrong
        return float(np.mean(np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))


def model_file(lowered: Path, exported: Path) -> Path:
    """What the target compiles: the lowered graph, or the portable one where lowering left it as it is."""
    for name in ("model.onnx", "model.xml"):
        if (lowered / name).exists():
            return lowered / name
    return exported / "model.onnx"


def read_card(export_folder: Path) -> Card:
    """The encoder card that the export step wrote."""
    return from_json(Card, json.loads((export_folder / "card.json").read_text(encoding="utf-8")), "card.json")


def artifact_of(name: str, inputs: Inputs) -> tuple[Path, dict[str, Any]]:
    """The file to load for a variant, and its engine settings."""
    metadata = compiled_facts(name, inputs)
    folder = inputs[f"compile:{name}"]
    path = folder / metadata["path"] if metadata["path"] else inputs["export"] / "model.onnx"
    return path, metadata["settings"]


def target_of(name: str, inputs: Inputs) -> str:
    """The target of a compiled variant."""
    return str(compiled_facts(name, inputs)["target"])


def compiled_facts(name: str, inputs: Inputs) -> dict[str, Any]:
    """What the compile step of a variant said."""
    text = (inputs[f"compile:{name}"] / "artifact.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)["metadata"]
    return facts


def _together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two sets of demands: lists are joined, of anything else the second holds."""
    joined = dict(one)
    for key, value in other.items():
        have = joined.get(key)
        joined[key] = [*have, *(v for v in value if v not in have)] if isinstance(have, list) else value
    return joined
