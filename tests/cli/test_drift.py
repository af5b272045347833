import json

import numpy as np
import pytest


@pytest.fixture
def vectors(tmp_path):
    """a.npy, b.npy (nearly a), c.npy (far from a), and d.npy (a coin's toss from a): float32 [500, 8]."""
    rng = np.random.default_rng(2)
    a, noise = rng.normal(size=(2, 500, 8))
    for name, amount in (("a", 0), ("b", 0.001), ("c", 1.0), ("d", 0.1)):
        np.save(tmp_path / f"{name}.npy", (a + amount * noise).astype(np.float32))
    return tmp_path


def test_figures_without_a_budget_and_no_verdict(command, vectors):
    code, out, err = command("drift", "a.npy", "c.npy")
    assert (code, err) == (0, "")
    assert "drift (1 - mean cosine)" in out
    assert "FAIL" not in out


def test_exit_codes_are_pass_fail_and_cannot_tell(command, vectors):
    measured = json.loads(command("drift", "a.npy", "d.npy", "--json")[1])["drift"]["terms"]["drift"]
    assert command("drift", "a.npy", "b.npy", "--budget", "strict")[0] == 0
    assert command("drift", "a.npy", "c.npy", "--budget", "edge")[0] == 1
    code, out, _ = command("drift", "a.npy", "d.npy", "--budget", f"drift<={measured:.6f}")
    assert (code, "INCONCLUSIVE" in out) == (3, True)


def test_one_json_document(command, vectors):
    code, out, _ = command("drift", "a.npy", "c.npy", "-b", "standard", "--json")
    found = json.loads(out)
    assert (code, found["verdict"]["status"], found["drift"]["n"]) == (1, "FAIL", 500)


def test_the_result_goes_into_a_file_too(command, vectors):
    code, out, _ = command("drift", "a.npy", "b.npy", "-o", "r.json")
    assert code == 0
    assert "mean cosine" in out
    assert json.loads((vectors / "r.json").read_text())["schema"] == "deploykit.drift/1"


def test_a_bundle_against_its_portable_model(command, bundle, tmp_path):
    (tmp_path / "t.txt").write_text("hello\nworld\nhello cat\n")
    code, out, _ = command("drift", f"{bundle}@portable", f"{bundle}@onnxruntime-fp32", "--data", "t.txt")
    assert code == 0
    assert "3 inputs of t.txt, 6 dimensions" in out
    assert "too few" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.npy"], "CANDIDATE"),
        (["a.npy", "b.npy", "--budget", "drfit<=0.01"], "did you mean 'drift'"),
        (["a.npy", "b.npy", "--budget", "p50<=4ms"], "nothing that drift measures"),
        (["a.npy", "missing.npy"], "no file 'missing.npy'"),
        (["a.npy", "b.npy", "-o", "nowhere/r.json"], "no folder 'nowhere'"),
        (["a.npy", "b.npy", "--where"], "needs a candidate that is a bundle"),
        (["a.npy", "b.npy", "--labels"], "no data to hold them"),
    ],
)
def test_wrong_usage_ends_with_2_and_the_way_out(command, vectors, words, says):
    code, out, err = command("drift", *words)
    assert (code, out) == (2, "")
    assert says in err


def test_nan_is_a_failed_check(command, vectors):
    spoiled = np.load(vectors / "a.npy")
    spoiled[17, 3] = np.nan
    np.save(vectors / "n.npy", spoiled)
    code, _, err = command("drift", "a.npy", "n.npy")
    assert code == 1
    assert "input 17 is not finite" in err
