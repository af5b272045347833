"""Does the candidate still make the reference's vectors? Figures, a verdict against a budget, and where it goes wrong.

::

    from deploykit.budget import Budget
    from deploykit.drift import Choices, drift
    result = drift("a.bundle@portable", "a.bundle@openvino-int8", "texts.txt", Choices(Budget.parse("standard")))
    print(result.verdict.status)

Nothing but numpy and the engines of the two bundles is needed.
"""

from __future__ import annotations

from deploykit.drift.comparison import Drift, compare
from deploykit.drift.intervals import Figure
from deploykit.drift.judging import Verdict, verdict
from deploykit.drift.run import Choices, Result, drift
from deploykit.drift.where import Where

__all__ = ["Choices", "Drift", "Figure", "Result", "Verdict", "Where", "compare", "drift", "verdict"]
