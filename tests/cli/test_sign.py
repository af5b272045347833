import json

import pytest

pytest.importorskip("cryptography")


def test_a_bundle_is_signed_with_a_new_key_and_checked(command, bundle):
    code, out, _ = command("bundle", "sign", bundle, "--key", "key.pem", "--new-key")
    assert code == 0
    assert "key.pem.pub is the public key" in out
    code, out, _ = command("bundle", "verify", bundle, "--require-signature", "key.pem.pub")
    assert code == 0
    assert "is signed by the key required" in out
    code, out, _ = command("bundle", "verify", bundle)
    assert "--require-signature KEY.pub checks that" in out


def test_a_required_signature_that_is_missing_or_anothers_ends_with_1(command, bundle):
    command("bundle", "sign", bundle, "--key", "theirs.pem", "--new-key", "--json")
    (bundle / "manifest.sig").rename(bundle.parent / "theirs.sig")
    code, out, err = command("bundle", "verify", bundle, "--require-signature", "theirs.pem.pub", "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)
    assert "is not signed" in err
    command("bundle", "sign", bundle, "--key", "ours.pem", "--new-key")
    code, _, err = command("bundle", "verify", bundle, "--require-signature", "theirs.pem.pub")
    assert code == 1
    assert "the key required is" in err


def test_embedding_can_require_a_signature(command, bundle, tmp_path):
    (tmp_path / "texts.txt").write_text("hello\n")
    command("bundle", "sign", bundle, "--key", "key.pem", "--new-key")
    asked = ("embed", bundle, "texts.txt", "-o", "v.npy", "--require-signature", "key.pem.pub")
    assert command(*asked)[0] == 0
    (bundle / "manifest.sig").unlink()
    code, _, err = command(*asked)
    assert code == 2
    assert "is not signed" in err


def test_a_file_that_is_no_key_is_wrong_usage(command, bundle, tmp_path):
    (tmp_path / "text").write_text("hello")
    assert command("bundle", "sign", bundle, "--key", "text")[0] == 2
    assert command("bundle", "verify", bundle, "--require-signature", "text")[0] == 2


def test_a_model_that_is_none_for_encoders_fails_the_check(command, bundle):
    from tests.runtime import hostile

    hostile.CASES["range_of_17_gb"][0](bundle)
    code, out, err = command("bundle", "verify", bundle, "--json")
    assert (code, json.loads(out)["passed"]) == (1, False)
    assert "for what Range makes" in err
