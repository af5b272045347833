"""Layouts: the folder that a model server loads, made of one variant of a bundle; one file per server.

A file ``layouts/NAME.py`` offers ``TARGETS`` (those whose variants the server runs; every one of them also takes the
portable model) and::

    def check(bundle: Bundle) -> None
    def caveat(variant: Variant) -> str
    def lay_out(bundle: Bundle, variant: Variant, name: str) -> Layout

`check` raises `RecipeError` for an encoder that the server cannot serve as it was proven. `caveat` says what the
server would do otherwise than the bundle's own runtime, or is empty; such a variant is taken when it is named, never
unasked. `lay_out` says what goes where; nothing is written by it.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from deploykit import registry
from deploykit.bundle.layouts._readme import README
from deploykit.errors import DiskError, RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Variant

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Layout:
    """``copies``: files of the bundle by their place in the folder; ``texts``: what is written, by its place."""

    copies: Mapping[str, str]
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Written:
    """What was written for which server; ``caveat`` as the server's module says it, ``size`` in bytes."""

    server: str
    folder: Path
    name: str
    variant: str
    files: tuple[str, ...]
    size: int
    caveat: str


def write(bundle: Path, server: str, output: Path, variant: str | None = None, name: str | None = None) -> Written:
    """Write the folder that ``server`` loads, with one variant of the bundle at ``bundle`` (verified first).

    Without ``variant``: the default where the server runs it as proven, else the fastest measured, else the portable
    model. ``name`` is the model's name on the server. ``output`` appears when it is whole. `UnknownNameError` for a
    server that is none, `RecipeError` when it cannot serve this encoder or ``output`` is in the way, `DiskError` when
    it cannot be written.
    """
    module = registry.module("layouts", server)
    _check_output(output)
    opened = Bundle.open(bundle)
    opened.verify()
    module.check(opened)
    chosen = _named(opened, server, module, variant) if variant else _best(opened, module)
    called = _model_name(name, opened)
    layout = module.lay_out(opened, chosen, called)
    try:
        _put(opened, layout, output)
    except OSError as error:
        raise DiskError(
            f"'{output}' cannot be written: {error.strerror or error}", hint="free some space, or give another output"
        ) from error
    files = tuple(sorted([*layout.copies, *layout.texts]))
    size = sum((output / file).stat().st_size for file in files)
    return Written(server, output, called, chosen.name, files, size, module.caveat(chosen))


def model_files(bundle: Bundle, variant: Variant, folder: str) -> dict[str, str]:
    """The variant's files as ``folder/model.SUFFIX``, the name that servers look for."""
    stem, dot, suffix = variant.path.rpartition(".")
    files = {f"{folder}/model.{suffix}": variant.path}
    for name in bundle.manifest.files:
        if name.startswith(stem + dot) and suffix == "xml" and name.endswith(".bin"):
            files[f"{folder}/model.bin"] = name
    return files


def preprocess_files(bundle: Bundle, folder: str) -> dict[str, str]:
    """What the client feeds the model with, below ``folder``."""
    names = [name for name in bundle.manifest.files if name.startswith("preprocess/")]
    return {f"{folder}/{name}": name for name in names}


def rounding_caveat(variant: Variant, server: str) -> str:
    """What a server that takes no session configuration does to an int8 variant with one; empty for all others."""
    config = variant.settings.get("config")
    if not config or not variant.precision.startswith("int8"):
        return ""
    said = ", ".join(f"{key}={value}" for key, value in sorted(config.items()))
    return (
        f"{server} cannot pass on the session configuration that this variant was proven with ({said}): without it "
        "int8 rounds elsewhere, and the vectors are near the bundle's, not the same"
    )


def _check_output(output: Path) -> None:
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise RecipeError(f"'{output}' is there already", hint="give another folder, or remove it")


def _named(bundle: Bundle, server: str, module: ModuleType, name: str) -> Variant:
    variant = bundle.variant(name)
    if not _serves(bundle, module, variant):
        able = [v.name for v in bundle.manifest.variants if _serves(bundle, module, v)]
        raise RecipeError(
            f"{server} does not run '{name}', which is for {variant.target}",
            hint=f"it runs {', '.join(dict.fromkeys([*able, 'portable']))}",
        )
    return variant


def _best(bundle: Bundle, module: ModuleType) -> Variant:
    fitting = [v for v in bundle.manifest.variants if _serves(bundle, module, v) and not module.caveat(v)]
    for variant in fitting:
        if variant.name == bundle.manifest.default:
            return variant
    measured = {variant.name: _p50_ms(variant) for variant in fitting if _p50_ms(variant) < math.inf}
    return bundle.variant(min(measured, key=measured.__getitem__)) if measured else bundle.portable


def _serves(bundle: Bundle, module: ModuleType, variant: Variant) -> bool:
    return variant.target in module.TARGETS or bundle.is_portable(variant)


def _p50_ms(variant: Variant) -> float:
    row = variant.latency.get("single")
    value = row.get("p50_ms") if isinstance(row, Mapping) else None
    return float(value) if isinstance(value, int | float) else math.inf


def _model_name(name: str | None, bundle: Bundle) -> str:
    """``name``, or the encoder's with an underscore for what a folder or a URL may not hold."""
    if name is None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.manifest.card.name).lstrip("_.-") or "encoder"
    if not _NAME.fullmatch(name):
        raise RecipeError(f"the model cannot be called {name!r}", hint="use letters, digits, '_', '-' and '.'")
    return name


def _put(bundle: Bundle, layout: Layout, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for place, name in layout.copies.items():
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), work / place)
        for place, text in layout.texts.items():
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            (work / place).write_text(text, encoding="utf-8")
        work.chmod(0o755)
        work.replace(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)


__all__ = ["README", "Layout", "Written", "model_files", "preprocess_files", "rounding_caveat", "write"]
