"""Frozen dataclasses from parsed TOML and back: what a `Recipe` is read and written with.

`read` refuses unknown keys and wrong types with a `RecipeError` that says where the key stands and what it should be;
`plain` and `dumps` are the way back.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from deploykit.errors import RecipeError, nearest

T = TypeVar("T")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def read(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """An instance of dataclass ``cls``; ``where`` (``file: [section]``) begins every message."""
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    refuse_unknown(data, fields, f"{where} has no key")
    hints = typing.get_type_hints(cls)
    missing = [n for n, f in fields.items() if n not in data and _required(f)]
    if missing:
        raise RecipeError(f"{where} lacks the key '{missing[0]}'", hint=f"add {missing[0]} = …")
    return cls(**{name: typed(hints[name], value, f"{where} {name}") for name, value in data.items()})


def refuse_unknown(data: Iterable[str], known: Iterable[str], message: str) -> None:
    """`RecipeError` for the first key of ``data`` that is not known, with the nearest one as the hint."""
    names = list(known)
    for key in data:
        if key not in names:
            raise RecipeError(f"{message} '{key}'", hint=nearest(key, names))


def table(value: Any, where: str) -> Mapping[str, Any]:
    """``value`` if it is a TOML table."""
    if not isinstance(value, Mapping):
        hint = "write it as a [section] with keys below it"
        raise RecipeError(f"{where} must be a section, and is {value!r}", hint=hint)
    return value


def typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind`` (a scalar, Path, Literal or Any; an optional, a tuple or a dict of these)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (value is None and type(None) in args):
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of([a for a in args if a is not type(None)], value, where)
    if origin is Literal:
        return _choice(args, value, where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value, hint=f"write it in brackets: [{json.dumps(value, default=str)}]")
        return tuple(typed(args[0], item, where) for item in value)
    if issubclass(origin or kind, Mapping):
        return {k: typed(args[1] if args else Any, v, f"{where}.{k}") for k, v in table(value, where).items()}
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise _wrong(where, _NAMES.get(kind, getattr(kind, "__name__", str(kind))), value)
    return value


def plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain data; fields that are None are left out, as TOML cannot say None."""
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {name: _simple(item) for name, item in fields.items() if item is not None}


def dumps(data: Mapping[str, Any], prefix: str = "") -> str:
    """TOML for nested tables of strings, numbers, booleans and lists of these."""
    lines = [f"{_key(k)} = {_value(v)}\n" for k, v in data.items() if not isinstance(v, Mapping)]
    header = [f"[{prefix}]\n"] if prefix and (lines or not data) else []
    parts = ["".join(header + lines)] if header or lines else []
    for key, value in data.items():
        if isinstance(value, Mapping):
            parts.append(dumps(value, f"{prefix}.{_key(key)}" if prefix else _key(key)))
    return "\n".join(parts)


def _required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _one_of(kinds: list[Any], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return typed(kind, value, where)
        except RecipeError:
            if kind is kinds[-1]:
                raise
    raise AssertionError("a union has at least one member")


def _choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        names = [str(c) for c in choices]
        raise RecipeError(f"{where} cannot be {value!r}", hint=f"one of: {', '.join(names)}")
    return value


def _wrong(where: str, want: str, value: Any, hint: str = "") -> RecipeError:
    if not hint:
        hint = "leave the quotes away" if isinstance(value, str) and want != "a section" else f"give {want}"
    return RecipeError(f"{where} must be {want}, and is {value!r}", hint=hint)


def _simple(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_simple(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _simple(v) for k, v in value.items() if v is not None}
    return str(value) if isinstance(value, Path) else value


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    raise TypeError(f"TOML has no form for {type(value).__name__}")
