from dataclasses import replace

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import SelfTest, Variant
from deploykit.runtime.selftest import cosines, read_inputs, selftest
from tests.runtime import made

pytest.importorskip("onnxruntime")

TEST = SelfTest("selftest/inputs.json", "selftest/reference.npy", {"onnxruntime-fp32": 0.99999, "other": 0.99})
ORT = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx")


def test_a_good_variant_passes(tmp_path):
    [result] = selftest(made.bundle(tmp_path, variants=[(ORT, {})], selftest=TEST))
    assert (result.variant, result.status, result.passed, result.reason) == ("onnxruntime-fp32", "passed", True, "")
    assert result.cosine_min > 0.99999
    assert result.p50_ms > 0


def test_a_variant_with_other_weights_fails(tmp_path):
    other = Variant("other", "onnxruntime", "int8", "models/other.onnx")
    model = made.save_model(tmp_path / "other.onnx", made.TABLE[::-1].copy())
    results = selftest(
        made.bundle(tmp_path, variants=[(ORT, {}), (other, {"models/other.onnx": model})], selftest=TEST)
    )
    assert [(r.variant, r.status) for r in results] == [("onnxruntime-fp32", "passed"), ("other", "failed")]
    assert "is below 0.990000" in results[1].reason


def test_a_variant_that_cannot_run_here_is_refused_with_the_reason(tmp_path):
    variant = replace(ORT, name="other", requires={"cpu_features": ["no_such_feature"]})
    results = {
        r.variant: r for r in selftest(made.bundle(tmp_path, variants=[(variant, {})], selftest=TEST, default=""))
    }
    assert results["other"].status == "refused"
    assert "no_such_feature" in results["other"].reason
    assert results["other"].cosine_min is None


def test_preprocessing_is_tested_too(tmp_path):
    bundle = made.bundle(
        tmp_path, variants=[(ORT, {})], selftest=TEST, card=made.card(default_prompt="q", prompts={"q": "query : "})
    )
    [result] = selftest(bundle)
    assert result.status == "failed"


def test_an_altered_bundle_is_refused_before_it_is_tested(tiny):
    (tiny.root / "preprocess" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        selftest(tiny)


def test_a_reference_of_another_size_fails(tmp_path):
    files = {"preprocess/tokenizer.json": made.save_tokenizer(tmp_path / "t" / "tokenizer.json")}
    files |= made.write_selftest(tmp_path / "s", "text", ["w1"], np.ones((2, 6)))
    [result] = selftest(made.bundle(tmp_path, variants=[(ORT, {})], selftest=TEST, files=files))
    assert result.reason == "the vectors are [1, 6] instead of [2, 6]"


def test_arrays_come_back_in_order(tmp_path):
    images = [np.full((2, 3, 3), i, np.uint8) for i in range(12)]
    files = made.contents(tmp_path / "c").files | made.write_selftest(tmp_path / "s", "image", images, np.ones((12, 6)))
    files = {name: path for name, path in files.items() if name != "selftest/inputs.json"}
    test = replace(TEST, inputs="selftest/inputs.npz")
    bundle = made.bundle(tmp_path, files=files, selftest=test)
    assert [int(image[0, 0, 0]) for image in read_inputs(bundle)] == list(range(12))


def test_cosines_are_of_rows():
    a = np.array([[1.0, 0], [1, 1], [0, 0], [0, 0]])
    b = np.array([[2.0, 0], [1, -1], [0, 0], [1, 0]])
    np.testing.assert_allclose(cosines(a, b), [1, 0, 1, 0])
