"""Keys of a JSON file that are understood, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError, nearest

_UNSET: tuple[Any, ...] = (None, {}, [])


def refuse_unknown(path: Path, data: Mapping[str, Any], known: Collection[str], where: str = "") -> None:
    """`SourceError` for the first key that is not ``known`` and holds something."""
    for key, value in data.items():
        if key not in known and value not in _UNSET:
            raise SourceError(
                f"{path} has the setting '{where}{key}', which is not understood",
                hint=f"{nearest(key, sorted(known))}; if the vectors do not depend on it, take it out of a copy",
            )


def one_of(path: Path, name: str, value: Any, kind: type | tuple[type, ...]) -> Any:
    """``value``, if it has the type that belongs there; `SourceError` names the key otherwise."""
    wanted = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        words = " or ".join(one.__name__ for one in wanted)
        raise SourceError(f"{path} has {name} {value!r}, expected {words}", hint="the file is damaged: fetch it again")
    return value


def count(path: Path, name: str, value: Any) -> int | None:
    """A number of 1 or more, or None."""
    if value is not None and (type(value) is not int or value < 1):
        raise SourceError(f"{path} has {name} {value!r}, expected an integer of 1 or more", hint="correct the file")
    return value
