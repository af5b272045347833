"""What every layout has in common; each server's own file is checked beside this one."""

import pytest

from deploykit import registry
from deploykit.bundle.layouts import write
from deploykit.errors import BundleError, RecipeError, UnknownNameError
from deploykit.runtime.manifest import Variant
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

SERVERS = registry.names("layouts")


@pytest.fixture
def bundle(tmp_path):
    return made.bundle(tmp_path)


def test_the_servers_are_found_by_their_file_names():
    assert SERVERS == ["openvino-model-server", "tei", "triton"]


@pytest.mark.parametrize("server", SERVERS)
def test_a_folder_holds_the_model_and_a_page_about_it(bundle, tmp_path, server):
    written = write(bundle.root, server, tmp_path / "out")
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert there == set(written.files)
    assert written.size == sum((tmp_path / "out" / name).stat().st_size for name in there)
    model = next(name for name in there if name.endswith("model.onnx"))
    chosen = bundle.variant(written.variant)
    assert (tmp_path / "out" / model).read_bytes() == bundle.file(chosen.path).read_bytes()
    page = (tmp_path / "out" / "README.md").read_text()
    assert bundle.digest in page
    assert f"`{written.variant}`" in page


@pytest.mark.parametrize("server", SERVERS)
def test_the_portable_model_can_always_be_asked_for(bundle, tmp_path, server):
    written = write(bundle.root, server, tmp_path / "out", "portable")
    model = next(name for name in written.files if name.endswith("model.onnx"))
    assert (tmp_path / "out" / model).read_bytes() == (bundle.root / "models" / "fp32.onnx").read_bytes()


@pytest.mark.parametrize("server", SERVERS)
def test_int8_whose_settings_the_server_cannot_take_is_served_only_by_name(tmp_path, server):
    work = tmp_path / "parts"
    path = made.save_model(work / "int8.onnx", made.TABLE + 1)
    settings = {"config": {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}}
    variant = Variant("onnxruntime-int8", "onnxruntime", "int8", "models/int8.onnx", settings)
    fp32 = made.contents(work).variants[0]
    bundle = made.bundle(tmp_path, variants=[fp32, (variant, {"models/int8.onnx": path})], default="onnxruntime-int8")
    assert write(bundle.root, server, tmp_path / "a").variant == "onnxruntime-fp32"
    if server == "openvino-model-server":
        return  # it does not run onnxruntime's variants at all
    named = write(bundle.root, server, tmp_path / "b", "onnxruntime-int8")
    assert "optimization.disable_specified_optimizers=SkipLayerNormFusion" in named.caveat
    assert named.caveat in (tmp_path / "b" / "README.md").read_text()


@pytest.mark.parametrize("server", SERVERS)
def test_a_folder_that_holds_something_is_never_touched(bundle, tmp_path, server):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="is there already"):
        write(bundle.root, server, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tiny.bundle", "work"]


def test_an_empty_folder_is_used(bundle, tmp_path):
    (tmp_path / "out").mkdir()
    assert write(bundle.root, "tei", tmp_path / "out").folder == tmp_path / "out"


def test_a_server_that_is_none_gives_the_nearest(bundle, tmp_path):
    with pytest.raises(UnknownNameError) as refusal:
        write(bundle.root, "tritan", tmp_path / "out")
    assert "triton" in refusal.value.hint


def test_a_variant_of_another_engine_is_refused_with_those_that_fit(bundle, tmp_path):
    with pytest.raises(RecipeError, match="tei does not run 'openvino-fp32'") as refusal:
        write(bundle.root, "tei", tmp_path / "out", "openvino-fp32")
    assert "onnxruntime-fp32" in refusal.value.hint
    with pytest.raises(BundleError, match="no variant 'x'"):
        write(bundle.root, "tei", tmp_path / "out", "x")


def test_a_damaged_bundle_is_not_laid_out(bundle, tmp_path):
    (bundle.root / "models" / "fp32.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"fp32\.onnx"):
        write(bundle.root, "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "a b"])
def test_a_name_that_is_no_folder_is_refused(bundle, tmp_path, name):
    with pytest.raises(RecipeError, match="cannot be called"):
        write(bundle.root, "triton", tmp_path / "out", name=name)


def test_the_client_is_told_how_texts_become_tokens(bundle, tmp_path, monkeypatch):
    """The code on the page, run as it stands, gives what the bundle's own preprocessing gives."""
    from deploykit.runtime.preprocess import open_preprocessor

    write(bundle.root, "openvino-model-server", tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    found = {"texts": list(made.TEXTS)}
    monkeypatch.chdir(tmp_path / "out")
    exec(page.split("```python\n")[1].split("```")[0], found)
    items = open_preprocessor(bundle.manifest.card, bundle.root).items(made.TEXTS)
    assert found["rows"] == [item.tensors["input_ids"].tolist() for item in items]
