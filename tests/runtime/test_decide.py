"""Loading without a variant's name: on the machine of the build, on another one, and from memory."""

import os
import re
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from deploykit.runtime import busy, choice, decide, hardware, load, loading, memory, trial
from deploykit.runtime.errors import MissingError, SelfTestError, UnknownNameError
from deploykit.runtime.manifest import BATCH_DEPENDENT, SelfTest, Variant
from deploykit.runtime.selection import Candidate, Device
from deploykit.runtime.selftest import selftest
from tests.runtime import made

pytest.importorskip("onnxruntime")

HERE = hardware.machine()["id"]
BOUNDS = SelfTest(
    "selftest/inputs.json", "selftest/reference.npy", {"quick": 0.99, "right": 0.99, "onnxruntime-fp32": 0.999}
)


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "SECONDS", 0.3)
    busy_now(monkeypatch, busy.Busy(0.0, 0.0, 0.0))
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))


def fake(name, p50_ms=1.0, hardware_id="00000000", **settings):
    latency = {"hardware": hardware_id, "single": {"p50_ms": p50_ms}}
    return Variant(name, "fake", "int8", f"models/{name}.onnx", settings, latency=latency)


@pytest.fixture
def bundle(tmp_path, fake_engine):
    """``bundle(*variants, default=…)``: a bundle of variants on the fake engine."""

    def build(*variants, default="", provenance=None):
        # Rows that no word uses make each file larger than the one before.
        listed = [
            (
                v,
                {
                    v.path: made.save_model(
                        tmp_path / f"{v.name}.onnx", np.vstack([made.TABLE, np.ones((100 * i, 6), np.float32)])
                    )
                },
            )
            for i, v in enumerate(variants)
        ]
        return made.bundle(
            tmp_path / f"b{len(list(tmp_path.iterdir()))}",
            variants=listed,
            selftest=BOUNDS,
            default=default or variants[0].name,
            provenance=provenance or {},
        )

    return build


def rows(encoder):
    return {row.variant: row for row in encoder.report().rows}


def test_the_faster_one_that_fails_its_selftest_is_left_and_the_report_says_why(bundle):
    made_for = bundle(fake("quick", 1.0, wrong=0.5), fake("right", 5.0, ms=5))
    with load(made_for.root) as encoder:
        found = rows(encoder)
        assert encoder.variant.name == "right"
        np.testing.assert_allclose(encoder.encode("w1 w2"), [made.expected("w1 w2")], rtol=1e-4)
    assert found["quick"].status == "refused"
    assert "is below 0.990000" in found["quick"].why
    assert found["quick"].cosine_min < 0.99
    assert (found["right"].status, found["right"].why) == ("used", "the one that passes the self-test here")
    assert found["right"].cosine_min > 0.9999


def test_the_fastest_here_is_taken_whatever_was_measured_elsewhere(bundle):
    made_for = bundle(fake("quick", 1.0, ms=60), fake("right", 5.0, ms=1))
    with load(made_for.root) as encoder:
        found = rows(encoder)
        assert (encoder.variant.name, encoder.report().why) == (
            "right",
            "the fastest of 2 that pass the self-test here",
        )
        assert found["quick"].p50_ms > 50 > found["right"].p50_ms
    assert found["quick"].why == "passes the self-test here"
    assert "usable  quick" in str(encoder.report())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"die": "SIGSEGV"}, "its trial died of SIGSEGV"),
        ({"die": "SIGILL"}, "its trial died of SIGILL"),
        ({"die": "SIGKILL"}, r"its trial died of SIGKILL \(too little memory\?\)"),
        ({"hang": 600}, "its trial hung: no answer within 1 s"),
        ({"refuse": "its kernel is not here"}, "its kernel is not here"),
        ({"log": "/no/such/folder/log"}, "its trial ended with code 1: FileNotFoundError"),
    ],
)
def test_what_crashes_or_hangs_is_refused_and_the_next_is_taken(bundle, monkeypatch, settings, reason):
    if "hang" in settings:
        monkeypatch.setattr(trial.Limits, "of", lambda limits, variant: 1.0 if variant.name == "quick" else 60.0)
    made_for = bundle(fake("quick", 1.0, **settings), fake("right", 5.0))
    with load(made_for.root) as encoder:
        assert encoder.variant.name == "right"
        assert pytest.approx(encoder.encode("w1")) == made.expected("w1")[None]
    assert re.match(reason, rows(encoder)["quick"].why)


def test_nothing_but_the_portable_model_is_left(bundle):
    made_for = bundle(fake("quick", wrong=0.5), fake("right", die="SIGSEGV"))
    with load(made_for.root) as encoder:
        assert (encoder.variant.name, encoder.report().why) == ("portable", "the portable fp32 model")
        assert rows(encoder)["portable"].cosine_min > 0.999


def test_nothing_at_all_that_gives_the_right_vectors_is_an_error(tmp_path, fake_engine):
    files = made.contents(tmp_path / "c").files
    files |= made.write_selftest(tmp_path / "s", "text", ["w1", "w2"], np.ones((2, 6)))
    made_for = made.bundle(
        tmp_path, variants=[(fake("quick"), {"models/quick.onnx": made.save_model(tmp_path / "q.onnx")})],
        files=files, default="quick", selftest=BOUNDS,
    )  # fmt: skip
    with pytest.raises(SelfTestError, match=r"no variant of .* not 'quick': cosine .* not 'portable': cosine"):
        load(made_for.root)


def test_a_remembered_choice_needs_no_process_and_no_measuring(bundle, tmp_path, monkeypatch):
    made_for = bundle(fake("quick", ms=60), fake("right", ms=1))
    with load(made_for.root) as encoder:
        first = encoder.report()
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried again"))
    with load(made_for.root) as encoder:
        again = encoder.report()
    assert (again.variant, again.why, again.rows) == (first.variant, first.why, first.rows)
    assert (first.notes, again.notes) == ((), ("remembered from an earlier load",))


def test_measuring_can_be_asked_for(bundle, tmp_path):
    log = tmp_path / "log"
    made_for = bundle(fake("quick", hardware_id=HERE, log=str(log)), default="quick")
    for _ in range(2):
        load(made_for.root, select="measure").close()
    assert len({*log.read_text().split()} - {str(os.getpid())}) == 2


def test_where_it_was_built_the_default_is_taken_without_trial(bundle, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried"))
    made_for = bundle(fake("quick", 1.0, HERE), fake("right", 5.0, HERE), default="right")
    with load(made_for.root) as encoder:
        assert encoder.report().why == f"the bundle's default, measured on this machine (hw {HERE})"
        assert rows(encoder)["quick"].why == "can run (1 ms where it was built)"


def test_another_version_of_the_engine_is_another_machine(bundle, monkeypatch):
    monkeypatch.setattr(decide, "engine_version", lambda target: "2.0")
    provenance = {"machine": {"id": HERE}, "software": {"fake": "1.0"}}
    made_for = bundle(fake("quick", 1.0, HERE), fake("right", 5.0, HERE), provenance=provenance)
    with load(made_for.root) as encoder:
        assert "pass the self-test here" in encoder.report().why


def test_the_manifests_order_can_be_asked_for(bundle, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried"))
    with load(bundle(fake("quick"), fake("right"), default="right").root, select="manifest") as encoder:
        assert encoder.report().why == "the bundle's default"


def test_an_unknown_selection_is_refused(shared):
    with pytest.raises(UnknownNameError, match="select is 'fastest'"):
        load(shared.root, select="fastest")


def test_the_smallest_that_passes_is_taken_without_timing(bundle):
    made_for = bundle(fake("quick", wrong=0.5), fake("right"), fake("large"), default="large")
    with load(made_for.root, prefer="size") as encoder:
        assert encoder.report().why == "the smallest that passes the self-test here"
        assert [(r.variant, r.status, r.p50_ms) for r in encoder.report().rows] == [
            ("quick", "refused", None),
            ("right", "used", None),
            ("large", "usable", None),
            ("portable", "usable", None),
        ]


def test_a_cache_that_cannot_be_written_is_said_and_no_error(bundle, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    made_for = bundle(fake("quick"), fake("right"))
    with load(made_for.root) as encoder:
        assert any("cannot be remembered in" in note for note in encoder.report().notes)
        assert "note: " in str(encoder.report())


@pytest.mark.parametrize("python", ["/no/such/python3", "/bin/false"])
def test_without_a_process_the_bundles_order_holds_and_the_report_says_so(bundle, monkeypatch, python):
    monkeypatch.setenv(trial.PYTHON, python)
    with load(bundle(fake("quick", wrong=0.5), fake("right")).root) as encoder:
        assert encoder.report().why == "the bundle's default"
        [note] = encoder.report().notes
        assert note.startswith("the bundle's own order holds, nothing was measured: no trial can be started")
    assert not choice.folder().exists()


@pytest.mark.parametrize("name", ["uwsgi", "", "my-app"])
def test_a_program_that_is_no_python_starts_no_copy_of_itself(monkeypatch, name):
    monkeypatch.setattr(trial.sys, "executable", name and f"/usr/bin/{name}")
    with pytest.raises(MissingError, match="is no Python interpreter"):
        trial.interpreter()


def test_too_little_memory_for_any_is_an_error_with_the_figures(bundle, monkeypatch):
    monkeypatch.setattr(loading, "Device", lambda: Device(memory=lambda: 20 << 20))
    with pytest.raises(MissingError, match=r"'quick': it needs 49 MiB of memory, and 20 MiB can be had") as caught:
        load(bundle(fake("quick"), fake("right")).root)
    assert "free memory" in caught.value.hint


def test_with_little_memory_each_is_tried_alone(bundle, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    opened, together = [], []

    class Watched(trial._Child):
        def __init__(self):
            together.append(sum(child._process.poll() is None for child in opened))
            super().__init__()
            opened.append(self)

    monkeypatch.setattr(trial, "_Child", Watched)
    with load(bundle(fake("quick", ms=30), fake("right")).root) as encoder:
        assert encoder.variant.name == "right"
    assert together == [0, 0]


def test_a_load_from_a_thread_works(bundle):
    made_for, found = bundle(fake("quick"), fake("right", ms=40)), []

    def work():
        with load(made_for.root) as encoder:
            found.append((encoder.variant.name, encoder.encode("w1").shape))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [("quick", (1, 6))]


def test_a_load_in_a_daemon_process_works(bundle):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    made_for, answers = bundle(fake("quick"), fake("right", ms=40)), context.SimpleQueue()
    process = context.Process(target=_load_in_daemon, args=(str(made_for.root), answers), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert answers.get() == "quick"


def _load_in_daemon(root, answers):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some servers do: exit codes are then unknown
    with load(root) as encoder:
        answers.put(encoder.variant.name)


def test_the_isolated_selftest_survives_a_crash_and_is_remembered(bundle, monkeypatch):
    made_for = bundle(fake("quick", die="SIGSEGV"), fake("right", ms=1), fake("lacking"))
    results = {r.variant: r for r in selftest(made_for, isolated=True)}
    assert {name: r.status for name, r in results.items()} == {
        "quick": "failed",
        "right": "passed",
        "lacking": "passed",
        "portable": "passed",
    }
    assert "SIGSEGV" in results["quick"].reason
    assert results["right"].p50_ms > 1
    name, why = decide.taken(made_for, list(results.values()))
    assert (name in ("lacking", "portable"), why) == (True, "the fastest of 3 that pass the self-test here")
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried again"))
    with load(made_for.root) as encoder:
        assert encoder.variant.name == name


def test_a_variant_that_lacks_something_is_not_tried(bundle):
    lacking = replace(fake("quick", die="SIGSEGV"), requires={"cpu_features": ["no_such_feature"]})
    with load(bundle(lacking, fake("right")).root) as encoder:
        assert rows(encoder)["quick"].why == "the CPU lacks no_such_feature"


BUSY = busy.Busy(0.62, 0.0, 3.1)
DOUBT = {"default": {"variant": "quick", "why": "the fastest", "provisional": "the machine was busy"}}


def busy_now(monkeypatch, *states):
    """What the next looks at the machine find; the last of them from then on."""
    left = list(states)
    monkeypatch.setattr(busy, "look", lambda seconds=0.0: left.pop(0) if len(left) > 1 else left[0])


def built_here(bundle):
    fast = fake("quick", 1.0, HERE, ms=60), fake("right", 5.0, HERE, ms=1)
    return bundle(*fast, provenance={"machine": {"id": HERE}, **DOUBT})


def test_a_provisional_default_is_measured_again_on_a_quiet_machine_and_then_settled(bundle, monkeypatch):
    made_for = built_here(bundle)
    with load(made_for.root) as encoder:
        assert encoder.variant.name == "right"
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried again"))
    with load(made_for.root) as encoder:
        assert (encoder.variant.name, encoder.report().notes) == ("right", ("remembered from an earlier load",))


def test_on_a_busy_machine_a_provisional_default_stays_and_is_told(bundle, monkeypatch):
    busy_now(monkeypatch, BUSY)
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried"))
    with load(built_here(bundle).root) as encoder:
        assert encoder.variant.name == "quick"
        (note,) = encoder.report().notes
    assert note == (
        "the choice is provisional: the machine was busy; it is busy now too; "
        "the next load on a quiet machine measures again"
    )


def test_a_choice_made_under_noise_is_made_again_in_quiet(bundle, monkeypatch):
    made_for = bundle(fake("quick", ms=60), fake("right", ms=1))
    busy_now(monkeypatch, busy.Busy(0.0, 0.0, 0.0), BUSY)
    with load(made_for.root) as encoder:
        assert "others took 62 %" in encoder.report().notes[0]
    with load(made_for.root) as encoder:  # it is still busy
        assert encoder.report().notes[0] == "remembered from an earlier load"
        assert "it is busy now too" in encoder.report().notes[1]
    busy_now(monkeypatch, busy.Busy(0.0, 0.0, 0.0))
    with load(made_for.root) as encoder:
        assert encoder.report().notes == ()
    with load(made_for.root) as encoder:
        assert encoder.report().notes == ("remembered from an earlier load",)


def test_a_self_test_settles_a_provisional_default(bundle, monkeypatch):
    made_for = built_here(bundle)
    fastest = decide.taken(made_for, selftest(made_for, isolated=True))[0]
    assert fastest != "quick"
    monkeypatch.setattr(trial, "run", lambda *_: pytest.fail("it was tried again"))
    with load(made_for.root) as encoder:
        assert encoder.variant.name == fastest


def test_what_changes_with_its_batch_comes_after_the_others(bundle):
    quick = replace(fake("quick", 1.0, ms=1), lowered={BATCH_DEPENDENT: True})
    with load(bundle(quick, fake("right", 5.0, ms=8), default="right").root) as encoder:
        assert encoder.variant.name == "right"
        assert rows(encoder)["quick"].why == "passes the self-test here; its vectors change with their batch"


def test_of_two_that_are_as_fast_the_one_that_drifts_less_is_taken(bundle):
    listed = [candidate(fake(name), drift) for name, drift in (("quick", 0.005), ("right", 0.0))]
    order = decide._by_speed(listed, {"quick": 1.0, "right": 1.03})
    assert [c.variant.name for c in order] == ["right", "quick"]
    assert decide._by_speed(listed, {"quick": 1.0, "right": 1.2})[0].variant.name == "quick"


def candidate(variant, drift):
    return Candidate(replace(variant, drift={"terms": {"drift": drift}}), "")
