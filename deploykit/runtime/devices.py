"""What devices found in their self-test, as ``drift["devices"]`` of a variant keeps it: one record per kind of device.

A record holds ``architecture``, ``cpu`` (the model), ``features`` (the instruction sets that decide kernels),
``hardware`` (the machine's id), ``runtime`` (package versions), ``status``, ``reason``, ``cosine_min`` (the worst of
``inputs`` to the stored reference) and ``p50_ms`` (of one input); the last two are None where nothing ran.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deploykit.runtime.manifest import Variant

KEY = "devices"

_STATUS = ("passed", "failed", "refused")
_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def rows(variant: Variant) -> list[dict[str, Any]]:
    """The records of ``variant``, those that are whole: a manifest may come from anybody."""
    found = variant.drift.get(KEY)
    return [row for row in found if not fault(row)] if isinstance(found, list) else []


def fault(row: Any) -> str:
    """What is wrong with a record, in words; empty for a whole one."""
    if not isinstance(row, dict) or row.get("status") not in _STATUS:
        return "has no known status"
    features, runtime = row.get("features"), row.get("runtime")
    if not isinstance(features, list) or not isinstance(runtime, dict) or type(row.get("inputs")) is not int:
        return "lacks the features, the runtime or the number of inputs"
    said = [row.get(key) for key in ("architecture", "cpu", "reason", "hardware")]
    if not all(
        isinstance(text, str) and text.isprintable() for text in (*said, *features, *runtime, *runtime.values())
    ):
        return "says something that is no plain text"
    figures = [row.get(key) for key in ("cosine_min", "p50_ms")]
    if not all(f is None or (type(f) in (int, float) and math.isfinite(f)) for f in figures):
        return "has a figure that is no number"
    return "passed without a cosine" if row["status"] == "passed" and figures[0] is None else ""


def sentence(row: Mapping[str, Any]) -> str:
    """``aarch64 (Cortex-A72; asimd), onnxruntime 1.32.0: passed, worst cosine 0.998710 over 12 inputs``."""
    details = "; ".join(filter(None, (row["cpu"], " ".join(row["features"]))))
    engines = "".join(f", {name} {row['runtime'][name]}" for name in _ENGINES if name in row["runtime"])
    said = f"{row['architecture']}{f' ({details})' if details else ''}{engines}: {row['status']}"
    if row["cosine_min"] is not None:
        said += f", worst cosine {row['cosine_min']:.6f} over {row['inputs']} inputs"
    if row["p50_ms"] is not None:
        said += f", {row['p50_ms']:.2f} ms for one"
    return f"{said}: {row['reason']}" if row["reason"] else said
