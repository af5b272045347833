"""The search for what goes back to float, with a script in the place of quantizer, engine and clock."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.budget import Budget
from deploykit.drift import compare
from deploykit.errors import ExportError
from deploykit.pipeline import partial
from deploykit.pipeline.choose import DriftFaults, drift_faults
from deploykit.pipeline.partial import Search, Trial


class Scripted:
    """Each kind in int8 adds its drift; each kind in float adds its milliseconds."""

    def __init__(self, drift, cost, limit, broken=()):
        self.drift, self.cost, self.limit, self.broken = drift, cost, limit, broken
        self.trials = []
        self.not_built = []
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


def test_a_kind_that_cannot_be_built_alone_is_left_out_and_told_of():
    keep, order, look = put_back(0.0145, broken=("ffn2",))
    assert keep == ("out",)
    assert order == ["out", "q", "ffn1"]
    assert look.not_built == [{"keep": ["ffn2"], "reason": "this one cannot be built"}]


def test_a_set_that_cannot_be_built_is_gone_round():
    """out and ffn2 cannot be built together: q joins out without ffn2, which is not enough, and so does ffn1."""

    class Fragile(Scripted):
        def build(self, keep):
            if keep == ("out", "ffn2"):
                raise ExportError("too large together")
            return super().build(keep)

    look = Fragile(DRIFT, COST, 0.0075)
    assert partial._put_back(look, look.full())[0] is None
    assert look.not_built == [{"keep": ["out", "ffn2"], "reason": "too large together"}]
    assert {("out", "q"), ("out", "q", "ffn1")} <= {trial.keep for trial in look.trials}


def test_when_nothing_is_inside_the_best_is_named():
    look = Scripted(DRIFT, COST, 0.0)
    chosen, ranking = partial._put_back(look, look.full())
    assert chosen is None
    assert len(ranking) == 4
    assert partial._nothing(look) == "no partial int8 of scripted is inside the budget: the best of 7 has drift 0.0030"


OPTIONS = {
    "name": "onnxruntime-int8-dynamic",
    "target": "onnxruntime",
    "precision": "int8-dynamic",
    "form": "",
    "options": {"keep": ["encoder.layer.0.attention.query"], "cpu": "any"},
    "target_options": {},
    "budget": "drift<=0.01",
    "undecided": "refuse",
    "workload": "batch",
}


@pytest.fixture
def look(tmp_path, monkeypatch):
    """A search over a graph whose products are named, and of which the whole variant quantized two kinds."""
    found = [SimpleNamespace(kind=kind) for kind in ("q", "attention scores", "attention context", "ffn", "q")]
    monkeypatch.setattr(partial.variants, "read_card", lambda folder: None)
    monkeypatch.setattr(partial.prove, "read_cases", lambda folder, name: [])
    monkeypatch.setattr("deploykit.quantize.products.find", lambda model: found)
    monkeypatch.setattr("onnx_ir.load", lambda path: None)
    return lambda lowered: (
        monkeypatch.setattr(partial.variants, "compiled_facts", lambda name, inputs: {"lowered": lowered}),
        Search(OPTIONS, {"export": tmp_path, "samples": tmp_path}, tmp_path),
    )[1]


def test_only_kinds_that_were_quantized_are_put_back(look):
    assert look({"quantized": {"ffn": 1, "q": 2}}).groups() == [("q",), ("ffn",)]
    assert look({"quantized": 3, "kinds": {"q": 2}}).groups() == [("q",)]


def test_after_a_trial_that_failed_the_next_one_has_a_folder_of_its_own(look, tmp_path):
    search = look({"quantized": {"q": 2}})
    folders = []

    def fail(task, options, out):
        folders.append(out)
        raise ExportError("this one cannot be built")

    search._module = SimpleNamespace(lower=fail)
    assert [partial._built(search, (kind,)) for kind in ("q", "ffn")] == [None, None]
    assert len(set(folders)) == 2
    assert [row["keep"] for row in search.not_built] == [["q"], ["ffn"]]


def test_without_its_device_nothing_is_searched_for(monkeypatch, tmp_path):
    monkeypatch.setattr(partial.variants, "ran_here", lambda name, inputs: False)
    found = partial.search(OPTIONS, {}, tmp_path)
    assert found["keep"] == []
    assert "its device is not here" in found["nothing"]


def test_a_limit_that_the_data_cannot_show_counts_where_nothing_else_was_measured():
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    drift = compare(vectors, vectors)
    assert drift_faults(drift, Budget.parse("drift<=0.1 task<=1")) == DriftFaults()
    (said,) = drift_faults(drift, Budget.parse("task<=1")).unsure
    assert "task was not measured" in said
    assert drift_faults(drift, Budget.parse("p50<=4ms")) == DriftFaults()
