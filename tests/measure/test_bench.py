import dataclasses
import sys
from pathlib import Path

import pytest

from deploykit.errors import BundleError, InputError, MissingError, StepCrashError, UnknownNameError
from deploykit.measure import process, result
from deploykit.measure.bench import Choices, bench
from deploykit.runtime.manifest import Variant
from tests.runtime import made

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

QUICK = Choices(baselines=("none",), batches=(1, 4), lengths=("8",), seconds=0.01, rounds=2, threads=1)
DRIFT = {
    "n": 40,
    "figures": {"cosine_mean": {"value": 0.999}},
    "buckets": [{"size": "1 to 8", "n": 40, "mean": 0.999, "min": 0.99}],
}


@pytest.fixture
def bundle(tmp_path):
    return str(made.bundle(tmp_path).root)


class Processes:
    """Stands in for the worker: answers at once, remembers the jobs, fails where it is told to."""

    def __init__(self, fails=(), slow=()):
        self.jobs, self.names, self.fails, self.slow = [], [], dict(fails), slow

    def __call__(self, job, arm, *, python=None, timeout_s=0.0):
        self.jobs.append(job)
        self.names.append(arm)
        if arm in self.fails and self.names.count(arm) == self.fails[arm]:
            raise StepCrashError(f"{arm}: the measuring process died of SIGKILL", hint="out of memory")
        count = self.names.count(arm)
        ms = 5.0 * (count if arm in self.slow else 1)
        points = [
            {
                "name": p["name"],
                "times_ms": [ms] * 6,
                "wall_s": 0.006 * ms,
                "items": p["batch"],
                "tokens": 8.0,
                "padded": 16.0,
            }
            for p in job["points"]
        ]
        noise = {"steal": 0.0, "frequency": {"low": 2e3, "mean": 2e3, "high": 2e3}, "load": 0.0}
        selftest = {"mean": 0.9999, "min": 0.999, "n": 5}
        return {
            "start": {"import_ms": 1.0, "load_ms": 2.0, "first_call_ms": 3.0},
            "points": points,
            "peak_rss_bytes": 10**8 + count,
            "effective": {"engine": "x", "selftest": selftest} if "variant" not in job["subject"] else {"engine": "x"},
            "noise": noise,
        }


@pytest.fixture
def processes(monkeypatch):
    def install(*args, **kwargs):
        stand_in = Processes(*args, **kwargs)
        monkeypatch.setattr(process, "measure", stand_in)
        return stand_in

    return install


def test_real_processes_give_a_valid_result(bundle):
    pytest.importorskip("onnxruntime")
    choices = dataclasses.replace(QUICK, variants=("onnxruntime-fp32",), baselines=("plain-onnxruntime",), rounds=1)
    found = bench([bundle], choices, command="deploykit bench")
    result.check(found)
    names = [(row["name"], row["kind"]) for row in found["subjects"]]
    assert names == [("onnxruntime-fp32", "variant"), ("plain-onnxruntime", "baseline")]
    for row in found["subjects"]:
        assert row["peak_rss_bytes"]["value"] > 10**7
        assert row["start"]["load_ms"]["value"] > 0
        for measured in row["measurements"]:
            assert measured["p50_ms"]["value"] > 0
            assert measured["p50_ms"]["n"] >= 6
            assert measured["p99_ms"]["value"] is None or measured["p99_ms"]["n"] >= 662
            assert measured["padding"] == 0
            assert measured["preprocess_ms"] > 0
        assert row["accuracy"]["basis"] == "self-test"
        assert row["accuracy"]["drift"] < 1e-6
    assert found["data"]["builtin"]
    assert "no data was given" in found["notes"][0]


def test_a_hanging_process_is_stopped_and_named(bundle):
    with pytest.raises(StepCrashError, match="still running after"):
        bench([bundle], dataclasses.replace(QUICK, variants=("onnxruntime-fp32",), timeout_s=0.02, rounds=1))


def test_every_round_opens_every_subject_once_in_an_order_of_the_seed(bundle, processes):
    seen = processes()
    bench([bundle], dataclasses.replace(QUICK, rounds=6))
    rounds = [tuple(seen.names[i : i + 3]) for i in range(0, 18, 3)]
    assert all(set(names) == {"onnxruntime-fp32", "openvino-fp32", "preprocessing of tiny"} for names in rounds)
    assert len(set(rounds)) > 1
    again = processes()
    bench([bundle], dataclasses.replace(QUICK, rounds=6))
    assert again.names == seen.names
    assert [job["points"] for job in again.jobs] == [job["points"] for job in seen.jobs]
    other = processes()
    bench([bundle], dataclasses.replace(QUICK, rounds=6, seed=1))
    assert other.names != seen.names


def test_all_subjects_get_the_same_inputs_and_threads(bundle, processes):
    seen = processes()
    bench([bundle], dataclasses.replace(QUICK, baselines=("plain",), threads=3))
    assert {job["threads"] for job in seen.jobs} == {3}
    timed = [job["points"] for job in seen.jobs if job["seconds"]]
    assert all(points == timed[0] for points in timed)


def test_a_killed_subject_is_listed_and_the_others_go_on(bundle, processes):
    processes(fails={"openvino-fp32": 2})
    found = bench([bundle], QUICK)
    assert [row["name"] for row in found["subjects"]] == ["onnxruntime-fp32"]
    assert found["unavailable"] == [
        {
            "name": "openvino-fp32",
            "kind": "variant",
            "reason": "openvino-fp32: the measuring process died of SIGKILL",
            "hint": "out of memory",
        }
    ]


def test_nothing_left_is_an_error(bundle, processes):
    processes(fails={"openvino-fp32": 1, "onnxruntime-fp32": 1})
    with pytest.raises(StepCrashError, match="SIGKILL"):
        bench([bundle], QUICK)


def test_unreachable_baselines_are_listed_with_the_reason(bundle, processes):
    processes()
    found = bench([bundle], dataclasses.replace(QUICK, baselines=("torch", "plain-onnxruntime")))
    assert [item["name"] for item in found["unavailable"]] == ["torch"]
    assert "does not say what it was exported from" in found["unavailable"][0]["reason"]
    assert found["subjects"][-1]["name"] == "plain-onnxruntime"


def test_without_a_choice_all_baselines_are_tried(bundle, processes):
    processes()
    found = bench([bundle], dataclasses.replace(QUICK, baselines=None))
    listed = {row["name"] for row in found["subjects"]} | {item["name"] for item in found["unavailable"]}
    assert {"torch", "torch-bf16", "torch-compile", "plain-onnxruntime", "plain-openvino"} <= listed


def test_drift_in_the_bundle_is_what_counts(tmp_path, processes):
    processes()
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx", drift=DRIFT)
    made_ = made.bundle(tmp_path, variants=[(variant, {})])
    row = bench([str(made_.root)], QUICK)["subjects"][0]
    assert row["accuracy"]["basis"] == "drift"
    assert row["accuracy"]["drift"] == pytest.approx(0.001)
    assert row["drift_by_size"] == DRIFT["buckets"]


def test_two_bundles_are_told_apart(tmp_path, processes):
    processes()
    paths = [str(made.bundle(tmp_path / name).root) for name in ("a", "b")]
    found = bench(paths, dataclasses.replace(QUICK, variants=("onnxruntime-fp32",), rounds=1))
    names = [row["name"] for row in found["subjects"]]
    assert len(set(names)) == 2
    assert all(name.endswith("@onnxruntime-fp32") for name in names)


def test_a_variant_after_the_at_sign_is_meant_alone(bundle, processes):
    processes()
    found = bench([f"{bundle}@openvino-fp32"], QUICK)
    assert [row["name"] for row in found["subjects"]] == ["openvino-fp32"]


def test_processes_that_disagree_are_said_aloud(bundle, processes):
    processes(slow=("openvino-fp32",))
    warnings = " ".join(bench([bundle], QUICK)["noise"]["warnings"])
    assert "disagree" in warnings
    assert "openvino-fp32 at b1-l8-c1 by 100%" in warnings
    assert "onnxruntime-fp32 at" not in warnings


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"variants": ("openvino-fp31",)}, UnknownNameError, "'openvino-fp32'"),
        ({"baselines": ("torhc",)}, UnknownNameError, "'torch'"),
        ({"lengths": ("97",)}, InputError, "1 to 96"),
        ({"concurrency": (0,)}, InputError, "concurrency is 0"),
        ({"batches": (0,)}, InputError, "batch is 0"),
        ({"rounds": 0}, InputError, "rounds is 0"),
        ({"seconds": 0.0}, InputError, "seconds is 0"),
        ({"seconds": float("nan")}, InputError, "seconds is nan"),
        ({"threads": 0}, InputError, "threads is 0"),
        ({"data": "absent.txt"}, InputError, "absent.txt"),
        ({"data": "builtin:tones"}, InputError, "encodes texts"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(bundle, processes, changes, error, says):
    seen = processes()
    with pytest.raises(error) as found:
        bench([bundle], dataclasses.replace(QUICK, **changes))
    assert says in str(found.value)
    assert found.value.hint
    assert not seen.jobs


def test_a_variant_that_cannot_run_here_is_listed_and_an_error_when_none_is_left(tmp_path, processes):
    processes()
    needy = Variant("needy", "onnxruntime", "fp32", "models/fp32.onnx", requires={"cpu_features": ["none_such"]})
    plain = Variant("plain", "onnxruntime", "fp32", "models/fp32.onnx")
    path = str(made.bundle(tmp_path, variants=[(needy, {}), (plain, {})], default="plain").root)
    found = bench([path], QUICK)
    assert [row["name"] for row in found["subjects"]] == ["plain"]
    assert "none_such" in found["unavailable"][0]["reason"]
    named = bench([path], dataclasses.replace(QUICK, variants=("needy", "plain")))
    assert [row["name"] for row in named["subjects"]] == ["plain"]
    assert [item["name"] for item in named["unavailable"]] == ["needy"]
    with pytest.raises(MissingError, match="none_such"):
        bench([path], dataclasses.replace(QUICK, variants=("needy",)))


def test_an_altered_bundle_is_not_measured(bundle):
    with (Path(bundle) / "models" / "fp32.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"fp32\.onnx"):
        bench([bundle], QUICK)
    with pytest.raises(InputError, match="no bundle"):
        bench([], QUICK)


def test_a_variant_named_in_one_bundle_says_nothing_of_another(tmp_path, processes):
    processes()
    needy = Variant("needy", "onnxruntime", "fp32", "models/fp32.onnx", requires={"cpu_features": ["none_such"]})
    plain = Variant("plain", "onnxruntime", "fp32", "models/fp32.onnx")
    first = made.bundle(tmp_path / "a").root.rename(tmp_path / "first.bundle")
    other = made.bundle(tmp_path / "b", variants=[(needy, {}), (plain, {})], default="plain").root
    found = bench([f"{first}@openvino-fp32", str(other)], QUICK)
    assert [row["name"] for row in found["subjects"]] == ["first@openvino-fp32", "tiny@plain"]
    assert [item["name"] for item in found["unavailable"]] == ["tiny@needy"]


@pytest.mark.parametrize(
    "damaged",
    [
        {"figures": {"cosine_mean": {"value": "x"}}},
        {"figures": [1]},
        {"figures": {"cosine_mean": 7}},
        {"figures": {"cosine_mean": {"value": 1e300}}},
        {"buckets": 3},
        {"buckets": [1, {"size": "1 to 8"}, {"size": "1 to 8", "n": "x", "mean": [], "min": None}]},
    ],
)
def test_figures_of_a_bundle_that_are_no_figures_say_nothing(tmp_path, processes, damaged):
    processes()
    said = {"proof": {"cosine_min": "x", "cases": []}, "audit": {"notes": 5, "effective": "x", "summary": "ran"}}
    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx", drift=damaged, **said)
    row = bench([str(made.bundle(tmp_path, variants=[(variant, {})]).root)], QUICK)["subjects"][0]
    assert row["accuracy"]["basis"] == "self-test"
    assert row["drift_by_size"] == []
    assert row["audit"] == ["ran"]
