"""The pip command for what is missing here: the packages behind an extra of deploykit.

A message names the packages, never ``deploykit[extra]``: deploykit itself comes from no index, so under its name pip
could only fetch somebody else's package. The extras stand in pyproject.toml alone; an installed deploykit carries them
in its metadata.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_SELF = "deploykit"
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def pip_install(*extras: str) -> str:
    """``pip install "torch>=2.9" …``: what these extras bring and this Python lacks; all of it if it lacks nothing."""
    listed = [need for extra in extras for need in requirements(extra)]
    wanted = list(dict.fromkeys([need for need in listed if not _installed(need)] or listed))
    if not wanted:
        return f"install what the extra {' and '.join(extras)} of deploykit's pyproject.toml lists"
    return "pip install " + " ".join(f'"{need}"' if re.search(r"[<>=~!]", need) else need for need in wanted)


def requirements(extra: str) -> tuple[str, ...]:
    """The packages behind an extra with their bounds; none for a name that is no extra."""
    return _declared().get(extra, ())


@cache
def _declared() -> dict[str, tuple[str, ...]]:
    """Every extra's packages: from the source tree that this file lies in, else from the installed metadata."""
    from importlib import metadata

    beside = Path(__file__).parents[2] / "pyproject.toml"
    if beside.is_file():
        import tomllib

        project = tomllib.loads(beside.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == _SELF:
            return {extra: _without_self(needs) for extra, needs in project["optional-dependencies"].items()}
    try:
        lines = metadata.requires(_SELF) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in lines:
        extra = _EXTRA.search(line.partition(";")[2])
        if extra is not None:
            found.setdefault(extra[1], []).append(line)
    return {extra: _without_self(needs) for extra, needs in found.items()}


def _without_self(needs: list[str]) -> tuple[str, ...]:
    """Without markers, and without the extras that another one gathers."""
    plain = (need.partition(";")[0].strip() for need in needs)
    return tuple(need for need in plain if not need.startswith(f"{_SELF}["))


def _installed(need: str) -> bool:
    from importlib import metadata

    name = _NAME.match(need)
    try:
        return name is not None and bool(metadata.version(name[0]))
    except metadata.PackageNotFoundError:
        return False
