"""The last step: from the artefacts of a run to the bundle and its report, unless they already stand there."""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit import settings
from deploykit.bundle.write import REFERENCE, Contents, check_output, write_bundle
from deploykit.errors import BundleError, SelfTestError
from deploykit.measure import fingerprint
from deploykit.pipeline import judging, selftest_data
from deploykit.pipeline.child import Request, run_in_child
from deploykit.pipeline.decide import Decided
from deploykit.pipeline.default import Default, default_of
from deploykit.pipeline.plan import Plan
from deploykit.pipeline.step import code_digest
from deploykit.pipeline.store import Artifact, Store
from deploykit.pipeline.variants import read_card
from deploykit.runtime.bundle import PORTABLE_PATH, Bundle
from deploykit.runtime.busy import Busy
from deploykit.runtime.manifest import Manifest, SelfTest, Variant, to_json
from deploykit.runtime.tensorrt.build import SCHEMA as ENGINE_SCHEMA

_OWN_FILES = ("model.onnx", "proof.npz", "proof.json", "card.json", "artifact.json")
_SELFTEST_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Assembled:
    """The bundle's manifest, and whether anything had to be written."""

    manifest: Manifest
    written: bool

    @property
    def variants(self) -> tuple[dict[str, Any], ...]:
        """The variants as plain data."""
        return tuple(to_json(variant) for variant in self.manifest.variants)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where there are several variants: which is the default, why, and whether that is settled."""
        found = self.manifest.provenance.get("default")
        return (Default(**found).note,) if found and len(self.manifest.variants) > 1 else ()


def bundle(plan: Plan, decided: Decided, output: Path, store: Store) -> Assembled:
    """Write the bundle at ``output``, tested from the outside, before it takes the place of the one that is there.

    Raises `SelfTestError` when a variant does not give its vectors through the whole encoder; nothing is written then.
    """
    check_output(output)
    build = _build_digest(decided, plan.unjudged)
    standing = _standing(output)
    if standing is not None and standing.manifest.provenance.get("build") == build:
        _copy_engines(decided, output)  # somebody may have taken them away
        return Assembled(standing.manifest, written=False)
    contents = _contents(plan, decided, build)
    written = write_bundle(output, contents, check=lambda folder: _selftest(folder, store))
    _copy_engines(decided, output)
    return Assembled(written.manifest, written=True)


def _build_digest(decided: Decided, unjudged: str) -> str:
    facts = {name: artifact.digest for name, artifact in decided.artifacts.items()}
    reasons = [(item["variant"], item["reason"]) for item in (*decided.refused, *decided.candidates)]
    return hashlib.sha256(json.dumps([facts, reasons, unjudged, code_digest()], sort_keys=True).encode()).hexdigest()


def _standing(output: Path) -> Bundle | None:
    """The bundle that is at ``output``, when it is whole: every file is checked against its digest."""
    try:
        found = Bundle.open(output)
        found.verify()
    except BundleError:
        return None
    return found


def _contents(plan: Plan, decided: Decided, build: str) -> Contents:
    artifacts = decided.artifacts
    exported = artifacts["export"]
    card = read_card(exported.path)
    measure = artifacts["measure"].metadata if "measure" in artifacts else {}
    measured = measure.get("latency", {})
    passed = [name.partition(":")[2] for name in artifacts if name.startswith("verify:")]
    variants = [_variant(name, artifacts, measured.get(name, {})) for name in passed]
    busy = Busy(**measure["busy"]) if measure.get("busy") else None
    default = default_of([variant for variant, _ in variants], busy)
    bounds = {variant.name: variant.proof["tolerance"]["cosine"] for variant, _ in variants}
    return Contents(
        card=card,
        portable=exported.path / "model.onnx",
        variants=variants,
        files=_bundle_files(exported.path),
        selftest=SelfTest(selftest_data.inputs_name(card), REFERENCE, bounds),
        default="" if default is None else default.variant,
        refused=decided.refused,
        candidates=decided.candidates,
        provenance={
            "build": build,
            "source": {
                "model": plan.recipe.source.model,
                "kind": plan.identity.kind,
                "digest": plan.identity.digest,
                "options": settings.plain(plan.recipe.source.options),
            },
            "export": {key: exported.metadata[key] for key in ("exporter", "proof", "notes")},
            "judge": judging.record(plan.unjudged, _metadata(artifacts, judging.NAME)),
            **_samples_facts(artifacts),
            **({} if default is None else {"default": default.to_json()}),
            "machine": fingerprint.machine(),
            "software": fingerprint.software(),
        },
    )


def _metadata(artifacts: Mapping[str, Artifact], name: str) -> Mapping[str, Any] | None:
    return artifacts[name].metadata if name in artifacts else None


def _samples_facts(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What was calibrated on and judged by, and what a search for a partial variant tried."""
    facts = {"samples": artifacts["samples"].metadata} if "samples" in artifacts else {}
    searched = {name: item.metadata for name, item in artifacts.items() if name.startswith("search:")}
    return facts | ({"search": searched} if searched else {})


def _variant(
    name: str, artifacts: Mapping[str, Artifact], latency: Mapping[str, Any]
) -> tuple[Variant, dict[str, Path]]:
    """The manifest's entry of one variant, and its files by their name in the bundle."""
    compiled, verified = artifacts[f"compile:{name}"], artifacts[f"verify:{name}"]
    path = compiled.metadata["path"]
    files = {f"models/{name}{_tail(p.name, path)}": p for p in compiled.path.iterdir() if not _stays_out(p)}
    variant = Variant(
        name=name,
        target=compiled.metadata["target"],
        precision=compiled.metadata["precision"],
        path=f"models/{name}{_tail(path, path)}" if path else PORTABLE_PATH,
        settings=dict(compiled.metadata["settings"]),
        requires=dict(compiled.metadata["requires"]),
        proof=dict(verified.metadata["proof"]),
        drift=dict(verified.metadata["drift"]),
        lowered=dict(compiled.metadata["lowered"]),
        audit=_audit(verified.metadata, compiled.metadata["notes"]),
        latency=dict(latency),
    )
    return variant, files if path else {}


def _audit(verified: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """What really runs. The engine says what it was set to; where the audit knows what it computes in, that holds."""
    found = verified["audit"]
    known = {"precision": found["effective"]} if "effective" in found else {}
    return {**found, "effective": {**verified["effective"], **known}, "notes": list(notes)}


def _stays_out(path: Path) -> bool:
    """The record of the step, and engines: executable code, which no bundle may hold."""
    return path.name == "artifact.json" or path.suffix == ".engine"


def _copy_engines(decided: Decided, output: Path) -> None:
    """Engines that were built ahead of time, with their metadata, into ``NAME.engines`` beside ``NAME.bundle``.

    Those of an earlier bundle of that name go: they fit none of its models any more.
    """
    folder = output.with_name(f"{output.name.removesuffix('.bundle')}.engines")
    wanted: dict[str, Path] = {}
    for step, artifact in decided.artifacts.items():
        kind, _, name = step.partition(":")
        for engine in sorted(artifact.path.glob("*.engine")) if kind == "compile" else ():
            for path in (engine, engine.with_suffix(".json")):
                wanted[f"{name}{_tail(path.name, artifact.metadata['path'])}"] = path
    for engine in folder.glob("*.engine"):
        if engine.name not in wanted and _is_engines_record(engine.with_suffix(".json")):
            engine.unlink()
            engine.with_suffix(".json").unlink()
    for name, path in wanted.items():
        folder.mkdir(mode=0o700, exist_ok=True)
        if not (folder / name).exists() or not filecmp.cmp(path, folder / name, shallow=False):
            unfinished = folder / f".{name}.part"
            shutil.copyfile(path, unfinished)
            unfinished.replace(folder / name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _is_engines_record(path: Path) -> bool:
    """Whether a file is what stands beside an engine that deploykit built; nothing else is ever taken away."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["schema"] == ENGINE_SCHEMA)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _tail(name: str, path: str) -> str:
    """What distinguishes a file from its companions: everything behind the stem of the file to load."""
    return name.removeprefix(Path(path).stem)


def _bundle_files(folder: Path) -> dict[str, Path]:
    """Preprocessing, self-test, licence, and the portable model's weights where they stand beside it; by their name in
    the bundle.
    """
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    weights = {f"models/{name}": path for name, path in files.items() if name == "model.onnx.data"}
    others = {
        name: path for name, path in files.items() if name not in _OWN_FILES and not name.startswith("model.onnx")
    }
    return weights | others


def _selftest(folder: Path, store: Store) -> None:
    """Run the whole self-test on the finished folder in a child process that has no torch in it."""
    with store.workspace() as work:
        request = Request(
            "selftest", "deploykit.pipeline.actions:selftest", {"bundle": str(folder)}, {}, str(work / "out")
        )
        rows = run_in_child(request, work, _SELFTEST_TIMEOUT_S)["variants"]
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        reasons = "; ".join(f"{row['variant']}: {row['reason']}" for row in failed)
        raise SelfTestError(
            f"the finished bundle does not pass its own self-test ({reasons})",
            hint="nothing was written; this is a fault of deploykit's runtime or of the engine, not of the model",
        )
