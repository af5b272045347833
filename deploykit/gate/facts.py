"""The child of a gate: loads one side as a user would, audits what really runs here, encodes.

::

    python -P -m deploykit.gate.facts < request.json

``{"do": "audit", "bundle", "variant", "threads"}`` gives the variant, its audit, machine and software; ``{"do":
"encode", …, "data", "examples", "out"}`` writes vectors float32 [n, dim].
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from deploykit.measure.worker import serve
from deploykit.runtime.install import pip_install


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``request`` says."""
    from deploykit.runtime.loading import load

    with load(request["bundle"], request["variant"], request["threads"], verify=False) as encoder:
        if request["do"] == "audit":
            return _audit(encoder.bundle, encoder.variant)
        return _encode(encoder, request)


def _audit(bundle: Any, variant: Any) -> dict[str, Any]:
    """What the artefact runs here, whatever its manifest says."""
    from deploykit import registry
    from deploykit.errors import MissingError
    from deploykit.measure import fingerprint

    target = registry.module("targets", variant.target)
    try:
        found = target.audit(bundle.file(variant.path), bundle.manifest.card, variant.settings)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the audit of '{variant.name}' needs {error.name}, which is not installed",
            hint=pip_install("gate"),
        ) from error
    return {
        "variant": variant.name,
        "precision": variant.precision,
        "audit": found,
        "hardware": fingerprint.machine(),
        "software": fingerprint.software(),
    }


def _encode(encoder: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    from deploykit import vectors
    from deploykit.gate.inputs import dataset

    found = dataset(request["data"], request["examples"])
    np.save(request["out"], vectors.encode(encoder, found.inputs, kind=None), allow_pickle=False)
    return {"inputs": len(found)}


if __name__ == "__main__":
    # The engines' exit handlers have crashed after the work was done: leave without running them.
    status = serve(answer)
    sys.stderr.flush()
    os._exit(status)
