"""Several steps at a time: what may run side by side, in which order it is told, and how it ends."""

import os
import threading
import time

import pytest

from deploykit.errors import RecipeError, SourceError, StepCrashError
from deploykit.pipeline import schedule
from deploykit.pipeline.child import Children, Request, StoppedError, run_in_child
from deploykit.pipeline.schedule import State, carry_out, jobs
from deploykit.pipeline.step import Step
from deploykit.pipeline.store import Store
from deploykit.recipe import Recipe

RECIPE = Recipe.from_text("[source]\nmodel = 'm'\n[bundle]\noutput = 'm.bundle'")


@pytest.fixture
def carry(tmp_path, monkeypatch, request):
    """``carry(*steps)``: (the state that they leave, the events in the order in which they were told)."""
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))
    monkeypatch.setenv("DEPLOYKIT_JOBS", "2")
    store, events = Store(tmp_path / "store"), []

    def run(*steps):
        state = State()
        carry_out(RECIPE, steps, store, state, events.append)
        return state, [(event.step, event.state) for event in events]

    run.events = events
    return run


def step(name, action="write", *parents, required=True, alone=False, **options):
    options = {**options, "mark": name}  # equal steps are one artefact
    return Step(name, f"actions_for_tests:{action}", options, parents, timeout_s=60, required=required, alone=alone)


def span(state, name):
    began, ended = (state.artifacts[name].path / "times.txt").read_text().split()
    return float(began), float(ended)


def overlap(state, one, other):
    (a, b), (c, d) = span(state, one), span(state, other)
    return a < d and c < b


def test_steps_that_do_not_need_each_other_run_side_by_side(carry):
    state, _ = carry(step("a", "wait_for", file="b.txt"), step("b", "wait_for", file="a.txt"))
    assert overlap(state, "a", "b")  # each waits for the other to have begun


def test_one_at_a_time_is_one_at_a_time(carry, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_JOBS", "1")
    state, events = carry(step("a", "last"), step("b", "last"))
    assert not overlap(state, "a", "b")
    assert events == [("a", "started"), ("a", "done"), ("b", "started"), ("b", "done")]


def test_what_runs_alone_has_nothing_beside_it_and_comes_last(carry):
    steps = [step("verify:a", "last", alone=True), step("b", "last"), step("c", "last"), step("verify:d", "last", "b")]
    state, _ = carry(*steps)
    assert not any(overlap(state, "verify:a", other) for other in ("b", "c", "verify:d"))
    assert span(state, "verify:a")[0] > max(span(state, other)[1] for other in ("b", "c", "verify:d"))


def test_ends_are_told_in_the_order_of_the_plan(carry):
    state, events = carry(step("slow", "last", seconds=1.0), step("quick", "last"), step("behind", "last", "quick"))
    assert [name for name, what in events if what == "done"] == ["slow", "quick", "behind"]
    assert list(state.artifacts) == ["slow", "quick", "behind"]
    assert span(state, "quick")[1] < span(state, "slow")[1]


def test_steps_side_by_side_share_the_cores(carry, monkeypatch):
    monkeypatch.setattr(schedule, "usable_cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    state, _ = carry(step("a", "last"), step("b", "last"), step("c", "last", "a", "b"))
    threads = {name: (made.path / "threads.txt").read_text() for name, made in state.artifacts.items()}
    assert threads == {"a": "2", "b": "2", "c": ""}


def test_what_fails_is_kept_and_what_needs_it_is_skipped_while_others_go_on(carry):
    state, events = carry(
        step("a", "refuse", required=False), step("b", "last", "a"), step("c", "last", "b"), step("d", "last")
    )
    assert [event for event in events if event[1] != "started"] == [
        ("a", "failed"), ("b", "skipped"), ("c", "skipped"), ("d", "done"),
    ]  # fmt: skip
    assert list(state.failures) == ["a"]


def test_a_required_step_that_fails_ends_what_runs_beside_it(carry):
    begun = time.monotonic()
    with pytest.raises(SourceError, match="is empty"):
        carry(step("a", "hang"), step("b", "refuse"), step("c", "last"))
    assert time.monotonic() - begun < 30
    assert "c" not in [event.step for event in carry.events]


def test_an_interruption_ends_the_children(carry, tmp_path):
    def interrupt(event):
        if event.state == "done":
            raise KeyboardInterrupt

    store = Store(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        carry_out(RECIPE, [step("a", "last"), step("b", "hang")], store, State(), interrupt)
    assert not list((store.root / "tmp").iterdir())
    assert not (store.root / "failed").exists()  # nobody needs to look into what was interrupted


def test_after_a_stop_nothing_begins_and_waiting_ends(tmp_path):
    children = Children()
    threading.Timer(0.1, children.stop).start()
    with pytest.raises(StoppedError):
        children.pause(30)
    request = Request("a", "actions_for_tests:last", {}, {}, str(tmp_path / "out"))
    with pytest.raises(StoppedError):
        run_in_child(request, tmp_path, 60, children)


def test_a_child_that_dies_by_itself_is_no_stop(tmp_path, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))
    with pytest.raises(StepCrashError, match="SIGSEGV"):
        run_in_child(Request("a", "actions_for_tests:crash", {}, {}, str(tmp_path / "out")), tmp_path, 60, Children())


@pytest.mark.parametrize(
    ("cores", "memory", "model", "wanted"),
    [(8, None, 10**12, 8), (8, 64 << 30, 0, 8), (8, 4 << 30, 0, 2), (8, 1 << 20, 0, 1), (2, 24 << 30, 2 << 30, 1)],
)
def test_memory_bounds_how_many_run_at_once(monkeypatch, cores, memory, model, wanted):
    monkeypatch.delenv("DEPLOYKIT_JOBS", raising=False)
    assert jobs(cores, memory, model) == wanted


@pytest.mark.parametrize("given", ["0", "two", "-1", ""])
def test_a_number_of_jobs_that_makes_no_sense_is_refused(monkeypatch, given):
    monkeypatch.setenv("DEPLOYKIT_JOBS", given)
    with pytest.raises(RecipeError, match="DEPLOYKIT_JOBS"):
        jobs(os.cpu_count() or 1, None, 0)


def test_what_an_outcome_asks_for_comes_directly_behind_it(carry, monkeypatch):
    more = (step("lower:x", "last", "search:x"), step("verify:x", "last", "lower:x", alone=True))
    monkeypatch.setattr(schedule, "follow_up", lambda recipe, done, facts: more if done.kind == "search" else ())
    state, events = carry(
        step("export", "last"), step("search:x", "last", "export", alone=True), step("b", "last", "export")
    )
    told = [name for name, what in events if what == "done"]
    assert told == list(state.artifacts) == ["export", "search:x", "lower:x", "verify:x", "b"]


def variants_of(*names):
    """compile and verify of each variant, as small actions."""
    return [
        made
        for name in names
        for made in (
            step(f"compile:{name}", "last", "export"),
            step(f"verify:{name}", "last", f"compile:{name}", alone=True),
        )
    ]


def test_what_was_verified_is_measured_last_in_the_order_of_the_plan(carry):
    seen = carry(step("export", "last"), *variants_of("b", "a"), step("measure", "tell", alone=True))[0]
    assert seen.artifacts["measure"].metadata["told"] == {"variants": ["b", "a"]}
    assert list(seen.artifacts)[-1] == "measure"
    assert not any(overlap(seen, "measure", name) for name in seen.artifacts if name != "measure")


def test_where_nothing_was_verified_nothing_is_measured(carry):
    _, events = carry(step("export", "last"), step("measure", "tell", alone=True))
    assert events[-1] == ("measure", "skipped")
