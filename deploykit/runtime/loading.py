"""Opening a bundle: check it, choose the variant for this machine, load its engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deploykit.runtime import further
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.decide import SELECTIONS, Decision, Select, Wish, decide
from deploykit.runtime.encoder import Encoder
from deploykit.runtime.engines import Engine, EngineOptions, install_hint, open_engine
from deploykit.runtime.errors import (
    BundleError,
    InputError,
    MissingError,
    SelfTestError,
    UnknownNameError,
    nearest,
)
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.manifest import Variant
from deploykit.runtime.preprocess import Preprocessor, open_preprocessor
from deploykit.runtime.selection import (
    PREFERENCES,
    Device,
    Prefer,
    Report,
    Row,
    model_bytes,
    unmet,
)
from deploykit.runtime.trust.models import check_model

_log = logging.getLogger("deploykit")


def load(
    path: str | os.PathLike[str],
    variant: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    prefer: Prefer = "speed",
    require_signature: str | os.PathLike[str] | None = None,
    allow_control_flow: bool = False,
    select: Select = "auto",
    arena: bool = True,
) -> Encoder:
    """Open the bundle (a folder, or a packed ``.dkb``) at ``path``; ``path@variant`` names a variant too.

    Without a name: on the machine where the bundle was built its default; on another one the fastest of the variants
    that pass the self-test there (``prefer="size"``: the smallest), each tried in a process of its own, timed for 2 s
    in all, and remembered for the next load; else the portable fp32 model on onnxruntime. ``select="measure"`` tries
    them in any case, anew, and ``"manifest"`` none: the order is that of the bundle. `Encoder.report` says what was
    chosen and why.

    ``threads`` None: every core that this process may use. ``arena`` False: onnxruntime keeps no memory of activations
    between calls, which is smaller and slower. ``require_signature``, a file with a public Ed25519 key in PEM: the
    bundle must be signed by it. ``allow_control_flow`` lets models with If or Loop pass. `BundleError` when a file is
    not as the manifest says, or a model is none that an encoder needs; `MissingError` when nothing can run,
    `SelfTestError` when nothing gives the right vectors.
    """
    for name, value, known in (("prefer", prefer, PREFERENCES), ("select", select, SELECTIONS)):
        if value not in known:
            raise UnknownNameError(f"{name} is {value!r}", hint=nearest(str(value), known))
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
    wish = Wish(prefer, select, EngineOptions(threads, arena))
    wanted = variant or named

    checked: set[str] = set()

    def check(chosen: Variant) -> None:
        if chosen.name not in checked:
            check_model(bundle, chosen, allow_control_flow)
            checked.add(chosen.name)

    return _open_named(bundle, wanted, wish.options, check) if wanted else _open_best(bundle, wish, check)


def split_variant(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """``NAME.bundle@variant`` to its two parts; an existing file with an ``@`` in its name is itself."""
    text = os.fspath(path)
    if "@" not in Path(text).name or Path(text).exists():
        return Path(text), None
    place, _, name = text.rpartition("@")
    return Path(place), name


def open_variant(bundle: Bundle, variant: Variant, options: EngineOptions) -> Encoder:
    """Open that variant, whose file and needs the caller has checked."""
    preprocessor, why = _preprocessor(bundle), "asked for by name"
    engine = _engine(bundle, variant, options)
    report = Report(variant.name, why, (Row(variant.name, "used", why),), engine.effective)
    return _encoder(bundle, variant, engine, preprocessor, report, options)


def _open_named(bundle: Bundle, name: str, options: EngineOptions, check: Callable[[Variant], None]) -> Encoder:
    variant = bundle.variant(name)
    check(variant)
    if reason := unmet(variant, Device(), model_bytes(bundle, variant)):
        missing = "is not installed" in reason
        hint = install_hint([variant.target]) if missing else "leave the variant out to get the best one that runs here"
        raise MissingError(f"variant '{name}' cannot run here: {reason}", hint=hint)
    return open_variant(bundle, variant, options)


def _open_best(bundle: Bundle, wish: Wish, check: Callable[[Variant], None]) -> Encoder:
    opened: list[Preprocessor] = []

    def prepare(chosen: Variant) -> None:
        check(chosen)  # a model that is refused is no reason to take the next: nothing of it is trusted
        if not opened:  # without its preprocessing no variant is of use
            opened.append(_preprocessor(bundle))

    decision = decide(bundle, wish, Device(), prepare)
    rows = {row.variant: row for row in decision.rows}
    for variant, why in decision.order:
        prepare(variant)
        try:
            engine = _engine(bundle, variant, wish.options)
        except (MissingError, BundleError) as error:
            rows[variant.name] = replace(rows[variant.name], status="refused", why=error.message)
            continue
        rows[variant.name] = replace(rows[variant.name], status="used", why=why)
        report = Report(variant.name, why, tuple(rows.values()), engine.effective, decision.notes)
        _warn(bundle, report)
        return _encoder(bundle, variant, engine, opened[0], report, wish.options)
    raise _nothing_runs(bundle, tuple(rows.values()), decision)


def _warn(bundle: Bundle, report: Report) -> None:
    """Say it where the default cannot run, or nothing but the portable model can."""
    refused = report.passed_over
    listed = {variant.name for variant in bundle.manifest.variants}
    if bundle.manifest.default in refused or (report.variant not in listed and listed and listed <= set(refused)):
        _log.warning("%s: '%s' is used (%s); %s", bundle.root, report.variant, report.why, _sentence(report.rows))


def _nothing_runs(bundle: Bundle, rows: Sequence[Row], decision: Decision) -> MissingError | SelfTestError:
    reasons = f"'{bundle.label}' can run here: {_sentence(rows)}"
    if decision.failed:
        return SelfTestError(f"no variant of {reasons}", hint="another version of the engine may compute correctly")
    missing = [row.variant for row in rows if "is not installed" in row.why]
    hint = "build the bundle for this machine"
    if missing:
        hint = install_hint([bundle.variant(missing[-1]).target])
    elif not bundle.manifest.portable:
        hint = "its portable fp32 model was left out (--no-portable): use the whole bundle, which may run here"
    elif any("MiB of memory" in row.why for row in rows):
        hint = "free memory or raise this process's limit, or build the bundle with a smaller variant (int8)"
    return MissingError(f"no variant of {reasons}", hint=hint)


def _preprocessor(bundle: Bundle) -> Preprocessor:
    card = bundle.manifest.card
    try:
        return open_preprocessor(card, bundle.root)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{error.name} is not installed, which {card.modality} preprocessing needs",
            hint=install_hint([card.modality]),
        ) from error


def _encoder(
    bundle: Bundle, variant: Variant, engine: Engine, preprocessor: Preprocessor, report: Report, options: EngineOptions
) -> Encoder:
    """The encoder; an engine that gives more than the embedding is opened beside it when that is first asked for."""
    more = len(further.names(bundle.manifest.card)) > 1
    whole = partial(_engine, bundle, variant, options, whole=True) if more else None
    return Encoder(bundle, variant, engine, preprocessor, report, options.threads or usable_cores(), whole)


def _engine(bundle: Bundle, variant: Variant, options: EngineOptions, *, whole: bool = False) -> Engine:
    """The variant's engine: with every output of its graph, or with the embedding alone, which copies less."""
    path, card = bundle.file(variant.path), bundle.manifest.card
    try:
        given = card if whole else further.embedding_alone(card)
        return open_engine(variant.target, path, given, variant.settings, options)
    except MemoryError as error:
        raise MissingError(
            f"there is not enough memory to open '{path.name}'", hint="free memory, or load a smaller variant"
        ) from error


def _sentence(rows: Sequence[Row]) -> str:
    return "; ".join(f"not '{row.variant}': {row.why}" for row in rows if row.status == "refused")
