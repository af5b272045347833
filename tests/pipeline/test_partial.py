"""The search for what goes back to float, with a script in the place of quantizer, engine and clock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploykit.errors import CheckError, ExportError
from deploykit.pipeline import partial
from deploykit.pipeline.partial import Trial


class Scripted:
    """Each kind in int8 adds its drift; each kind in float adds its milliseconds."""

    def __init__(self, drift, cost, limit, broken=()):
        self.drift, self.cost, self.limit, self.broken = drift, cost, limit, broken
        self.trials = []
        self._options = {"precision": "int8", "target": "scripted"}

    def groups(self):
        return [(kind,) for kind in self.drift]

    def full(self):
        return self.build(())

    def build(self, keep):
        if set(keep) & set(self.broken):
            raise ExportError("this one cannot be built")
        left = sum(value for kind, value in self.drift.items() if kind not in keep)
        trial = Trial(keep, SimpleNamespace(terms={"drift": left}), left <= self.limit, None, {})
        self.trials.append(trial)
        return trial

    def time(self, trials):
        return [replace(t, p50_ms=10 + sum(self.cost[kind] for kind in t.keep)) for t in trials]


DRIFT = {"q": 0.001, "ffn1": 0.003, "ffn2": 0.010, "out": 0.004}
COST = {"q": 1.0, "ffn1": 4.0, "ffn2": 4.0, "out": 0.5}


def put_back(limit, **more):
    look = Scripted(DRIFT, COST, limit, **more)
    chosen, ranking = partial._put_back(look, look.full())
    return chosen.keep, [row["kinds"][0] for row in ranking], look


def test_kinds_are_ranked_by_drift_saved_per_millisecond():
    assert put_back(0.009)[1] == ["out", "ffn2", "q", "ffn1"]


def test_one_kind_that_is_enough_alone_is_taken():
    keep, _, look = put_back(0.009)
    assert keep == ("ffn2",)
    assert len(look.trials) == 5  # full and each kind; nothing more had to be built


def test_of_several_that_are_enough_alone_the_fastest_is_taken():
    assert put_back(0.0145)[0] == ("out",)


def test_they_go_back_in_order_of_worth_until_the_budget_holds():
    assert put_back(0.005)[0] == ("out", "ffn2")
    assert put_back(0.003)[0] == ("out", "ffn2", "q")


def test_a_kind_that_cannot_be_built_alone_is_left_out():
    keep, order, _ = put_back(0.0145, broken=("ffn2",))
    assert keep == ("out",)
    assert order == ["out", "q", "ffn1"]


def test_when_nothing_is_inside_the_best_is_named():
    told = r"no partial int8 of scripted is inside the budget: the best of \d+ has drift"
    with pytest.raises(CheckError, match=told):
        put_back(0.0)
