"""``package:NAME/folder``: a model that came inside an installed Python package. The package is not imported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deploykit.errors import MissingError, SourceError

_PREFIX = "package:"


def is_package_spec(spec: str) -> bool:
    """``package:…``."""
    return spec.startswith(_PREFIX)


def folder_of(spec: str) -> Path:
    """The folder or file named; `MissingError` when the package is not installed, `SourceError` when it lacks it."""
    name, _, inner = spec.removeprefix(_PREFIX).partition("/")
    if not name.isidentifier():
        raise SourceError(f"'{spec}' names no package", hint="package:NAME/folder, with the name that is imported")
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        hint = f"install it (pip install {name.replace('_', '-')}), or give a folder"
        raise MissingError(f"the package {name} is not installed here", hint=hint)
    root = Path(next(iter(found.submodule_search_locations))).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root) or not path.exists():
        inside = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("_")))
        raise SourceError(f"the package {name} has no '{inner}'", hint=f"its folders: {inside or 'none'}")
    return path
