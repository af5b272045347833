import zipfile

import pytest

from deploykit.bundle.pack import pack, unpack
from deploykit.errors import BundleError, RecipeError
from deploykit.runtime.bundle import Bundle
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def bundle(tmp_path):
    return made.bundle(tmp_path)


def test_there_and_back_is_the_same(bundle, tmp_path):
    packed = pack(bundle.root, tmp_path / "out" / "tiny.dkb")
    assert unpack(packed, tmp_path / "back.bundle") == tmp_path / "back.bundle"
    assert tree(tmp_path / "back.bundle") == tree(bundle.root)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny.dkb"]


def test_the_same_bundle_packs_to_the_same_bytes(bundle, tmp_path):
    first, second = pack(bundle.root, tmp_path / "a.dkb"), pack(bundle.root, tmp_path / "b.dkb")
    assert first.read_bytes() == second.read_bytes()


def test_entries_are_stored_and_the_manifest_comes_first(bundle, tmp_path):
    with zipfile.ZipFile(pack(bundle.root, tmp_path / "a.dkb")) as packed:
        infos = packed.infolist()
    assert infos[0].filename == "manifest.json"
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_a_damaged_bundle_is_not_packed(bundle, tmp_path):
    (bundle.root / "models" / "fp32.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"fp32\.onnx"):
        pack(bundle.root, tmp_path / "a.dkb")
    assert not (tmp_path / "a.dkb").exists()


@pytest.mark.parametrize("name", ["a.zip", "a", "a.bundle"])
def test_another_suffix_is_refused(bundle, tmp_path, name):
    with pytest.raises(RecipeError, match=r"ends in \.dkb"):
        pack(bundle.root, tmp_path / name)


def test_unpacking_replaces_a_bundle_and_nothing_else(bundle, tmp_path):
    packed = pack(bundle.root, tmp_path / "a.dkb")
    unpack(packed, bundle.root)
    Bundle.open(bundle.root).verify()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(RecipeError, match="is no bundle"):
        unpack(packed, tmp_path / "other")


def test_unpacking_nothing_is_wrong_usage(tmp_path):
    with pytest.raises(RecipeError, match="no packed bundle"):
        unpack(tmp_path / "a.dkb", tmp_path / "b")


def test_a_damaged_archive_leaves_what_was_there(bundle, tmp_path):
    packed = pack(bundle.root, tmp_path / "a.dkb")
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(BundleError, match="no intact packed bundle"):
        unpack(packed, bundle.root)
    Bundle.open(bundle.root).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dkb", "tiny.bundle", "work"]
