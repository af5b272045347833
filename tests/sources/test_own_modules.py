"""Modules of one's own: TorchScript, bare weights with their class, factories, and what options say that they take."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deploykit.errors import SourceError  # noqa: E402
from deploykit.graph.export import ExportOptions, export  # noqa: E402
from deploykit.runtime.preprocess.image import Options as ImageOptions  # noqa: E402
from deploykit.runtime.preprocess.image import Preprocessor  # noqa: E402
from deploykit.sources import Options, open_source, resolve  # noqa: E402
from tests import tiny  # noqa: E402

LAYERS = """
import torch

def block(a, b):
    return torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, stride=2, padding=1), torch.nn.BatchNorm2d(b), torch.nn.ReLU())
"""
NET = """
import torch
from own_layers import block

class Net(torch.nn.Module):
    def __init__(self, depth=2, channels=3):
        super().__init__()
        sizes = [channels, *(10 + 4 * i for i in range(depth))]
        self.body = torch.nn.Sequential(*(block(a, b) for a, b in zip(sizes, sizes[1:])))
        self.head = torch.nn.Linear(sizes[-1], 7)
        self.twin = self.head

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

class Wave(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(1, 6, 20, stride=5)

    def forward(self, wave):
        return self.conv(wave.unsqueeze(1)).transpose(1, 2)

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(200, 6)
        self.layer = torch.nn.TransformerEncoderLayer(6, 2, 11, batch_first=True)

    def forward(self, ids, src_key_padding_mask):
        return self.layer(self.table(ids), src_key_padding_mask=src_key_padding_mask)

class Bag(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(200, 6)

    def forward(self, ids):
        return self.table(ids)

def net():
    return Net()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with own code, and the module `own_net` imported from it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_layers.py").write_text(LAYERS)
    (folder / "own_net.py").write_text(NET)
    sys.path.insert(0, str(folder))
    import own_net

    yield folder, own_net
    sys.path.remove(str(folder))
    for name in ("own_net", "own_layers", "deploykit_factory_own_net"):
        sys.modules.pop(name, None)


def made(cls, *arguments):
    torch.manual_seed(3)
    module = cls(*arguments).eval()
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
    return module


def same(source, module, **sizes):
    """That the source's module gives what the original gives for its own inputs."""
    inputs = source.make_inputs(2, sizes, 0)
    with torch.inference_mode():
        got, want = source.module(**inputs), module(next(iter(inputs.values())))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    return got


def test_a_torchscript_file_is_known_by_its_content_and_proven_against_itself(own, tmp_path):
    module = made(own[1].Net)
    path = tmp_path / "weights.bin"
    torch.jit.save(torch.jit.trace(module, torch.randn(2, 3, 32, 24)), str(path))
    assert resolve(str(path)).kind == "torchscript"
    source = open_source(str(path), Options(image=(32, 24), mean=(0.5,), std=(0.25,)))
    assert source.card.inputs[0].shape == ("batch", 3, 32, 24)
    same(source, module)
    exported, _ = export(source, ExportOptions(20, "auto"), tmp_path)
    assert exported.exporter == "torchscript"
    assert exported.proof["cosine_min"] > 0.99999


def test_torchscript_that_nobody_says_the_input_of_asks_for_it(own, tmp_path):
    torch.jit.save(torch.jit.trace(made(own[1].Net), torch.randn(2, 3, 32, 32)), str(tmp_path / "m.pt"))
    with pytest.raises(SourceError, match="nothing says what m takes") as caught:
        open_source(str(tmp_path / "m.pt"))
    assert "--image 224" in caught.value.hint


class _Writes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.ops.aten.save(x, "written")
        return x


def test_torchscript_that_touches_files_is_refused(tmp_path):
    torch.jit.script(_Writes()).save(str(tmp_path / "m.pt"))
    with pytest.raises(SourceError, match="reads or writes files"):
        open_source(str(tmp_path / "m.pt"), Options(image=8))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "checkpoint", "half", "sharded", "tied"])
def test_weights_run_with_their_class(own, tmp_path, kind):
    from safetensors.torch import save_file

    folder, code = own
    module = made(code.Net, 3)
    weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    path = tmp_path / ("w.pt" if kind in ("pt", "checkpoint") else "w.safetensors")
    if kind == "pt":
        torch.save(weights, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in weights.items()}}, path)
    elif kind == "sharded":
        names = sorted(weights)
        halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in halves.items():
            save_file({key: weights[key] for key in keys}, tmp_path / file)
        path = tmp_path / "w.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {key: file for file, keys in halves.items() for key in keys}}))
    else:
        if kind == "tied":
            weights = {key: tensor for key, tensor in weights.items() if not key.startswith("twin")}
        if kind == "half":
            weights = {k: t.half() if t.is_floating_point() else t for k, t in weights.items()}
            module.load_state_dict(weights)
        save_file(weights, path)
    named = Options(architecture=f"{folder / 'own_net.py'}:Net", init={"depth": 3}, image=32, mean=(0.5, 0.4, 0.3))
    source = open_source(str(path), named)
    assert source.card.embedding.dim == 7
    same(source, module)


def test_weights_alone_ask_for_their_class(own, tmp_path):
    torch.save(made(own[1].Net).state_dict(), tmp_path / "w.pt")
    with pytest.raises(SourceError, match="do not name their model") as caught:
        resolve(str(tmp_path / "w.pt"))
    assert "--model" in caught.value.hint


def test_a_whole_module_in_a_pickle_is_refused(own, tmp_path):
    torch.save(made(own[1].Net), tmp_path / "w.pt")
    with pytest.raises(SourceError, match="more than tensors"):
        open_source(str(tmp_path / "w.pt"), Options(architecture="own_net:Net", image=32))


def test_weights_of_other_arguments_are_refused_and_a_left_out_head_is_told(own, tmp_path):
    weights = made(own[1].Net, 3).state_dict()
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"belong nowhere \(body\.2.*head\.weight is"):
        open_source(str(tmp_path / "w.pt"), Options(architecture="own_net:Net", init={"depth": 2}, image=32))
    with pytest.raises(SourceError, match="are missing"):
        open_source(str(tmp_path / "w.pt"), Options(architecture="own_net:Net", init={"depth": 4}, image=32))
    torch.save({**weights, "classifier.weight": torch.ones(3, 7)}, tmp_path / "w.pt")
    source = open_source(str(tmp_path / "w.pt"), Options(architecture="own_net:Net", init={"depth": 3}, image=32))
    assert any("no classifier" in note for note in source.card.provenance["notes"])


def test_gray_pictures_are_found_by_trying(own, tmp_path):
    module = made(own[1].Net, 2, 1)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    init = {"depth": 2, "channels": 1}
    source = open_source(str(tmp_path / "w.pt"), Options(architecture="own_net:Net", init=init, image=16))
    assert source.card.preprocess["channels"] == "gray"
    same(source, module)


def test_pictures_are_prepared_as_torchvision_does(own):
    """Pillow's resize of the shorter edge to 40, a crop of 32 from the centre, then mean and std per channel."""
    from PIL import Image

    asked = Options(image=32, resize=40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    source = open_source("py:own_net:net", asked)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in source.card.preprocess.items() if k != "kind"}
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    got = Preprocessor(ImageOptions(**fields), "x").items([Image.fromarray(picture)])[0].tensors["x"]
    small = Image.fromarray(picture).resize((60, 40), Image.Resampling.BILINEAR).crop((14, 4, 46, 36))
    want = (np.asarray(small, np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(got, want.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(41, 43), (43, 45), (32, 33), (20, 51), (21, 31), (64, 64)])
def test_an_odd_margin_is_cut_as_torchvision_does(rows, columns):
    """The rule of torchvision's center_crop, written out: pad the smaller half first, then round halves to even."""
    from deploykit.runtime.preprocess.image import center_crop

    pixels = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns, 1) + 1
    across, down = max(0, 32 - columns), max(0, 32 - rows)
    want = np.pad(pixels, ((down // 2, (down + 1) // 2), (across // 2, (across + 1) // 2), (0, 0)))
    top, left = round((want.shape[0] - 32) / 2.0), round((want.shape[1] - 32) / 2.0)
    np.testing.assert_array_equal(center_crop(pixels, 32, 32, even=True), want[top : top + 32, left : left + 32])


def test_a_waveform_module_takes_every_length(own):
    module = made(own[1].Wave)
    source = open_source("py:own_net:Wave", Options(audio=8000, pooling="mean", max_length=4000))
    source.module.body.body.load_state_dict(module.state_dict())
    assert source.card.preprocess["sampling_rate"] == 8000
    assert min(source.sizes["samples"]) == 20
    inputs = source.make_inputs(3, {"samples": 333}, 0)
    torch.testing.assert_close(source.module(**inputs), module(inputs["input_values"]).mean(1))


def test_a_text_module_reads_ids_and_a_padding_mask(own, tmp_path):
    module = made(own[1].Words)
    folder = tiny.wordpiece(tmp_path / "tokenizer")
    source = open_source("py:own_net:Words", Options(text=str(folder), pooling="mean"))
    source.module.body.body.load_state_dict(module.state_dict())
    assert [spec.name for spec in source.card.inputs] == ["input_ids", "attention_mask"]
    inputs = source.make_inputs(2, {"length": 9}, 0)
    mask = inputs["attention_mask"]
    with torch.inference_mode():
        got = source.module(**inputs)
        row = module(
            inputs["input_ids"][1:, : int(mask[1].sum())], torch.zeros(1, int(mask[1].sum()), dtype=torch.bool)
        )
    torch.testing.assert_close(got[1:], row.mean(1), rtol=1e-4, atol=1e-5)


def test_a_text_module_without_a_mask_pads_nothing(own, tmp_path):
    source = open_source("py:own_net:Bag", Options(text=str(tiny.wordpiece(tmp_path / "t")), pooling="mean"))
    assert [spec.name for spec in source.card.inputs] == ["input_ids"]


def test_a_factory_imports_from_the_current_folder(own, tmp_path, monkeypatch):
    (tmp_path / "here_layers.py").write_text(LAYERS)
    (tmp_path / "here_net.py").write_text(NET.replace("own_layers", "here_layers"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert open_source("py:here_net:net", Options(image=16)).card.embedding.dim == 7


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": 16, "audio": 8000}, "both given"),
        ({"image": (1, 2, 3)}, "image is"),
        ({"image": 16, "std": (0.0,)}, "std is"),
        ({"image": 16, "mean": (0.5, 0.5)}, "mean is"),
        ({"image": 16, "max_length": 4}, "max_length"),
        ({"audio": 8000, "pooling": "mean"}, "fails on"),
    ],
)
def test_what_does_not_fit_a_module_is_refused(own, changes, said):
    with pytest.raises(SourceError, match=said):
        open_source("py:own_net:net", Options(**changes))


def test_options_of_own_modules_are_refused_for_other_sources(models):
    with pytest.raises(SourceError, match="'image' was asked for"):
        open_source(str(models("bert")), Options(image=224))
