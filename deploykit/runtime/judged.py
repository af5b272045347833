"""What ``provenance["judge"]`` of a manifest says in words: how a bundle stands beside the library of its source.

The record holds ``judged``, and where that is false the ``reason``; else ``library``, ``version``, ``call`` (the public
call), ``inputs`` and ``compared``, ``cosine_min`` with ``allowed``, ``overridden`` (what was not as the folder says),
``left_out`` (inputs that the library cannot run) and ``refused`` (inputs that deploykit does not take).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

KEY = "judge"


def sentence(provenance: Mapping[str, Any]) -> str:
    """``transformers 5.23.0 (…): 27 of 27 raw inputs compared, worst cosine 0.999999 (allowed 0.9999)``.

    ``not judged: REASON`` where it was not; empty for a bundle without a record, and for one that is not whole: a
    manifest may come from anybody.
    """
    found = provenance.get(KEY)
    if not isinstance(found, Mapping):
        return ""
    if found.get("judged") is False:
        return f"not judged: {found['reason']}" if isinstance(found.get("reason"), str) else ""
    try:
        who = " ".join(str(found[key]) for key in ("library", "version"))
        worst, allowed = float(found["cosine_min"]), float(found["allowed"]["cosine"])
        compared = f"{int(found['compared'])} of {int(found['inputs'])} raw inputs compared"
        if not math.isfinite(worst):
            return ""
        said = f"{who} ({found['call']}): {compared}, worst cosine {worst:.6f} (allowed {allowed})"
        for key, words in (("overridden", "not as the folder says"), ("left_out", "left out"), ("refused", "refused")):
            said += _listed(found[key], words)
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""
    return said


def _listed(items: Any, words: str) -> str:
    shown = [str(item["input"]) if isinstance(item, Mapping) else str(item) for item in items]
    return f"; {words}: {', '.join(shown)}" if shown else ""
