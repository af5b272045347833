"""Building a bundle's engines ahead of the first request, so that no request waits for a build.

What is opened here is what `deploykit.runtime.load` opens later: the same gate, the same cache. An engine that is there
already is loaded and left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import EngineOptions, install_hint, open_engine
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.manifest import Variant
from deploykit.runtime.selection import Device, unmet
from deploykit.runtime.tensorrt.flavour import RTX, TENSORRT
from deploykit.runtime.trust.models import check_model

TARGETS = (TENSORRT.name, RTX.name)


@dataclass(frozen=True)
class Warmed:
    """What became of one variant. ``built``: its engine was built in ``seconds``, ``ready``: it was in the cache;
    ``lacking``: this machine lacks what it needs; ``failed``: TensorRT could not build or load it.
    """

    variant: str
    status: Literal["built", "ready", "lacking", "failed"]
    seconds: float
    reason: str = ""
    hint: str = ""
    effective: dict[str, Any] = field(default_factory=dict)


def warm(
    bundle: Bundle,
    names: Sequence[str] = (),
    device: Device | None = None,
    announce: Callable[[str], None] | None = None,
) -> list[Warmed]:
    """Build or find the engine of each TensorRT variant, or of those in ``names``; ``announce`` hears the name
    of each that this machine can build.

    Every file is checked against the manifest before anything is built of it. `InputError` for a name whose engine is
    not built on the device; `BundleError` for a bundle that is not whole, or a model that no encoder is.
    """
    chosen = [bundle.variant(name) for name in names] or [v for v in bundle.manifest.variants if v.target in TARGETS]
    for variant in chosen:
        if variant.target not in TARGETS:
            raise InputError(
                f"'{variant.name}' runs in {variant.target}, which builds nothing on the device",
                hint="name a variant of the target tensorrt or tensorrt-rtx, or none for all of them",
            )
    bundle.verify()
    for variant in chosen:
        check_model(bundle, variant)
    results = []
    for variant in chosen:
        if reason := unmet(variant, device or Device()):
            absent = "is not installed" in reason
            hint = install_hint([variant.target]) if absent else "run it on the device that the variant is for"
            results.append(Warmed(variant.name, "lacking", 0.0, reason, hint))
            continue
        if announce is not None:
            announce(variant.name)
        results.append(_warm(bundle, variant))
    return results


def _warm(bundle: Bundle, variant: Variant) -> Warmed:
    begun = time.perf_counter()
    try:
        engine: Any = open_engine(
            variant.target, bundle.file(variant.path), bundle.manifest.card, variant.settings, EngineOptions()
        )
        try:
            engine.warm_up(bundle.manifest.card)
            effective = dict(engine.effective)
        finally:
            engine.close()
    except MissingError as error:
        return Warmed(variant.name, "lacking", time.perf_counter() - begun, error.message, error.hint)
    except (BundleError, InputError) as error:
        return Warmed(variant.name, "failed", time.perf_counter() - begun, error.message, error.hint)
    seconds = time.perf_counter() - begun
    return Warmed(
        variant.name, "built" if effective.get("from") == "built now" else "ready", seconds, "", "", effective
    )
