"""Opening a bundle: check it, choose the variant for this machine, load its engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.encoder import Encoder
from deploykit.runtime.engines import EngineOptions, open_engine
from deploykit.runtime.errors import BundleError, InputError, MissingError, UnknownNameError, nearest
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.manifest import Variant
from deploykit.runtime.preprocess import open_preprocessor
from deploykit.runtime.selection import PREFERENCES, Candidate, Device, Prefer, Report, candidates, install_hint, unmet
from deploykit.runtime.trust.models import check_model

_log = logging.getLogger("deploykit")


@dataclass(frozen=True)
class Reasons:
    """The part of a `Report` that is known before the engine is loaded."""

    why: str
    passed_over: Mapping[str, str]
    behind: Mapping[str, str]


def load(
    path: str | os.PathLike[str],
    variant: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    prefer: Prefer = "speed",
    require_signature: str | os.PathLike[str] | None = None,
    allow_control_flow: bool = False,
) -> Encoder:
    """Open the bundle (a folder, or a packed ``.dkb``) at ``path``; ``path@variant`` names a variant too.

    Without a name: the bundle's default where it can run here, else the fastest measured, else the portable fp32 model
    on onnxruntime; ``prefer="size"`` takes the smallest. ``encoder.report()`` says what was chosen and why. ``threads``
    None: every core that this process may use. ``require_signature``, a file with a public Ed25519 key in PEM: the
    bundle must be signed by it. ``allow_control_flow`` lets models with If or Loop pass. `BundleError` when a file is
    not as the manifest says, or a model is none that an encoder needs; `MissingError` when nothing can run.
    """
    if prefer not in PREFERENCES:
        raise UnknownNameError(f"prefer is {prefer!r}", hint=nearest(str(prefer), PREFERENCES))
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}", hint="give 1 or more, or leave it out for every usable core")
    place, named = split_variant(path)
    if variant and named and variant != named:
        raise InputError(f"'{path}' names a variant, and variant='{variant}' another", hint="give one of them")
    bundle = Bundle.open(place)
    if require_signature is not None and not verify:
        raise InputError(
            "a signature is required, and verify is off", hint="a signature says nothing of files that are not checked"
        )
    if verify:
        bundle.verify(require_signature)
    options = EngineOptions(threads)
    name = variant or named

    def check(chosen: Variant) -> None:
        check_model(bundle, chosen, allow_control_flow)

    return _open_named(bundle, name, options, check) if name else _open_best(bundle, prefer, options, check)


def split_variant(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """``NAME.bundle@variant`` to its two parts; an existing file with an ``@`` in its name is itself."""
    text = os.fspath(path)
    if "@" not in Path(text).name or Path(text).exists():
        return Path(text), None
    place, _, name = text.rpartition("@")
    return Path(place), name


def _open_named(bundle: Bundle, name: str, options: EngineOptions, check: Callable[[Variant], None]) -> Encoder:
    variant = bundle.variant(name)
    check(variant)
    if reason := unmet(variant, Device()):
        missing = "is not installed" in reason
        hint = install_hint([variant.target]) if missing else "leave the variant out to get the best one that runs here"
        raise MissingError(f"variant '{name}' cannot run here: {reason}", hint=hint)
    return _open(bundle, variant, Reasons("asked for by name", {}, {}), options)


def _open_best(bundle: Bundle, prefer: Prefer, options: EngineOptions, check: Callable[[Variant], None]) -> Encoder:
    passed_over: dict[str, str] = {}
    tried: list[Candidate] = candidates(bundle, prefer, Device())
    for index, candidate in enumerate(tried):
        name = candidate.variant.name
        if candidate.unmet:
            passed_over[name] = candidate.unmet
            continue
        check(candidate.variant)  # a model that is refused is no reason to try the next: nothing of it is trusted
        try:
            behind = {c.variant.name: c.unmet or f"can run ({c.why})" for c in tried[index + 1 :]}
            reasons = Reasons(candidate.why, dict(passed_over), behind)
            encoder = _open(bundle, candidate.variant, reasons, options)
        except (MissingError, BundleError) as error:
            passed_over[name] = error.message
            continue
        if reasons_against := passed_over or _only_portable(bundle, name, tried[index + 1 :]):
            _log.warning("%s: '%s' is used (%s); %s", bundle.root, name, candidate.why, _sentence(reasons_against))
        return encoder
    targets = [c.variant.target for c in tried if "is not installed" in c.unmet]
    raise MissingError(
        f"no variant of '{bundle.root}' can run here: {_sentence(passed_over)}",
        hint=install_hint(targets[-1:]) if targets else "build the bundle for this machine",
    )


def _only_portable(bundle: Bundle, name: str, behind: list[Candidate]) -> dict[str, str]:
    """Why the bundle's own variants were left for the portable model; empty when one of them runs, or could run."""
    listed = {variant.name for variant in bundle.manifest.variants}
    lacking = {c.variant.name: c.unmet for c in behind if c.unmet}
    return lacking if name not in listed and set(lacking) == listed else {}


def _open(bundle: Bundle, variant: Variant, reasons: Reasons, options: EngineOptions) -> Encoder:
    card = bundle.manifest.card
    # The preprocessor first: it is cheap, and without it no variant is of use.
    try:
        preprocessor = open_preprocessor(card, bundle.root)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{error.name} is not installed, which {card.modality} preprocessing needs",
            hint=install_hint([card.modality]),
        ) from error
    engine = open_engine(variant.target, bundle.file(variant.path), card, variant.settings, options)
    report = Report(variant.name, reasons.why, reasons.passed_over, reasons.behind, engine.effective)
    return Encoder(bundle, variant, engine, preprocessor, report, options.threads or usable_cores())


def _sentence(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"not '{name}': {reason}" for name, reason in reasons.items())
