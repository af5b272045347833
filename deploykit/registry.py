"""Finds the pieces that come one file each: targets, precisions, sources, objectives, layouts.

A piece is a module of the package ``deploykit.<kind>``, found by its file name, or a module that a third party names
under the entry point group ``deploykit.<kind>``. Names are written with a dash, files with an underscore.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import cast

from deploykit.errors import RecipeError, UnknownNameError, nearest

KINDS = ("sources", "precisions", "targets", "objectives", "layouts")
_PACKAGES = {"objectives": "pretrain.objectives", "layouts": "bundle.layouts"}


def names(kind: str) -> list[str]:
    """The names registered under ``kind``, sorted; nothing is imported."""
    folder = Path(__file__).parent / _PACKAGES.get(kind, kind).replace(".", "/")
    built_in = {p.stem.replace("_", "-") for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return sorted(built_in | {e.name for e in entry_points(group=f"deploykit.{kind}")})


def module(kind: str, name: str) -> ModuleType:
    """The module behind a name; `UnknownNameError` gives the nearest known ones."""
    known = names(kind)
    if name not in known:
        raise UnknownNameError(f"there is no {kind[:-1]} '{name}'", hint=nearest(name, known))
    for entry in entry_points(group=f"deploykit.{kind}"):
        if entry.name == name:
            return cast(ModuleType, entry.load())
    return importlib.import_module(f"deploykit.{_PACKAGES.get(kind, kind)}.{name.replace('-', '_')}")


def compiled_as(target: str, precision: str) -> str:
    """The precision of its own as which ``target`` compiles the graph of ``precision``; empty where it does not.

    Either side may say so: the target lists the precision in ``PRECISIONS``, or the precision names the target in
    ``TARGETS``. `RecipeError` where it names one that the target does not have.
    """
    own: tuple[str, ...] = module("targets", target).PRECISIONS
    if precision in own:
        return precision
    named: str = getattr(module("precisions", precision), "TARGETS", {}).get(target, "")
    if named and named not in own:
        raise RecipeError(
            f"the precision '{precision}' is to be compiled as '{named}', and {target} has no precision '{named}'",
            hint=f"it has {', '.join(own)}: name one of them in the precision's TARGETS",
        )
    return named


def offered(target: str) -> tuple[str, ...]:
    """Every precision that ``target`` can be asked for: its own first, then those that name it."""
    own: tuple[str, ...] = module("targets", target).PRECISIONS
    return (*own, *(name for name in names("precisions") if name not in own and compiled_as(target, name)))
