"""Engines: one file per inference engine, imported only when a variant of it is opened.

A file ``engines/NAME.py`` offers ``open_engine(path, card, settings, options) -> Engine``. Third parties register a
module with the same function under the entry point group ``deploykit.engines``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.runtime.errors import MissingError, UnknownNameError, nearest
from deploykit.runtime.install import pip_install, requirements
from deploykit.runtime.manifest import Card

Feeds = Mapping[str, np.ndarray]

#: The extras of deploykit that bring an engine, where they are called otherwise. The extra tensorrt brings the flavour
#: whose wheel holds its libraries; the other flavour is NVIDIA's own package.
ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""The targets that run on an NVIDIA GPU."""
EXTRAS = {"onnxruntime": "ort", "onnxruntime-cuda": "ort-gpu", "tensorrt-rtx": "tensorrt"}


@dataclass(frozen=True)
class EngineOptions:
    """How the engine may use the machine. ``threads`` None: every core this process may run on.

    ``arena`` False: onnxruntime gives the memory of activations back after each call instead of keeping it for the
    next. Other engines have no such switch.
    """

    threads: int | None = None
    arena: bool = True


class Engine(Protocol):
    """A loaded artefact. Both verbs are safe to call from several threads.

    ``effective`` states what really runs: engine version, device or provider, precision, threads, streams.
    """

    effective: Mapping[str, Any]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run one batch the low-latency way; outputs by name, float32 arrays that the caller owns."""

    def run_many(self, batches: Iterable[Feeds]) -> list[dict[str, np.ndarray]]:
        """Run many batches the high-throughput way (streams, several in flight); results in the order given.

        ``batches`` is taken from as lanes become free: a generator makes the next batch while others run.
        """

    def close(self) -> None:
        """Free the engine's memory. Using it afterwards is an error."""


def open_engine(target: str, path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions) -> Engine:
    """Load the artefact at ``path`` in engine ``target``; `MissingError` when its package is not installed."""
    module = _module(target)
    try:
        engine: Engine = module.open_engine(path, card, settings, options)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{target} is not installed ({error.name} cannot be imported)", hint=install_hint([target], error.name)
        ) from error
    return engine


def install_hint(targets: Sequence[str], module: str | None = None) -> str:
    """The pip command for engines that are missing; ``module`` is what could not be imported."""
    if set(targets) == {"tensorrt"}:
        return "pip install tensorrt"
    extras = dict.fromkeys(EXTRAS.get(target, target) for target in targets)
    known = [extra for extra in extras if requirements(extra)]
    if not known and module:  # an engine that came as a package of its own
        return f"install the package that brings {module}"
    return pip_install(*(known or extras))


def names() -> list[str]:
    """The engines that this installation knows, installed or not; a dash in a name is an underscore in its file's."""
    folder = Path(__file__).parent
    built_in = {p.stem.replace("_", "-") for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return sorted(built_in | set(_entry_points()))


def _entry_points() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {e.name: e for e in entry_points(group="deploykit.engines")}


def _module(target: str) -> Any:
    known = names()
    if target not in known:
        raise UnknownNameError(f"there is no engine '{target}'", hint=nearest(target, known))
    stem = target.replace("-", "_")
    if (Path(__file__).parent / f"{stem}.py").exists():
        return importlib.import_module(f"{__name__}.{stem}")
    return _entry_points()[target].load()
