"""A gate in a test: pytest loads this by itself where deploykit is installed, and nothing heavy with it.

::

    @pytest.mark.deploykit_budget("standard p50<=+3%")
    def test_the_new_bundle(deploykit_gate):
        deploykit_gate("build/new.bundle", "production/old.bundle", data="texts.txt")

FAIL fails the test, INCONCLUSIVE skips it, both with the reason; PASS returns the `deploykit.gate.Result`. What cannot
be judged (a bundle that is missing) fails it with one sentence and the way out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from deploykit.gate import Result

_MARKER = "deploykit_budget"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, so that ``--strict-markers`` takes it."""
    config.addinivalue_line(
        "markers", f'{_MARKER}(limits): what a bundle may lose in deploykit_gate, as in "standard p50<=+3%"'
    )


@pytest.fixture
def deploykit_gate(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """A function ``(candidate, baseline, budget=None, **choices)`` that ends the test unless the gate passes.

    ``budget`` None takes the marker's, and without one the default; ``choices`` are those of `deploykit.gate.Choices`.
    A bundle's relative path is one below pytest's root, wherever it was started; ``data`` is as on the command line.
    """
    marker = request.node.get_closest_marker(_MARKER)
    marked = _budget_of(marker) if marker else None

    def judge(
        candidate: str | os.PathLike[str], baseline: str | os.PathLike[str], budget: Any = None, **choices: Any
    ) -> Result:
        __tracebackhide__ = True
        from deploykit.errors import DeploykitError
        from deploykit.gate import Choices, gate
        from deploykit.gate.text import plain

        root = request.config.rootpath
        chosen = Choices(budget=budget if budget is not None else marked, **choices)
        try:
            result = gate(root / candidate, root / baseline, chosen)
        except DeploykitError as error:
            # What is wrong is in the user's files or options, and no frame of ours shows where.
            pytest.fail(plain(str(error)), pytrace=False)
        if result.status == "FAIL":
            pytest.fail(_reasons(result), pytrace=False)
        if result.status == "INCONCLUSIVE":
            pytest.skip(_reasons(result))
        return result

    return judge


def _budget_of(marker: pytest.Mark) -> str:
    if marker.kwargs or len(marker.args) != 1 or not isinstance(marker.args[0], str):
        raise pytest.UsageError(f'{_MARKER} takes one text: @pytest.mark.{_MARKER}("standard p50<=+3%")')
    return marker.args[0]


def _reasons(result: Result) -> str:
    """The sentences that decided, and where to look."""
    from deploykit.gate.text import plain

    told = [row for row in result.rows if row.status == result.status]
    lines = [row.sentence + (f"\n  → {row.look}" if row.look else "") for row in told]
    return plain("\n".join([f"{result.status} against {result.baseline.name} ({result.budget})", *lines]))
