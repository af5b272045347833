"""Targets: one file per engine, build side; the file of the same name in `deploykit.runtime.engines` is its run side.

A file ``targets/NAME.py`` offers an ``Options`` dataclass, ``PRECISIONS`` (those that it can be asked for) and::

    def compile(model: Path, card: Card, precision: str, options: Options, out: Path) -> Compiled
    def audit(artifact: Path, card: Card, settings: Mapping[str, Any]) -> dict[str, Any]

`compile` turns the lowered ONNX at ``model`` into the engine's artefact below ``out``. `audit` loads that artefact and
counts what really runs: operations x precision x provider, and the attentions that the engine fused.

A precision that not every CPU has arithmetic for stands in ``REQUIRES``, ``{precision: what a device must have}`` in
the form of `deploykit.runtime.selection`: on a CPU without it the variant is not planned, and a note says so.

A target for devices that a build machine may lack also offers::

    def check_engine(artifact: Path, card: Card, settings: Mapping[str, Any]) -> Engine

which computes the same numbers on the CPU. Where the device is not here, a variant is proven with that, and says so; it
is not timed, and nothing chooses it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Compiled:
    """What a target's `compile` made.

    ``path`` is the file to load, relative to ``out`` (companions such as an OpenVINO ``.bin`` stand beside it with the
    same stem), or empty when the portable fp32 model itself is what the engine should load. ``settings`` go to the
    engine; ``requires`` is what a device must have; ``notes`` are sentences for the user (what the
    engine really computes in, …).
    """

    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    requires: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
