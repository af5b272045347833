"""The runner, with small actions in place of the real ones; the real plan is run in tests/test_export.py."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from deploykit.errors import BusyError, RecipeError, SourceError
from deploykit.pipeline.plan import Plan
from deploykit.pipeline.run import run, status
from deploykit.pipeline.step import Step, Watch
from deploykit.pipeline.store import Store
from deploykit.recipe import Recipe
from deploykit.runtime import busy
from deploykit.sources import Identity


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def make_plan(tmp_path, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))
    text = f"[source]\nmodel = 'm'\n[bundle]\noutput = '{tmp_path / 'm.bundle'}'"

    def make(*steps):
        return Plan(Recipe.from_text(text), Identity("x", "m", "d"), steps)

    return make


def step(name, action="write", *parents, required=True, reusable=True, **options):
    return Step(
        name, f"actions_for_tests:{action}", options, parents, timeout_s=60, required=required, reusable=reusable
    )


def states(plan, store, until):
    events = []
    outcome = run(plan, until=until, on_event=events.append, store=store)
    return {e.step: e.state for e in events}, outcome


def test_the_second_run_does_nothing(make_plan, store):
    plan = make_plan(step("export", text="a"), step("lower:fp32", "write", "export", text="b"))
    assert states(plan, store, "lower")[0] == {"export": "done", "lower:fp32": "done"}
    assert states(plan, store, "lower")[0] == {"export": "reused", "lower:fp32": "reused"}
    assert [there for _, there in status(plan, store)] == [True, True]


def test_a_changed_option_redoes_its_step_and_what_follows(make_plan, store):
    states(make_plan(step("export", text="a"), step("lower:fp32", "write", "export", text="b")), store, "lower")
    plan = make_plan(step("export", text="a"), step("lower:fp32", "write", "export", text="c"))
    assert states(plan, store, "lower")[0] == {"export": "reused", "lower:fp32": "done"}


def test_a_step_that_may_not_be_reused_spares_those_behind_it_when_its_result_is_equal(make_plan, store):
    plan = make_plan(step("export", text="a", reusable=False), step("lower:fp32", "write", "export", text="b"))
    states(plan, store, "lower")
    assert states(plan, store, "lower")[0] == {"export": "done", "lower:fp32": "reused"}


def test_a_failed_variant_is_refused_and_the_others_go_on(make_plan, store):
    plan = make_plan(
        step("export", text="a"),
        step("compile:a-fp32", "crash", "export", required=False),
        step("verify:a-fp32", "write", "compile:a-fp32", required=False, text="x"),
        step("compile:b-fp32", "write", "export", required=False, text="b"),
    )
    seen, outcome = states(plan, store, "compile")
    assert seen["compile:a-fp32"] == "failed"
    assert seen["verify:a-fp32"] == "skipped"
    assert seen["compile:b-fp32"] == "done"
    assert outcome.refused[0]["variant"] == "a-fp32"
    assert "SIGSEGV" in outcome.refused[0]["reason"]


def test_the_reproduce_command_reproduces(make_plan, store):
    plan = make_plan(step("export", "refuse"))
    with pytest.raises(SourceError) as caught:
        run(plan, until="export", store=store)
    command = shlex.split(caught.value.hint.partition("reproduce: ")[2])
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    error = json.loads((Path(command[-1]).parent / "error.json").read_text())
    assert error["message"] == "the folder 'x' is empty"


def test_a_required_step_that_fails_leaves_no_artifact(make_plan, store):
    plan = make_plan(step("export", "stumble"))
    with pytest.raises(Exception, match="a programming mistake"):
        run(plan, until="export", store=store)
    assert not list((store.root / "artifacts").glob("*"))
    assert not list((store.root / "tmp").iterdir())


def test_an_output_in_use_is_busy(make_plan, store, tmp_path):
    from deploykit.pipeline.run import _lock_name

    plan = make_plan(step("export", text="a"))
    with store.lock(_lock_name((tmp_path / "m.bundle").absolute()), wait=False), pytest.raises(BusyError):
        run(plan, until="export", store=store)


def test_an_output_that_is_no_bundle_is_refused_before_anything_is_done(make_plan, store, tmp_path):
    (tmp_path / "m.bundle").mkdir()
    (tmp_path / "m.bundle" / "thesis.txt").write_text("the only copy")
    with pytest.raises(RecipeError, match="is no bundle"):
        run(make_plan(step("export", text="a")), store=store)
    assert not (store.root / "artifacts").exists()


def test_an_unknown_step_names_the_nearest(make_plan, store):
    with pytest.raises(RecipeError, match="no step 'exprot'") as caught:
        run(make_plan(step("export", text="a")), until="exprot", store=store)
    assert "'export'" in caught.value.hint


def test_a_step_is_redone_when_what_it_read_has_changed_and_not_for_anything_else(make_plan, store, tmp_path):
    source, follow = tmp_path / "source.txt", step("lower:fp32", "write", "export", text="b")
    source.write_text("one")
    read = Step("export", "actions_for_tests:read", {"file": str(source)}, watch=Watch((str(tmp_path),)))
    plan = make_plan(read, follow)
    assert states(plan, store, "lower")[0] == {"export": "done", "lower:fp32": "done"}
    (tmp_path / "m.report.json").write_text("{}")
    source.touch()
    assert states(plan, store, "lower")[0] == {"export": "reused", "lower:fp32": "reused"}
    source.write_text("two")
    assert [there for _, there in status(plan, store)] == [False, False]
    events = []
    run(plan, until="lower", on_event=events.append, store=store)
    assert [f"made again: {source} changed" in event.note for event in events if event.state == "done"] == [True, False]
    source.write_text("one")  # what was made of it first is still there
    assert states(plan, store, "lower")[0] == {"export": "reused", "lower:fp32": "reused"}


def test_a_flipped_byte_of_a_stored_artefact_is_noticed_and_told(make_plan, store):
    plan = make_plan(step("export", text="a"))
    states(plan, store, "export")
    path = next(store.root.glob("artifacts/*/text.txt"))
    times = path.stat()
    path.write_text("b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    events = []
    run(plan, until="export", on_event=events.append, store=store)
    assert [(event.state, event.note) for event in events][-1] == (
        "done", "made again: the stored result is damaged: text.txt",
    )  # fmt: skip
    assert path.read_text() == "a"


def test_times_taken_on_a_busy_machine_are_taken_again_in_quiet_and_only_then(make_plan, store, monkeypatch):
    timed = Step("measure", "actions_for_tests:timed", {"variants": ["a"]}, ("export", "compile:a", "verify:a"))
    plan = make_plan(step("export", text="a"), step("compile:a", text="c"), step("verify:a", text="v"), timed)
    assert states(plan, store, "measure")[0]["measure"] == "done"
    monkeypatch.setattr(busy, "look", lambda: busy.Busy(0.9, 0.0, 4.0))
    assert states(plan, store, "measure")[0]["measure"] == "reused"
    monkeypatch.setattr(busy, "look", lambda: busy.Busy(0.0, 0.0, 0.0))
    assert states(plan, store, "measure")[0]["measure"] == "done"
