"""What can be named here: targets, precisions and sources, with one line about each."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

from deploykit import registry


@dataclass(frozen=True)
class Entry:
    """One name. ``precisions`` and ``installed`` belong to targets: what they can do, and is their package here?"""

    name: str
    summary: str
    precisions: tuple[str, ...] = field(default=())
    installed: bool | None = None


def entries(kind: str) -> list[Entry]:
    """Everything registered under ``kind`` (targets, precisions, sources), sorted by name."""
    if kind == "targets":
        return [_target(name) for name in registry.names("targets")]
    return [Entry(name, _summary(kind, name)) for name in registry.names(kind)]


def _target(name: str) -> Entry:
    installed = find_spec(name.replace("-", "_")) is not None
    return Entry(name, _summary("targets", name), registry.offered(name), installed)


def _summary(kind: str, name: str) -> str:
    """The first sentence of the module's docstring."""
    return " ".join((registry.module(kind, name).__doc__ or "").split("\n\n")[0].split())
