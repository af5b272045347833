import json
from dataclasses import replace

import numpy as np
import pytest

from deploykit.bundle import write
from deploykit.bundle.write import write_bundle
from deploykit.errors import BundleError, DiskError, RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import TensorSpec, Variant
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_verifies_and_lists_every_file_but_the_manifest(tmp_path):
    bundle = made.bundle(tmp_path)
    bundle.verify()
    assert set(tree(bundle.root)) == {*bundle.manifest.files, "manifest.json"}
    assert bundle.manifest.provenance == {"deploykit": "0.1.0"}


def test_the_same_contents_give_the_same_bytes(tmp_path):
    first = made.bundle(tmp_path / "a")
    second = made.bundle(tmp_path / "b")
    assert tree(first.root) == tree(second.root)
    assert first.digest == second.digest


def test_a_variant_that_is_the_portable_model_is_stored_once(tmp_path):
    bundle = made.bundle(tmp_path)
    assert bundle.manifest.variant("openvino-fp32").path == "models/fp32.onnx"
    assert [name for name in bundle.manifest.files if name.startswith("models/")] == ["models/fp32.onnx"]


def test_variants_of_the_same_files_share_them(tmp_path):
    xml, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    xml.write_text("<net/>")
    weights.write_bytes(b"1234")

    def variant(name):
        path = f"models/{name}"
        return Variant(name, "openvino", name, f"{path}.xml"), {f"{path}.xml": xml, f"{path}.bin": weights}

    bundle = made.bundle(tmp_path, variants=[variant("fp32"), variant("bf16")], default="bf16")
    assert {v.path for v in bundle.manifest.variants} == {"models/fp32.xml"}
    assert "models/bf16.bin" not in bundle.manifest.files


def test_a_bundle_that_is_there_is_replaced(tmp_path):
    first = made.bundle(tmp_path)
    second = made.bundle(tmp_path, provenance={"deploykit": "9"})
    assert first.digest != second.digest
    assert Bundle.open(tmp_path / "tiny.bundle").digest == second.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bundle", "work"]


def test_replacing_works_without_an_exchange_in_the_kernel(tmp_path, monkeypatch):
    made.bundle(tmp_path)
    monkeypatch.setattr(write, "_exchange", lambda a, b: False)
    second = made.bundle(tmp_path, provenance={"deploykit": "9"})
    assert Bundle.open(tmp_path / "tiny.bundle").digest == second.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bundle", "work"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    (tmp_path / "tiny.bundle").mkdir()
    (tmp_path / "tiny.bundle" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="is no bundle, so it is not replaced"):
        made.bundle(tmp_path)
    assert (tmp_path / "tiny.bundle" / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "tiny.bundle").mkdir()
    assert made.bundle(tmp_path).root == tmp_path / "tiny.bundle"


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.symlink_to(p.parent)])
def test_a_file_or_a_link_is_in_the_way(tmp_path, make):
    make(tmp_path / "tiny.bundle")
    with pytest.raises(RecipeError, match="is in the way"):
        made.bundle(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"default": "nothing"}, "default variant 'nothing'"),
        ({"variants": [(Variant("x", "onnxruntime", "fp32", "models/x.onnx"), {})]}, "has no files"),
        ({"files": {}}, "does not list"),
    ],
)
def test_contents_that_make_no_bundle_leave_the_old_one(tmp_path, change, reason):
    old = made.bundle(tmp_path)
    with pytest.raises(BundleError, match=reason):
        made.bundle(tmp_path, **change)
    assert Bundle.open(old.root).digest == old.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bundle", "work"]


@pytest.mark.parametrize("name", ["../out", "manifest.json", "MODEL_CARD.md", "models/FP32.onnx", "ops.so"])
def test_a_name_that_may_not_be_in_a_bundle_is_refused(tmp_path, name):
    contents = made.contents(tmp_path / "work")
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "x", replace(contents, files={**contents.files, name: contents.portable}))
    assert not (tmp_path / "x").exists()
    assert not (tmp_path.parent / "out").exists()


def test_a_file_that_is_missing_is_named(tmp_path):
    contents = made.contents(tmp_path / "work")
    with pytest.raises(BundleError, match=r"gone\.onnx"):
        write_bundle(tmp_path / "x", replace(contents, portable=tmp_path / "gone.onnx"))


def test_a_full_disk_is_said_and_leaves_the_old_bundle(tmp_path, monkeypatch):
    old = made.bundle(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.shutil, "copyfile", full)
    with pytest.raises(DiskError, match="No space left on device"):
        made.bundle(tmp_path)
    Bundle.open(old.root).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.bundle", "work"]


def test_a_value_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        made.bundle(tmp_path, provenance={"x": float("nan")})


def test_the_model_card_tells_the_facts(tmp_path):
    bundle = made.bundle(tmp_path, refused=[{"variant": "openvino-bf16", "reason": "cosine 0.82 at\nlength 32"}])
    text = (bundle.root / "MODEL_CARD.md").read_text()
    size = bundle.manifest.files["models/fp32.onnx"].size
    assert "# tiny" in text
    assert "A text encoder: 6 numbers per input, pooling mean, not normalised." in text
    assert f"| **onnxruntime-fp32** | onnxruntime | fp32 | {size} | 1.000000 |" in text
    assert "- Not in the bundle: openvino-bf16: cosine 0.82 at length 32" in text
    assert "- Proven for length 1 to 96." in text
    assert "- source: made by hand" in text
    assert "- Licence of the source: the source states none." in text
    assert "Measured when it was built" not in text


def test_the_model_card_tells_of_prompts_and_further_outputs(tmp_path):
    card = made.card(prompts={"query": "query: ", "passage": ""}, default_prompt="passage")
    card = replace(card, outputs=(*card.outputs, TensorSpec("token_embeddings", "float32", ("batch", "length", 6))))
    text = (made.bundle(tmp_path, card=card).root / "MODEL_CARD.md").read_text()
    assert '- `encode(…, kind="query")` puts "query: " before each text.' in text
    assert '- `encode(…, kind="passage")` puts "" before each text, and without a kind.' in text
    assert '- `encode(…, output="token_embeddings")` gives another output of the graph, [batch, length, 6].' in text


def test_the_model_card_gives_figures_with_interval_count_and_machine(tmp_path):
    single = {"p50_ms": 3.165, "low_ms": 3.03, "high_ms": 3.31, "calls": 306, "shape": [1, 14]}
    figures = {"drift": {"value": 0.002056, "low": 0.002034, "high": 0.00208, "n": 2910}}
    variant = Variant(
        "onnxruntime-fp32",
        "onnxruntime",
        "fp32",
        "models/fp32.onnx",
        latency={"hardware": "6515131b", "single": single},
        drift={"figures": figures},
        audit={"sentence": "9 of 9 products | in fp32"},
    )
    bundle = made.bundle(tmp_path, variants=[(variant, {})])
    text = (bundle.root / "MODEL_CARD.md").read_text()
    assert "on the hardware 6515131b" in text
    row = "| onnxruntime-fp32 | 3.17 ms [3.03, 3.31], 306 calls of [1, 14] | not measured | 0.00206 [0.00203, 0.00208]"
    assert row in text
    assert "2910 examples | 9 of 9 products / in fp32 |" in text


def test_selftest_files_are_plain(tmp_path):
    files = write.write_selftest(tmp_path, "text", ["a", "é"], np.eye(2))
    assert json.loads(files["selftest/inputs.json"].read_text(encoding="utf-8")) == ["a", "é"]
    reference = np.load(files["selftest/reference.npy"], allow_pickle=False)
    assert reference.dtype == np.float32


def test_weights_that_stand_beside_the_portable_graph_are_loaded_with_it(tmp_path):
    import onnx

    from deploykit.pipeline.assemble import _bundle_files
    from deploykit.runtime import load

    exported = tmp_path / "exported"
    model = onnx.load(made.save_model(exported / "model.onnx"))
    beside = {"location": "model.onnx.data", "size_threshold": 512}
    onnx.save(model, exported / "model.onnx", save_as_external_data=True, **beside)
    files = _bundle_files(exported)
    assert list(files) == ["models/model.onnx.data"]
    contents = made.contents(tmp_path / "work")
    files = {**contents.files, **files}
    variants = contents.variants[:1]
    bundle = made.bundle(tmp_path, portable=exported / "model.onnx", files=files, variants=variants)
    with load(bundle.root) as encoder:
        np.testing.assert_allclose(encoder.encode("w1 w2")[0], made.expected("w1 w2"), atol=1e-6)
