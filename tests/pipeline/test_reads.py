"""A source that was changed in place is never the one that was read, whatever of it was changed; an unchanged one is.

Each source is opened once, watched; then one thing of it is changed at a time, and put back.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from deploykit import sources
from deploykit.pipeline import plan
from deploykit.pipeline.observe import Observer, observing
from deploykit.pipeline.reads import Digests, Reads, sha256
from deploykit.pipeline.run import run, status
from deploykit.pipeline.store import Store
from deploykit.recipe import Recipe
from tests import tiny

pytest.importorskip("torch")


def read(spec):
    """What opening a source reads."""
    identity = sources.resolve(str(spec))
    observer = Observer([Path(root) for root in plan._roots(identity.location)])
    with observing(observer):
        sources.open_source(str(spec))
    return Reads.from_json(json.loads(json.dumps(observer.reads().to_json())))


def flip(path):
    """Another byte at the end of a file of the same size and, as far as anybody can set it, of the same time."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-2 if path.suffix in (".json", ".py", ".txt") else -1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def changed(request):
    """``changed(reads, path)``: what is told of a byte that was flipped in ``path``, which is put back."""

    def tell(reads, path, change=flip):
        assert reads.changed(sha256) == ""
        kept = path.read_bytes() if path.exists() else None
        change(path)
        told = reads.changed(sha256)
        path.unlink() if kept is None else path.write_bytes(kept)
        assert reads.changed(sha256) == ""
        return told

    return tell


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A sharded sentence-transformers folder with two Dense modules, each file a link into blobs/ as in a hub's cache;
    and what opening it reads.
    """
    place = tmp_path_factory.mktemp("hub") / "models--org--name"
    dense = {"in_features": 24, "out_features": 18, "activation_function": "torch.nn.modules.activation.Tanh"}
    whole = tiny.tiny_sentence_transformer(
        place.parent / "whole", {"pooling_mode_mean_tokens": True}, (("Dense", dense), ("Normalize", {}))
    )
    _shard(whole)
    (whole / "LICENSE").write_text("free for all\n")
    snapshot = place / "snapshots" / "0a1b"
    for number, path in enumerate(sorted(p for p in whole.rglob("*") if p.is_file())):
        blob, link = place / "blobs" / f"{number:04}", snapshot / path.relative_to(whole)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(blob)
    (snapshot / "3_Normalize").mkdir(exist_ok=True)
    return snapshot, read(snapshot)


def _shard(folder):
    """The weights in two files and an index."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "LICENSE",
    ],
)
def test_every_file_of_a_folder_that_was_read_counts_also_behind_a_link(hub, changed, name):
    folder, reads = hub
    assert f"{name} changed" in changed(reads, folder / name)


def test_a_link_that_points_elsewhere_counts(hub, tmp_path):
    folder, reads = hub
    link, before = folder / "tokenizer.json", (folder / "tokenizer.json").readlink()
    other = tmp_path / "blob"
    other.write_bytes(link.read_bytes().replace(b"cat", b"cow"))
    link.unlink()
    link.symlink_to(other)
    assert "tokenizer.json" in reads.changed(sha256)
    link.unlink()
    link.symlink_to(before)


@pytest.mark.parametrize("name", ["added_tokens.json", "README.md", "COPYING"])
def test_a_file_that_was_looked_for_and_is_there_now_counts(hub, changed, name):
    folder, reads = hub
    assert changed(reads, folder / name, lambda path: path.write_text("{}"))


def test_what_was_never_read_does_not_count(hub, changed):
    folder, reads = hub
    (folder / "m.bundle").mkdir()
    for name in (
        "m.report.json",
        "m.report.html",
        "m.report.md",
        "m.bundle/manifest.json",
        "vectors.npy",
        "optimizer.pt",
    ):
        assert changed(reads, folder / name, lambda path: path.write_text("{}")) == ""


def test_touching_is_no_change(hub):
    folder, reads = hub
    for path in folder.rglob("*"):
        path.touch()
    assert reads.changed(sha256) == ""


def test_the_processor_of_images_counts(tmp_path, changed):
    folder = tiny.tiny_vit(tmp_path / "vit")
    reads = read(folder)
    other = (folder / "preprocessor_config.json").read_text().replace("0.4", "0.3")
    assert "changed" in changed(reads, folder / "preprocessor_config.json", lambda path: path.write_text(other))


@pytest.mark.parametrize("location", ["weights.bin", "parts/w"])
def test_external_data_counts_whatever_its_name_and_folder(tmp_path, changed, location):
    reads = read(tiny_onnx(tmp_path, location))
    assert f"{location} changed" in changed(reads, tmp_path / location)


@pytest.mark.parametrize("location", ["weights.bin", "parts/w"])
def test_the_identity_of_a_graph_has_its_external_data(tmp_path, location):
    model = tiny_onnx(tmp_path, location)
    before = sources.resolve(str(model)).digest
    flip(tmp_path / location)
    assert sources.resolve(str(model)).digest != before


def test_a_tokenizer_beside_a_graph_is_looked_for(tmp_path, changed):
    reads = read(tiny_onnx(tmp_path, "weights.bin", "input_ids"))
    assert "tokenizer.json" in changed(reads, tmp_path / "tokenizer.json", lambda path: path.write_text("{}"))


def test_an_exported_program_counts(tmp_path, changed):
    import torch

    model, batch = torch.nn.Linear(4, 3), torch.export.Dim("batch", min=1, max=64)
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(model, (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), path)
    assert "m.pt2 changed" in changed(read(path), path)


FACTORY = """
import json
from pathlib import Path
import torch
from safetensors.torch import load_file
from {helper} import scale
HERE = Path(__file__).parent
def make():
    module = torch.nn.Linear(4, 3)
    module.load_state_dict(load_file(HERE.parent / "elsewhere" / "adapter_model.safetensors"))
    module.weight.data *= scale() + json.loads((HERE / "settings.json").read_text())["scale"]
    (HERE / "override.json").exists()
    return module, torch.zeros(2, 4)
"""


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    """A Python factory with a module that it imports, a file that it opens and weights that are mapped natively."""
    import torch
    from safetensors.torch import save_file

    place = tmp_path_factory.mktemp("factory")
    code, elsewhere = place / "code", place / "elsewhere"
    code.mkdir()
    elsewhere.mkdir()
    helper = "helper_of_a_factory"
    (code / "made.py").write_text(FACTORY.format(helper=helper))
    (code / f"{helper}.py").write_text("def scale():\n    return 2.0\n")
    (code / "settings.json").write_text('{"scale": 1}\n')
    (code / "native.bin").write_bytes(b"weights")
    save_file({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, elsewhere / "adapter_model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(code)
        reads = read(f"py:{code / 'made.py'}:make")
        sys.modules.pop(helper)
    return code, reads


@pytest.mark.parametrize(
    "name",
    ["made.py", "helper_of_a_factory.py", "settings.json", "../elsewhere/adapter_model.safetensors", "native.bin"],
)
def test_what_a_factory_is_made_of_and_reads_counts(factory, changed, name):
    code, reads = factory
    assert "changed" in changed(reads, (code / name).resolve())


def test_what_a_factory_looked_for_counts(factory, changed):
    code, reads = factory
    assert "override.json is new" in changed(reads, code / "override.json", lambda path: path.write_text("{}"))


def test_a_package_of_another_version_counts(factory):
    _, reads = factory
    assert "numpy" in reads.packages
    other = Reads(reads.files, reads.absent, reads.folders, {**reads.packages, "numpy": "0.1"})
    assert "numpy 0.1 is" in other.changed(sha256)


def test_what_comes_over_the_network_cannot_be_known(tmp_path):
    observer = Observer([])
    observer.take("socket.connect", (None, ("hub.example", 443)))
    assert observer.reads() is None


def test_a_file_that_changes_while_it_is_read_is_never_the_same_again(tmp_path):
    path, observer = tmp_path / "w.json", Observer([tmp_path])
    path.write_text("one")
    with observing(observer):
        path.read_text()
        path.with_suffix(".new").write_text("two")
        path.with_suffix(".new").rename(path.with_suffix(".kept"))
    path.write_text("two")
    reads = observer.reads()
    assert str(path.with_suffix(".kept")) not in reads.files  # its own work
    assert reads.files[str(path)] == (3, "")
    assert reads.changed(sha256)


def test_what_is_read_and_then_written_was_an_input(tmp_path):
    path, observer = tmp_path / "state.json", Observer([tmp_path])
    path.write_text("1")
    with observing(observer):
        path.write_text(f"{path.read_text()}1")
        (tmp_path / "made.json").write_text("{}")
        (tmp_path / "made.json").read_text()
    files = observer.reads().files
    assert {name: files[name] for name in files if name.startswith(str(tmp_path))} == {str(path): (1, "")}


def test_what_is_listed_of_a_folder_of_data_counts(tmp_path, changed):
    (tmp_path / "a.txt").write_text("a")
    observer = Observer([tmp_path], by_name=False)
    with observing(observer):
        sorted(tmp_path.glob("*.txt"))
    assert "other files" in changed(observer.reads(), tmp_path / "b.txt", lambda path: path.write_text("b"))


def test_what_the_import_system_lists_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "a_module_of_this_test.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    observer = Observer([])
    with observing(observer):
        importlib.import_module("a_module_of_this_test")
        importlib.metadata.entry_points(group="deploykit.targets")
    sys.modules.pop("a_module_of_this_test")
    assert str(tmp_path) not in observer.reads().folders


def test_a_remembered_digest_is_not_that_of_a_younger_file(tmp_path):
    digests, path = Digests(tmp_path / "digests.txt"), tmp_path / "w.bin"
    path.write_bytes(b"one")
    assert digests.of(path) == sha256(path)
    flip(path)
    assert digests.of(path) == sha256(path)


def test_digests_are_remembered_and_a_damaged_memory_is_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr("deploykit.pipeline.reads._SETTLED_NS", -(10**12))
    path, memory = tmp_path / "w.bin", tmp_path / "digests.txt"
    path.write_bytes(b"one")
    Digests(memory).of(path)
    with monkeypatch.context() as patch:
        patch.setattr("deploykit.pipeline.reads.sha256", lambda path: pytest.fail("read again"))
        assert Digests(memory).of(path) == sha256(path)
    memory.write_text("\x00 half")
    assert Digests(memory).of(path) == sha256(path)


def test_an_export_follows_its_external_data_and_nothing_else(tmp_path):
    store, model = Store(tmp_path / "store"), tiny_onnx(tmp_path, "weights.bin")
    sections = {"source": {"model": str(model)}, "bundle": {"output": str(tmp_path / "m.bundle")}}
    planned = plan.plan(Recipe.from_data(sections))
    run(planned, until="export", store=store)
    (tmp_path / "m.report.json").write_text("{}")
    (tmp_path / "weights.bin").touch()
    assert {step.name: there for step, there in status(planned, store)}["export"]
    flip(tmp_path / "weights.bin")
    assert not any(there for _, there in status(plan.plan(planned.recipe), store))


def tiny_onnx(folder, location, name="x"):
    """A graph whose weights stand in the file ``location`` beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["embedding"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "m.onnx"
