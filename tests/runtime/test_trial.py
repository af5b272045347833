"""The processes of trials: their protocol, and that none outlives its parent."""

import json

import pytest

from deploykit.runtime import trial
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.manifest import Variant
from tests.runtime import made

pytest.importorskip("onnxruntime")


def request(bundle, variant, **changes):
    asked = {"root": str(bundle.root), "digest": bundle.digest, "variant": variant, "threads": 1, "arena": True}
    return {**asked, **changes}


@pytest.fixture
def child():
    started = trial._Child()
    yield started
    started.close()


def test_it_tests_and_then_times_as_often_as_asked(shared, child):
    child.say(request(shared, "onnxruntime-fp32"))
    assert child.ready(120)
    answer = child.answer(120)
    assert (answer["status"], answer["cosine_min"] > 0.9999, answer["p50_ms"]) == ("passed", True, None)
    for _ in range(2):
        child.say({"seconds": 0.05})
        times = child.answer(120)["times_ms"]
        assert times
        assert sum(times) < 50 + max(times)


def test_a_bundle_that_changed_meanwhile_is_not_opened(shared, child):
    child.say(request(shared, "onnxruntime-fp32", digest="0" * 64))
    assert child.ready(120)
    assert "changed since it was opened" in child.answer(120)["reason"]


def test_it_ends_with_its_parent_even_while_it_hangs(tmp_path, fake_engine):
    hung = Variant("hung", "fake", "int8", "models/hung.onnx", {"hang": 600, "log": str(tmp_path / "log")})
    model = made.save_model(tmp_path / "hung.onnx")
    bundle = made.bundle(tmp_path, variants=[(hung, {hung.path: model})], default="")
    child = trial._Child()
    try:
        child.say(request(bundle, "hung"))
        assert child.ready(120)
        assert child.answer(1) is None
        assert child.death() == "its trial hung: no answer within 1 s"
    finally:
        child.close()
    orphan = trial._Child()
    try:
        orphan.say(request(bundle, "hung"))
        assert orphan.ready(120)
        orphan._stdin.close()  # what the system does when the parent is killed
        assert orphan._process.wait(60) == 0
    finally:
        orphan.close()


def test_each_variant_gets_a_result_in_the_order_given(shared):
    pytest.importorskip("openvino")
    variants = list(shared.manifest.variants)[::-1]
    results = trial.run(shared, variants, EngineOptions(1), 0.1)
    assert [r.variant for r in results] == ["openvino-fp32", "onnxruntime-fp32"]
    assert all(r.passed and r.p50_ms > 0 for r in results)


def test_what_an_engine_prints_is_no_answer(tmp_path, fake_engine):
    noise = f"import sys\nprint({json.dumps('x' * 200_000)})\nprint('err', file=sys.stderr)\n"
    (fake_engine / "fake_engine.py").write_text(noise + (fake_engine / "fake_engine.py").read_text())
    loud = Variant("loud", "fake", "int8", "models/loud.onnx")
    model = made.save_model(tmp_path / "loud.onnx")
    bundle = made.bundle(tmp_path, variants=[(loud, {loud.path: model})], default="")
    [result] = trial.run(bundle, [bundle.variant("loud")], EngineOptions(1))
    assert result.passed
