"""What devices found: the figures of ``deploykit bundle selftest --json``, brought home into the bundle's manifest.

A variant's ``drift["devices"]`` holds one record per kind of device (`deploykit.runtime.devices`): architecture, CPU,
the instruction sets that decide kernels, versions of the runtime, and what the self-test gave there. The same kind of
device measured again replaces its record. The manifest changes with that, and so does its digest;
``provenance["recorded_onto"]`` keeps those that it had before, so that a report of a device that holds the bundle of
then can still be recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploykit.bundle import model_card, sbom
from deploykit.bundle.write import describe, put_in_place
from deploykit.errors import DiskError, RecipeError
from deploykit.runtime import devices, hardware
from deploykit.runtime.bundle import Bundle, read_plain
from deploykit.runtime.manifest import SIGNATURE_NAME, Manifest
from deploykit.runtime.selftest import VariantResult, read_reference

SCHEMA = "deploykit.selftest/1"
RECORDED_ONTO = "recorded_onto"

_MAX_REPORT_BYTES = 1 << 20
_PACKAGES = ("deploykit", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tokenizers")
_HINT = "give what `deploykit bundle selftest BUNDLE --json` printed on the device"


@dataclass(frozen=True)
class Recorded:
    """What `record` did: the bundle's new digest, and the devices by name with the variants recorded for each."""

    bundle: Path
    digest: str
    devices: Mapping[str, tuple[str, ...]]
    dropped_signature: bool


def report(bundle: Bundle, results: Sequence[VariantResult]) -> dict[str, Any]:
    """What a device says about ``bundle``, schema ``deploykit.selftest/1``: which bundle, what machine, what came out.

    ``passed``: no variant failed, and at least one ran.
    """
    failed = any(result.status == "failed" for result in results)
    return {
        "schema": SCHEMA,
        "bundle": bundle.root,
        "digest": bundle.digest,
        "passed": not failed and any(result.status == "passed" for result in results),
        "device": hardware.machine(),
        "runtime": {name: have for name in _PACKAGES if (have := _installed(name))},
        "inputs": len(read_reference(bundle)),
        "variants": [asdict(result) for result in results],
    }


def record(bundle: Path, reports: Sequence[Path], times: bool = True, drop_signature: bool = False) -> Recorded:
    """Write what the files ``reports`` say into the bundle folder ``bundle``: all of them, or nothing.

    `RecipeError` for a packed bundle, for a signed one unless ``drop_signature`` (the signature would no longer fit),
    and for a file that is no report of this bundle; `BundleError` when the bundle is refused; `DiskError` when it
    cannot be written. Without ``times`` only cosines are kept: those of an emulated device are right, its times are
    not. Results of the made-up variant ``portable`` are not kept: the manifest has no place for them.
    """
    if bundle.is_file():
        raise RecipeError(f"'{bundle}' is packed, and its manifest is to change", hint="record into the folder")
    opened = Bundle.open(bundle)
    opened.verify()
    signed = (opened.root / SIGNATURE_NAME).exists()
    if signed and not drop_signature:
        raise RecipeError(
            f"'{bundle}' is signed, and the signature will not fit the manifest with the new figures",
            hint="give --drop-signature, then sign it again with `deploykit bundle sign`",
        )
    manifest, recorded = opened.manifest, {}
    for path in reports:
        found = _read(path, opened)
        if not times:
            found = found | {"variants": [row | {"p50_ms": None} for row in found["variants"]]}
        manifest = _with(manifest, found)
        recorded[_name(found)] = tuple(str(row["variant"]) for row in found["variants"])
    before = [*_before(manifest), opened.digest]
    manifest = replace(manifest, provenance={**manifest.provenance, RECORDED_ONTO: before})
    _rewrite(opened, manifest)
    return Recorded(bundle, Bundle.open(bundle).digest, recorded, signed)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _before(manifest: Manifest) -> list[str]:
    """The digests that the manifest had before figures were recorded."""
    found = manifest.provenance.get(RECORDED_ONTO)
    return [digest for digest in found if isinstance(digest, str)] if isinstance(found, list) else []


def _read(path: Path, bundle: Bundle) -> dict[str, Any]:
    """The report at ``path``, once it is whole and of this bundle."""
    try:
        data = json.loads(read_plain(path, _MAX_REPORT_BYTES), parse_constant=lambda text: None)
    except OSError as error:
        raise RecipeError(f"the report '{path}' cannot be read: {error.strerror or error}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"'{path}' is no valid JSON: {error}", hint=_HINT) from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise RecipeError(f"'{path}' is no report of a self-test (schema {SCHEMA})", hint=_HINT)
    if data.get("digest") not in [bundle.digest, *_before(bundle.manifest)]:
        raise RecipeError(
            f"'{path}' is about another bundle: manifest {str(data.get('digest'))[:12]}…, this one is "
            f"{bundle.digest[:12]}…",
            hint="run the self-test on this bundle, or record into the one that the device holds",
        )
    if reason := _fault(data, bundle.manifest):
        raise RecipeError(f"'{path}' is no whole report: {reason}", hint=_HINT)
    return data


def _fault(data: Mapping[str, Any], manifest: Manifest) -> str:
    """Why the report cannot be recorded; empty when it can."""
    device, runtime, rows = (data.get(key) for key in ("device", "runtime", "variants"))
    if not isinstance(device, dict) or not isinstance(runtime, dict) or not isinstance(rows, list):
        return "it lacks the device, the runtime or the variants"
    known = {"portable", *(variant.name for variant in manifest.variants)}
    for row in rows:
        if not isinstance(row, dict) or row.get("variant") not in known:
            return "it has a variant that the bundle has not"
        if reason := devices.fault(_row(data, row)):
            return f"variant '{row['variant']}' {reason}"
    return ""


def _row(data: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The record of one variant on one device. Reasons lose their line breaks."""
    device, reason = data["device"], row.get("reason") or ""
    return {
        "architecture": device.get("architecture"),
        "cpu": device.get("cpu"),
        "features": device.get("features"),
        "hardware": str(device.get("id", "")),
        "runtime": data["runtime"],
        "status": row.get("status"),
        "reason": " ".join(reason.split()) if isinstance(reason, str) else reason,
        "cosine_min": row.get("cosine_min"),
        "inputs": data.get("inputs"),
        "p50_ms": row.get("p50_ms"),
    }


def _with(manifest: Manifest, data: Mapping[str, Any]) -> Manifest:
    """The manifest with the report's rows; one of the same kind of device goes."""
    found = {row["variant"]: _row(data, row) for row in data["variants"]}
    variants = []
    for variant in manifest.variants:
        if variant.name in found:
            new = found[variant.name]
            kept = [row for row in devices.rows(variant) if _kind(row) != _kind(new)]
            rows = sorted([*kept, new], key=lambda row: json.dumps(_kind(row)))
            variant = replace(variant, drift={**variant.drift, devices.KEY: rows})
        variants.append(variant)
    return replace(manifest, variants=tuple(variants))


def _kind(row: Mapping[str, Any]) -> list[Any]:
    return [row["architecture"], row["cpu"], sorted(row["features"]), sorted(row["runtime"].items())]


def _name(data: Mapping[str, Any]) -> str:
    device = data["device"]
    return " ".join(filter(None, (device["architecture"], device["cpu"]))) + f" ({device.get('id', '?')})"


def _rewrite(bundle: Bundle, manifest: Manifest) -> None:
    """A folder beside the bundle with the same files, linked where the disk can, takes its place in one exchange."""
    try:
        output = bundle.root.absolute()
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            described = (model_card.NAME, sbom.NAME)
            listed = {name: entry for name, entry in manifest.files.items() if name not in described}
            for name in listed:
                _link(output / name, work / name)
            describe(work, manifest, listed)
            Bundle.open(work).verify()
            work.chmod(0o755)
            put_in_place(work, output)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DiskError(
            f"'{bundle.label}' cannot be written: {error.strerror or error}",
            hint="free some space; the bundle is as it was",
        ) from error


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
