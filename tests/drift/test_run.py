import json

import numpy as np
import pytest

from deploykit.budget import Budget
from deploykit.data import read
from deploykit.drift import Choices, drift
from deploykit.drift.run import save
from deploykit.drift.text import render
from deploykit.errors import BundleError, InputError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

from tests.drift import layers
from tests.runtime import made


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A bundle of texts with a variant of slightly moved word vectors, and one of badly moved ones."""
    from deploykit.runtime.manifest import Variant

    folder = tmp_path_factory.mktemp("texts")
    noise = np.random.default_rng(1).normal(size=made.TABLE.shape).astype(np.float32)
    files = {
        name: made.save_model(folder / f"{name}.onnx", made.TABLE + amount * noise)
        for name, amount in (("near", 0.01), ("far", 1.0))
    }
    variants = [
        (Variant(name, "onnxruntime", "int8", f"models/{name}.onnx"), {f"models/{name}.onnx": path})
        for name, path in files.items()
    ]
    from deploykit.runtime.manifest import SelfTest

    selftest = SelfTest("selftest/inputs.json", "selftest/reference.npy", {"near": 0.9})
    return made.bundle(folder, variants=variants, default="near", selftest=selftest).root


@pytest.fixture
def data(tmp_path):
    """40 labelled texts of 1 to 40 words, and 30 scored pairs of them."""
    rows = [("text", "label"), *((" ".join(f"w{(i + k) % 40}" for k in range(i + 1)), i % 2) for i in range(40))]
    (tmp_path / "rows.tsv").write_text("\n".join(f"{text}\t{label}" for text, label in rows) + "\n")
    pairs = [f"{rows[i + 1][0]}\t{rows[40 - i][0]}\t{i % 6}" for i in range(30)]
    (tmp_path / "pairs.tsv").write_text("\n".join(pairs) + "\n")
    return tmp_path / "rows.tsv"


def test_variants_of_one_bundle(texts, data):
    result = drift(f"{texts}@portable", f"{texts}@near", data, Choices(Budget.parse("drift<=0.01")))
    assert result.verdict.status == "PASS"
    assert (result.drift.n, result.drift.dim, result.size) == (40, 6, "tokens")
    assert result.reference.name.endswith("@portable")
    assert "onnxruntime" in result.candidate.runs
    assert sum(bucket.n for bucket in result.drift.buckets) == 40
    assert result.drift.figure("probe_frozen") is not None
    assert result.where is None


def test_without_a_name_the_default_variant_is_meant(texts, data):
    assert drift(f"{texts}@portable", texts, data).candidate.name.endswith("@near")


def test_a_failed_budget_says_where_and_asking_for_it_too(texts, data):
    failed = drift(f"{texts}@portable", f"{texts}@far", data, Choices(Budget.parse("drift<=0.01")))
    assert failed.verdict.status == "FAIL"
    # The tiny encoder has no blocks to look at; that is an answer too.
    assert "cannot be told" in failed.where.sentence
    assert drift(f"{texts}@portable", f"{texts}@far", data, Choices(where=True)).where is not None
    silent = drift(f"{texts}@portable", f"{texts}@far", data, Choices(Budget.parse("drift<=0.01"), where=False))
    assert silent.where is None


def test_ready_tensors_and_the_layer_that_was_spoiled(tmp_path):
    bundle = layers.bundle(tmp_path).root
    arrays = layers.inputs(40)
    np.savez(tmp_path / "t.npz", **{key: np.stack([a[key] for a in arrays]) for key in arrays[0]})
    choices = Choices(Budget.parse("drift<=0.0001"))
    result = drift(f"{bundle}@portable", f"{bundle}@spoiled-1", tmp_path / "t.npz", choices)
    assert result.where.layers[0].name == "block.1.dense"
    assert "The drift enters at block.1.dense" in render(result)
    assert (result.size, result.drift.buckets) == ("", ())


def test_vectors_in_files_are_compared_as_bundles_are(texts, data, tmp_path):
    from deploykit import runtime

    inputs = list(read(data).inputs)
    for name in ("portable", "near"):
        with runtime.load(f"{texts}@{name}") as encoder:
            np.save(tmp_path / f"{name}.npy", encoder.encode(inputs))
    whole = drift(f"{texts}@portable", f"{texts}@near", data)
    bare = drift(tmp_path / "portable.npy", tmp_path / "near.npy")
    mixed = drift(f"{texts}@portable", tmp_path / "near.npy", data)
    assert bare.drift.figure("drift") == whole.drift.figure("drift") == mixed.drift.figure("drift")
    assert mixed.drift.figures == whole.drift.figures
    assert (bare.data, bare.drift.worst[0].input) == ("", "")


def test_scored_pairs(texts, data, tmp_path):
    spec = f"{tmp_path / 'pairs.tsv'}#a=1,b=2,score=3"
    result = drift(f"{texts}@portable", f"{texts}@far", spec, Choices(labels=True))
    assert result.drift.figure("spearman").n == 30
    assert drift(f"{texts}@portable", f"{texts}@far", spec, Choices(labels=False)).drift.task is None


def test_labels_that_are_not_there_are_missed_only_when_asked_for(texts, tmp_path):
    (tmp_path / "t.txt").write_text("w1 w2\nw3\n")
    assert drift(f"{texts}@portable", f"{texts}@near", tmp_path / "t.txt").drift.task is None
    with pytest.raises(InputError, match=r"'t.txt' has none"):
        drift(f"{texts}@portable", f"{texts}@near", tmp_path / "t.txt", Choices(labels=True))


@pytest.mark.parametrize(
    ("reference", "candidate", "source", "error", "says"),
    [
        ("B@portable", "B@near", None, InputError, "a bundle needs data"),
        ("B@portable", "B@near", "builtin:images", InputError, "encodes texts, and 'builtin:images' holds images"),
        ("B@portable", "B@nearr", "D", BundleError, "no variant 'nearr'"),
        ("B", "B", "D", InputError, "reference and candidate are the same"),
        ("B@near", "B", "D", InputError, "@portable is the fp32 reference"),
        ("missing.bundle", "B", "D", BundleError, "no bundle at 'missing.bundle'"),
        ("B@portable", "missing.npy", "D", InputError, "no file 'missing.npy'"),
        ("B@portable", "B@near", "missing.txt", InputError, "no file or folder 'missing.txt'"),
        ("B@portable", "short.npy", "D", InputError, "holds 3 vectors, and 'rows.tsv' 40 inputs"),
        ("short.npy", "wide.npy", None, InputError, "6 dimensions, the candidate's 7"),
        ("short.npy", "words.npy", None, InputError, r"holds <U5 \[2\]"),
        ("short.npy", "text.npy", None, InputError, "holds no vectors"),
    ],
)
def test_likely_mistakes_are_explained(texts, data, tmp_path, monkeypatch, reference, candidate, source, error, says):
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.ones((3, 6), np.float32))
    np.save("wide.npy", np.ones((3, 7), np.float32))
    np.save("words.npy", np.array(["hello", "world"]))
    (tmp_path / "text.npy").write_text("hello")
    specs = [str(texts) + spec[1:] if spec[0] == "B" else spec for spec in (reference, candidate)]
    with pytest.raises(error) as caught:
        drift(*specs, str(data) if source == "D" else source)
    import re

    assert re.search(says, str(caught.value))


def test_asking_where_of_vectors_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((3, 6), np.float32))
    with pytest.raises(InputError, match="needs a candidate that is a bundle"):
        drift(tmp_path / "a.npy", tmp_path / "a.npy", None, Choices(where=True))
    far = np.ones((30, 6), np.float32)
    np.save(tmp_path / "b.npy", far)
    np.save(tmp_path / "c.npy", far * [1, -1, 1, -1, 1, -1])
    result = drift(tmp_path / "b.npy", tmp_path / "c.npy", None, Choices(Budget.parse("drift<=0.01")))
    assert "the candidate is vectors in a file" in result.where_note


def test_what_is_written_is_plain_json(texts, data, tmp_path):
    result = drift(f"{texts}@portable", f"{texts}@near", data, Choices(Budget.parse("standard size<=1MB")))
    save(result, tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["schema"] == "deploykit.drift/1"
    assert found["drift"]["figures"]["drift"]["n"] == 40
    assert found["verdict"]["left_out"] == ["size<=1MB"]
    assert len(found["candidate"]["digest"]) == 64


def test_progress_is_told(texts, data):
    heard = []
    drift(f"{texts}@portable", f"{texts}@near", data, None, heard.append)
    assert "encoding with the reference: 40 of 40" in heard
    assert heard[-1] == "comparing"


def test_the_text_keeps_to_the_width_and_says_everything(texts, data):
    result = drift(f"{texts}@portable", f"{texts}@far", data, Choices(Budget.parse("standard size<=1MB")))
    page = render(result, 100)
    for part in ("mean cosine", "95 % interval", "linear probe fitted on the reference", "tokens", "FAIL: "):
        assert part in page
    assert "not judged here: size<=1MB" in page
    assert "A ? stands where" in " ".join(page.split())
    assert all(len(line) <= 100 for line in page.splitlines() if str(result.candidate.name) not in line)
