"""The gate of a project, as its tests: copy it to ``test_encoder.py``."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
OLD, NEW, DATA = HERE / "production" / "encoder.bundle", HERE / "build" / "encoder.bundle", HERE / "texts.txt"


@pytest.mark.deploykit_budget("standard p50<=+3%")
def test_the_new_encoder_is_as_good_and_as_fast(deploykit_gate):
    """This bundle must not drift by more than the budget allows from that one, nor be slower."""
    result = deploykit_gate(NEW, OLD, data=str(DATA))
    assert result.candidate.digest != result.baseline.digest


@pytest.mark.deploykit_budget("strict")
def test_it_keeps_its_vectors_for_the_index_that_is_built(deploykit_gate):
    """A budget can be the test's own too; ``everything`` reports more than the first failure."""
    deploykit_gate(NEW, OLD, budget="drift<=0.001 p50<=+25%", data=str(DATA), everything=True)
