"""A step: a pure function from (options, digests of its inputs, tool versions) to an artefact."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Watch:
    """What a step reads beside its parents' artefacts: ``roots`` are the folders of its source or of its data, as far
    as they are known, ``by_name`` whether what lies there is looked for by name (`deploykit.pipeline.observe`).
    """

    roots: tuple[str, ...] = ()
    by_name: bool = True


@dataclass(frozen=True)
class Step:
    """One arrow of the data flow.

    ``action`` names a function ``module:function`` with the signature ``(options, inputs, out) -> metadata``, run in a
    child process; ``parents`` are the names of the steps whose artefacts it reads. ``packages`` and ``hardware`` enter
    the key where the result depends on them. ``reusable`` False: made anew each time. ``required`` False: when it
    fails, the steps that need it are skipped and the others go on. ``alone``: it measures times, or runs an engine that
    takes all cores for itself, so nothing runs beside it. ``watch``: it reads more than its parents' artefacts; what
    that was is kept with the artefact, which is reused while it is the same.
    """

    name: str
    action: str
    options: Mapping[str, Any]
    parents: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    hardware: str = ""
    timeout_s: float = 1800.0
    reusable: bool = True
    required: bool = True
    alone: bool = False
    watch: Watch | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What sort of artefact this step makes: ``export``, ``lower``, ``compile``, ``verify``, ``measure``."""
        return self.name.partition(":")[0]

    def describe(self) -> str:
        """One line for people: what it does and from what."""
        source = f" from {', '.join(self.parents)}" if self.parents else ""
        settings = ", ".join(f"{k}={v}" for k, v in self.facts.items())
        return f"{self.name}{source}" + (f" ({settings})" if settings else "")

    def key(self, parent_digests: Sequence[str]) -> str:
        """The store key; it changes with anything that may change the result, our own code included."""
        facts = {
            "action": self.action,
            "options": self.options,
            "parents": list(parent_digests),
            "packages": {name: package_version(name) for name in self.packages},
            "hardware": self.hardware,
            "code": code_digest(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def package_version(name: str) -> str:
    """The installed version, without importing the package; empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@functools.cache
def code_digest() -> str:
    """Digest of deploykit's own source, so that no artefact outlives the code that made it."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):  # the texts that every text encoder is tested on count as code
        if path.suffix in (".py", ".txt") and path.relative_to(root).parts[0] not in ("cli", "report"):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
