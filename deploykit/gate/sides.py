"""Candidate and baseline: opened, checked against each other, and asked for facts in processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import BundleError, DeploykitError, InputError, MissingError
from deploykit.measure import process
from deploykit.measure.paired import Arm
from deploykit.runtime.bundle import PORTABLE_PATH, Bundle
from deploykit.runtime.loading import split_variant

_FACTS = "deploykit.gate.facts"


@dataclass(frozen=True)
class Side:
    """One arm. ``variant`` None: the one that is loaded here when nobody names one; ``python`` None: this one."""

    arm: Arm
    path: Path
    bundle: Bundle
    variant: str | None
    python: str | None

    @property
    def label(self) -> str:
        """``the candidate new.bundle@openvino-int8``."""
        return f"the {self.arm} {self.name}"

    @property
    def name(self) -> str:
        """``new.bundle@openvino-int8``."""
        return f"{self.path}@{self.variant}" if self.variant else str(self.path)

    @property
    def size(self) -> int:
        """Bytes of the variant's files: the one that is loaded, and those that belong to it."""
        path = self.bundle.variant(self.variant or "portable").path
        stem = path.rpartition(".")[0] + "."
        return sum(entry.size for name, entry in self.bundle.manifest.files.items() if name.startswith(stem))

    @property
    def total(self) -> int:
        """Bytes of the whole bundle."""
        return sum(entry.size for entry in self.bundle.manifest.files.values())


@dataclass(frozen=True)
class Facts:
    """What a side's process found on this machine: the variant that is loaded, its audit, machine and software."""

    variant: str
    precision: str
    audit: Mapping[str, Any]
    hardware: Mapping[str, Any]
    software: Mapping[str, str]


def open_side(arm: Arm, spec: str | os.PathLike[str], python: str | os.PathLike[str] | None, digest: str = "") -> Side:
    """Open and verify a bundle; `BundleError` names the arm when it is missing, refused, or not the one of ``digest``.

    ``digest`` is the beginning of the SHA-256 of its manifest, 8 digits or more.
    """
    path, variant = split_variant(spec)
    if not path.exists():
        hint = "baselines are bundles: keep the one that is in production, or fetch it before the gate"
        raise BundleError(f"the {arm} '{path}' is missing", hint=hint if arm == "baseline" else "build it first")
    try:
        bundle = Bundle.open(path)
        bundle.verify()
        if variant is not None:
            bundle.variant(variant)
    except BundleError as error:
        raise BundleError(f"the {arm}: {error.message}", hint=error.hint) from error
    pin = digest.lower().removeprefix("sha256:")
    if digest and (len(pin) < 8 or not bundle.digest.startswith(pin)):
        raise BundleError(
            f"the {arm} '{path}' has the digest {bundle.digest}, and {digest} is asked for",
            hint="fetch the bundle that was pinned, or pin this one; 8 digits or more name it",
        )
    return Side(arm, path, bundle, variant, os.fspath(python) if python else None)


def unusable(error: DeploykitError) -> BundleError:
    """What a check of the baseline found: no verdict on the candidate, but nothing to compare it with."""
    message = f"there is nothing to compare with: {error.message}"
    return BundleError(message, hint=f"give a baseline that works here; {error.hint}")


def check_comparable(candidate: Side, baseline: Side, retrained: bool = False) -> Side:
    """The baseline, with the candidate's variant where it names none; `InputError` when the two are no two forms of
    one encoder. A ``retrained`` one may have other dimensions.
    """
    ours, theirs = candidate.bundle.manifest.card, baseline.bundle.manifest.card
    if ours.modality != theirs.modality:
        raise InputError(
            f"the candidate encodes {ours.modality}, the baseline {theirs.modality}",
            hint="give two bundles of the same encoder",
        )
    if ours.embedding.dim != theirs.embedding.dim and not retrained:
        raise InputError(
            f"the candidate's vectors have {ours.embedding.dim} dimensions, the baseline's {theirs.embedding.dim}",
            hint="an index built with the baseline could not take them: give two bundles of the same encoder, or "
            "--retrained if its weights are others on purpose",
        )
    named = candidate.variant
    if named is None or baseline.variant is not None:
        return baseline
    try:
        baseline.bundle.variant(named)
    except BundleError as error:
        hint = f"name one: {baseline.path}@VARIANT; {error.hint}"
        raise BundleError(f"the baseline '{baseline.path}' has no variant '{named}'", hint=hint) from error
    return Side(baseline.arm, baseline.path, baseline.bundle, named, baseline.python)


def comparable_to_fp32(candidate: Side, baseline: Side) -> bool:
    """Are both the same lower precision of the same fp32 model, file by file?"""
    ours, theirs = (side.bundle.variant(side.variant or "portable") for side in (candidate, baseline))
    same = bool(weights(baseline)) and weights(candidate) == weights(baseline)
    return ours.precision == theirs.precision != "fp32" and same


def weights(side: Side) -> dict[str, str]:
    """SHA-256 of every file of the portable fp32 model, by name; empty where the bundle has none."""
    stem = PORTABLE_PATH.rpartition(".")[0] + "."
    files = side.bundle.manifest.files
    return {name: entry.sha256 for name, entry in files.items() if name.startswith(stem)}


def facts(sides: Sequence[Side], threads: int | None, timeout_s: float) -> dict[Arm, Facts]:
    """Load and audit every side, at once: what is counted here does not depend on time."""

    def ask(side: Side) -> Facts:
        request = {"do": "audit", **_request(side, threads)}
        return Facts(**process.ask(_FACTS, request, side.label, python=side.python, timeout_s=timeout_s))

    with ThreadPoolExecutor(len(sides)) as pool:
        return dict(zip([side.arm for side in sides], pool.map(ask, sides), strict=True))


def encode(side: Side, inputs: Mapping[str, str | None], out: Path, threads: int | None, timeout_s: float) -> None:
    """Write the side's vectors of what `deploykit.gate.inputs.dataset` gives for ``inputs`` to ``out`` (``.npy``)."""
    request = {"do": "encode", **_request(side, threads), **inputs, "out": str(out)}
    process.ask(_FACTS, request, side.label, python=side.python, timeout_s=timeout_s)


def check_hardware(found: Sequence[Mapping[str, Any]], expected: str = "", where: str = "") -> Mapping[str, Any]:
    """The one machine that all of ``found`` are; `MissingError` when they differ, or are not the ``expected`` one."""
    ids = {machine["id"] for machine in found}
    if len(ids) > 1:
        raise MissingError(
            f"the machine changed while it measured: {' and '.join(sorted(ids))}",
            hint="run again where the job is not moved to another machine",
        )
    machine = found[0]
    if expected and machine["id"] != expected:
        raise MissingError(
            f"{where} was measured on hardware {expected}, and this is {machine['id']} ({machine['cpu']})",
            hint="run `deploykit gate --aa` on this machine, or the gate on that one",
        )
    return machine


def interpreter(side: Side) -> str:
    """The Python that runs the side."""
    return side.python or sys.executable


def _request(side: Side, threads: int | None) -> dict[str, Any]:
    return {"bundle": str(side.path.resolve()), "variant": side.variant, "threads": threads}
