import json

import pytest


def test_a_whole_bundle_passes(command, bundle):
    code, out, _ = command("bundle", "verify", bundle)
    assert code == 0
    assert "is whole" in out


def test_an_altered_file_fails_the_check(command, bundle):
    model = bundle / "models" / "fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    code, out, err = command("bundle", "verify", bundle, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False
    assert "models/fp32.onnx" in err


def test_no_bundle_at_all_is_wrong_usage(command):
    code, _, err = command("bundle", "verify", "missing.bundle")
    assert code == 2
    assert "there is no bundle" in err


def test_a_bundle_tests_itself(command, bundle):
    code, out, _ = command("bundle", "selftest", bundle)
    assert code == 0
    assert "onnxruntime-fp32" in out
    assert "passed" in out


def test_a_failed_selftest_ends_with_1(command, bundle, monkeypatch):
    from deploykit.runtime import selftest

    result = selftest.VariantResult("onnxruntime-fp32", "failed", 0.5, "cosine 0.500000 is below 0.999900", 1.0)
    monkeypatch.setattr(selftest, "selftest", lambda bundle, isolated: [result])
    code, out, _ = command("bundle", "selftest", bundle, "--json")
    assert code == 1
    assert json.loads(out)["variants"][0]["reason"].startswith("cosine")


def test_a_selftest_where_nothing_runs_ends_with_4(command, bundle, monkeypatch):
    from deploykit.runtime import selftest

    result = selftest.VariantResult("openvino-fp32", "refused", None, "openvino is not installed", None)
    monkeypatch.setattr(selftest, "selftest", lambda bundle, isolated: [result])
    assert command("bundle", "selftest", bundle)[0] == 4


def test_packed_and_unpacked_it_is_the_same(command, bundle, tmp_path):
    assert command("bundle", "pack", bundle)[:2] == (0, f"{bundle.with_suffix('.dkb')}\n")
    assert command("bundle", "verify", bundle.with_suffix(".dkb"))[0] == 0
    code, out, _ = command("bundle", "unpack", bundle.with_suffix(".dkb"), "-o", "again.bundle", "--json")
    assert (code, json.loads(out)) == (0, {"output": "again.bundle"})
    assert (tmp_path / "again.bundle" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_a_packed_bundle_is_called_dkb(command, bundle, name):
    code, _, err = command("bundle", "pack", bundle, "-o", name)
    assert code == 2
    assert ".dkb" in err


def test_inspect_shows_variants_and_refusals(command, bundle):
    code, out, _ = command("inspect", bundle)
    assert code == 0
    for fact in ("onnxruntime-fp32", "0.9999997", "batch 2, length 7", "openvino-bf16", "cosine 0.82 at length 32"):
        assert fact in out


def test_inspect_shows_one_variant_alone(command, bundle):
    code, out, _ = command("inspect", f"{bundle}@onnxruntime-fp32", "--json")
    assert (code, json.loads(out)["schema"]) == (0, "deploykit.report/1")
    code, _, err = command("inspect", f"{bundle}@onnxruntime-fp61")
    assert code == 2
    assert "it has: onnxruntime-fp32" in err


def test_inspecting_a_model_folder_says_what_a_bundle_is(command, tmp_path):
    (tmp_path / "model").mkdir()
    code, _, err = command("inspect", "model")
    assert code == 2
    assert "deploykit export" in err
