"""The regression gate: is this bundle slower, larger or less true than that one? PASS, FAIL, or INCONCLUSIVE.

::

    from deploykit.gate import Choices, gate
    result = gate("new.bundle", "old.bundle", Choices(data="texts.txt"))
    print(result.status, *(row.sentence for row in result.rows), sep="\n")

Bundles are compared, not stored numbers: both are audited, encoded with and timed here, side by side.
"""

from __future__ import annotations

from deploykit.gate.limits import DEFAULT, limits
from deploykit.gate.result import AaResult, Identity, Result, Row, Unjudged
from deploykit.gate.run import Choices, aa, gate
from deploykit.gate.timing import Timing

__all__ = ["DEFAULT", "AaResult", "Choices", "Identity", "Result", "Row", "Timing", "Unjudged", "aa", "gate", "limits"]
