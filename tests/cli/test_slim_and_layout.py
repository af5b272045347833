import json

import pytest

pytest.importorskip("onnx")


def test_a_slimmed_bundle_says_what_it_holds_and_how_large_it_is(command, bundle):
    code, out, _ = command("bundle", "slim", bundle, "-o", "pi.bundle", "--arch", "arm64", "--target", "onnxruntime")
    assert code == 0
    assert "it holds: onnxruntime-fp32" in out
    assert "are the portable model" in out
    assert command("bundle", "verify", "pi.bundle")[0] == 0
    assert command("bundle", "selftest", "pi.bundle")[0] == 0


def test_slimming_speaks_json(command, bundle):
    code, out, _ = command("bundle", "slim", bundle, "-o", "pi.bundle", "--variant", "onnxruntime-fp32", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["variants"] == ["onnxruntime-fp32"]
    assert told["left_out"] == {}
    assert told["signature_left_out"] is False
    assert told["bytes"] > told["portable_bytes"] > 0


def test_a_signature_that_is_left_behind_is_told(command, bundle):
    pytest.importorskip("cryptography")
    command("bundle", "sign", bundle, "--key", "key.pem", "--new-key")
    code, _, err = command("bundle", "slim", bundle, "-o", "pi.bundle")
    assert code == 0
    assert "sign that again" in err


@pytest.mark.parametrize("wrong", [("--arch", "sparc"), ("--target", "openvina"), ("--variant", "onnxruntime-fp31")])
def test_slimming_by_a_wrong_name_is_wrong_usage(command, bundle, wrong):
    code, _, err = command("bundle", "slim", bundle, "-o", "pi.bundle", *wrong)
    assert code == 2
    assert f"'{wrong[1]}'" in err


@pytest.mark.parametrize("server", ["triton", "openvino-model-server", "tei"])
def test_a_layout_is_written_for_each_server(command, bundle, tmp_path, server):
    code, out, _ = command("bundle", "layout", bundle, "--for", server, "-o", "served")
    assert code == 0
    assert out.startswith("served: onnxruntime-fp32 as 'tiny'" if server != "openvino-model-server" else "served: ")
    assert (tmp_path / "served" / "README.md").is_file()


def test_a_layout_speaks_json(command, bundle, tmp_path):
    asked = ("bundle", "layout", bundle, "--for", "triton", "-o", "served", "--name", "mine", "--json")
    code, out, _ = command(*asked)
    told = json.loads(out)
    assert (code, told["server"], told["name"], told["variant"]) == (0, "triton", "mine", "onnxruntime-fp32")
    assert all((tmp_path / "served" / name).is_file() for name in told["files"])


def test_a_layout_over_something_else_or_for_nobody_is_wrong_usage(command, bundle):
    code, _, err = command("bundle", "layout", bundle, "--for", "tritan", "-o", "served")
    assert code == 2
    assert "triton" in err
    assert command("bundle", "layout", bundle, "--for", "triton", "-o", "served")[0] == 0
    code, _, err = command("bundle", "layout", bundle, "--for", "triton", "-o", "served")
    assert code == 2
    assert "is there already" in err
