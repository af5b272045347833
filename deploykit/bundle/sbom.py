"""``sbom.cdx.json``: what a bundle is made of, in CycloneDX 1.6, all of it from the manifest.

The encoder is a machine-learning model with the source and the digest of its weights; every file is a component with
its SHA-256; the packages that built it stand under the tools, since none of them is inside; what a variant needs on the
device stands as an optional component that the bundle depends on. https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deploykit.runtime.manifest import Manifest, Variant
from deploykit.runtime.trust.wire import words

NAME: Final = "sbom.cdx.json"
_TARGET_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx", "onnxruntime": "onnxruntime"}
_PREPROCESSING = {"text": "tokenizers", "image": "pillow", "audio": "soundfile"}
# SPDX identifiers that model pages use; anything else is given as the name of a licence, as the source says it.
_LICENCES: Final = words("Apache-2.0 MIT ISC BSD-2-Clause BSD-3-Clause CC-BY-4.0 CC-BY-SA-4.0 CC-BY-NC-4.0")
_SPDX: Final = {text.lower(): text for text in _LICENCES}
_WORD = re.compile(r"[A-Za-z0-9._-]+")


def render(manifest: Manifest) -> str:
    """The document, the same for the same manifest: it carries no time, and its serial number is a digest."""
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_serial(manifest)}",
        "version": 1,
        "metadata": {"tools": {"components": list(_tools(manifest))}, "component": _encoder(manifest)},
        "components": [*_files(manifest), *_needed(manifest)],
        "dependencies": list(_dependencies(manifest)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _serial(manifest: Manifest) -> uuid.UUID:
    digests = json.dumps([(name, entry.sha256) for name, entry in sorted(manifest.files.items())])
    return uuid.UUID(bytes=hashlib.sha256(digests.encode()).digest()[:16], version=4)


def _encoder(manifest: Manifest) -> dict[str, Any]:
    card = manifest.card
    facts = {**card.provenance, **_source(manifest)}
    shown = {f"deploykit:{key}": value for key, value in sorted(facts.items()) if isinstance(value, str) and value}
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "encoder",
        "name": card.name,
        "description": f"A {card.modality} encoder: {card.embedding.dim} numbers per input",
        "modelCard": {
            "modelParameters": {
                "task": "feature-extraction",
                "inputs": [{"format": f"{spec.name} {spec.dtype} {list(spec.shape)}"} for spec in card.inputs],
                "outputs": [{"format": f"{spec.name} {spec.dtype} {list(spec.shape)}"} for spec in card.outputs],
                **_architecture(card.provenance),
            }
        },
        "properties": [{"name": name, "value": value} for name, value in shown.items()],
    }
    weights = card.provenance.get("weights_sha256")
    if isinstance(weights, str) and re.fullmatch("[0-9a-f]{64}", weights):
        component["hashes"] = [{"alg": "SHA-256", "content": weights}]
    licence = card.provenance.get("license")
    if isinstance(licence, str) and licence:
        known = _SPDX.get(licence.lower())
        component["licenses"] = [{"license": {"id": known} if known else {"name": licence}}]
    return component


def _architecture(provenance: Mapping[str, Any]) -> dict[str, Any]:
    name = provenance.get("architecture")
    return {"modelArchitecture": name} if isinstance(name, str) and name else {}


def _source(manifest: Manifest) -> dict[str, Any]:
    source = manifest.provenance.get("source")
    if not isinstance(source, Mapping):
        return {}
    return {f"source.{key}": value for key, value in source.items() if isinstance(value, str)}


def _tools(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The packages that were installed where it was built, with their versions, as the build recorded them."""
    software = manifest.provenance.get("software")
    for name, version in sorted(software.items()) if isinstance(software, Mapping) else ():
        if name == "python":
            yield {"type": "platform", "name": "python", "version": str(version)}
        else:
            yield {"type": "library", "name": name, "version": str(version), "purl": _purl(name, str(version))}


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{version.replace('+', '%2B')}"


def _files(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for name, entry in sorted(manifest.files.items()):
        yield {
            "type": "file",
            "bom-ref": f"file:{name}",
            "name": name,
            "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
            "properties": [{"name": "deploykit:bytes", "value": str(entry.size)}],
        }


def _needed(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What the device brings: an engine for each variant, and what preprocessing reads with. Not inside the bundle."""
    for name, wanted in sorted(_packages(manifest).items()):
        component: dict[str, Any] = {"type": "library", "bom-ref": f"needs:{name}", "name": name, "scope": "optional"}
        if wanted:
            component["properties"] = [{"name": "deploykit:requires", "value": wanted}]
        yield component


def _packages(manifest: Manifest) -> dict[str, str]:
    """Package name to the versions asked for, which may be empty."""
    needed = {"onnxruntime": ""}
    if (reader := _PREPROCESSING.get(manifest.card.modality)) is not None:
        needed[reader] = ""
    for variant in manifest.variants:
        needed.setdefault(_package_of(variant), "")
        asked = variant.requires.get("packages")
        for name, wanted in asked.items() if isinstance(asked, Mapping) else ():
            needed[str(name)] = str(wanted)
    return {name: wanted for name, wanted in needed.items() if _WORD.fullmatch(name)}


def _package_of(variant: Variant) -> str:
    return _TARGET_PACKAGES.get(variant.target, variant.target)


def _dependencies(manifest: Manifest) -> Iterator[dict[str, Any]]:
    files = [f"file:{name}" for name in sorted(manifest.files)]
    needs = [f"needs:{name}" for name in sorted(_packages(manifest))]
    yield {"ref": "encoder", "dependsOn": [*files, *needs]}
