import json
import subprocess
import sys

import numpy as np
import pytest

from deploykit.errors import DeploykitError, InputError
from deploykit.measure import process, worker
from deploykit.runtime.manifest import Variant
from tests.measure import subjects
from tests.runtime import made

QUICK = {"seconds": 0.0, "calls": 5, "warm_seconds": 0.0, "warm_calls": 2}
POINTS = {"points": [{"name": "p", "inputs": ["w1"]}]}


def job(point=None, subject="counting", **changes):
    kind = f"python:tests.measure.subjects:{subject}"
    settings = {"subject": {"kind": kind}, "points": [{"name": "p", "inputs": ["a", "b", "c"], **(point or {})}]}
    return {**settings, **QUICK, **changes}


def test_the_process_imports_nothing_before_its_clock_runs():
    script = "import deploykit.measure.worker, sys; print('numpy' in sys.modules, 'deploykit.runtime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_both_bounds_hold_after_a_warm_up():
    answer = worker.measure(job(seconds=0.05, calls=3))
    times = answer["points"][0]["times_ms"]
    assert len(times) > 3
    assert len(subjects.opened[-1].asked) == 1 + 2 + len(times)  # the first call, the warm-up, the timed ones
    assert len(worker.measure(job(calls=7))["points"][0]["times_ms"]) == 7


def test_a_call_takes_all_inputs_or_the_next_of_them():
    point = worker.measure(job())["points"][0]
    assert (point["items"], point["tokens"], point["padded"]) == (3, 3, 6)
    worker.measure(job({"places": [2, 0]}))
    assert subjects.opened[-1].asked[-1] == ["c", "a"]
    assert worker.measure(job({"batch": 2, "inputs": list("abcde")}))["points"][0]["items"] == 2
    assert subjects.opened[-1].asked[-2:] == [["c", "d"], ["a", "b"]]


def test_extra_work_is_a_share_of_each_call():
    subject = {"kind": "python:tests.measure.subjects:counting", "options": {"seconds": 0.004}}
    times = [
        np.median(
            worker.measure(job(subject=subject) | {"subject": subject, "extra_work": share})["points"][0]["times_ms"]
        )
        for share in (0.0, 0.5)
    ]
    assert times[0] >= 4.0
    assert times[1] >= 6.0


def test_several_callers_share_the_calls():
    answer = worker.measure(job({"concurrency": 3}, calls=10))
    assert len(answer["points"][0]["times_ms"]) == 12  # each of three the same, ten at least
    assert answer["points"][0]["wall_s"] > 0


def test_a_failure_in_one_caller_ends_all():
    def encode(inputs):
        raise ValueError("one of them fails")

    with pytest.raises(ValueError, match="one of them"):
        worker._times(encode, [["a"]], 3, 60.0, 10)


def test_the_answer_says_where_it_is_from():
    answer = worker.measure(job())
    assert answer["effective"] == {"engine": "none"}
    assert set(answer["start"]) == {"import_ms", "load_ms", "first_call_ms"}
    assert set(answer["noise"]) == {"steal", "frequency", "load", "context_switches"}
    assert answer["peak_rss_bytes"] > 2**20
    assert answer["hardware"]["id"]
    assert answer["software"]["numpy"] == np.__version__
    json.dumps(answer)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"calls_": 3}, "unknown key 'calls_'"),
        ({"points": []}, "no points"),
        ({"points": [{"name": "p"}]}, "lacks 'inputs'"),
        ({"points": [{"name": "p", "inputs": ["a"], "batches": 2}]}, "unknown key 'batches'"),
        ({"subject": {"kind": "engine"}}, "of the kind 'engine'"),
        ({"points": [{"name": "p", "inputs": []}]}, "has no inputs"),
    ],
)
def test_a_job_that_cannot_be_done_says_why(change, says):
    with pytest.raises(InputError, match=says):
        worker.measure({**job(), **change})


def test_a_variant_of_a_bundle(tmp_path):
    pytest.importorskip("onnxruntime")
    bundle = made.bundle(tmp_path)
    points = [{"name": "one", "inputs": ["w1 w2"]}, {"name": "more", "inputs": ["w1", "w1 w2 w3", "w4 w5"]}]
    asked = process.job(bundle.root, "onnxruntime-fp32", points, threads=1, **QUICK)
    answer = process.measure(asked, "the candidate")
    one, more = answer["points"]
    assert (one["tokens"], one["padded"], one["items"]) == (4, 4, 1)
    assert (more["tokens"], more["padded"], more["items"]) == (12, 15, 3)
    assert answer["effective"]["variant"] == "onnxruntime-fp32"
    assert answer["effective"]["threads"] == 1
    assert min(answer["start"].values()) > 0
    assert 2**20 < answer["peak_rss_bytes"] < 2**31


def test_its_memory_is_its_own_and_not_what_its_parent_held():
    script = (
        "import json, sys\nfrom deploykit.measure import process\nheld = bytearray(b'1') * 400_000_000\n"
        "answer = process.measure(json.loads(sys.argv[1]), 'it')\nprint(answer['peak_rss_bytes'])"
    )
    run = [sys.executable, "-c", script, json.dumps(job())]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=made.__file__.partition("/tests/")[0])
    assert int(done.stdout) < 200_000_000


def test_arrays_come_from_a_file(tmp_path):
    np.savez(tmp_path / "a.npz", b=np.ones(3), a=np.zeros(2))
    worker.measure(job({"inputs": str(tmp_path / "a.npz")}))
    assert [len(item) for item in subjects.opened[-1].asked[-1]] == [2, 3]
    (tmp_path / "t.json").write_text('["x", "y"]')
    worker.measure(job({"inputs": str(tmp_path / "t.json")}))
    assert subjects.opened[-1].asked[-1] == ["x", "y"]


def test_counting_tokens_is_no_part_of_the_memory():
    answer = process.measure(job(subject="hungry"), "it")
    assert answer["points"][0]["padded"] == 300_000_000
    assert answer["peak_rss_bytes"] < 200_000_000


def test_the_engine_is_imported_on_the_import_clock_and_no_module_that_a_bundle_names(tmp_path, monkeypatch):
    (tmp_path / "harmful").mkdir()
    (tmp_path / "harmful" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in ("harmful", "os"):
        variant = Variant("evil", target, "fp32", "models/fp32.onnx")
        bundle = made.bundle(tmp_path / target, variants=[(variant, {})], default="evil")
        with pytest.raises(DeploykitError):
            worker.measure({"subject": {"kind": "bundle", "path": str(bundle.root), "variant": "evil"}, **POINTS})
        assert not worker._engine_package({"path": str(bundle.root), "variant": "evil"})
    for target, package in {"onnxruntime-cuda": "onnxruntime", "tensorrt-rtx": "tensorrt_rtx"}.items():
        variant = Variant("gpu", target, "fp32", "models/fp32.onnx")
        bundle = made.bundle(tmp_path / target, variants=[(variant, {})], default="gpu")
        assert worker._engine_package({"path": str(bundle.root), "variant": "gpu"}) == package
