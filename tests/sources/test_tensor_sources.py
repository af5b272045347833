"""Python factories, saved programs, ONNX files and timm models."""

from __future__ import annotations

import shutil
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deploykit.errors import MissingError, SourceError  # noqa: E402
from deploykit.runtime.manifest import Card  # noqa: E402
from deploykit.sources import Options, Source, open_source, resolve  # noqa: E402

FACTORIES = """
import torch

class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 6)

    def forward(self, ids, attention_mask):
        return self.table(ids)

class Conv(torch.nn.Module):
    example_inputs = torch.randn(2, 3, 9, 12)

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, pixels):
        return {"embedding": self.conv(pixels).mean((2, 3))}

def tokens():
    return Tokens(), (torch.randint(0, 11, (3, 5)), torch.ones(3, 5, dtype=torch.int64))

def conv():
    return Conv()

def random():
    module = Conv()
    module.forward = lambda pixels: torch.randn(len(pixels), 4)
    return module, {"pixels": Conv.example_inputs}

def nothing():
    return 7

def broken():
    raise KeyError("weights.bin")
"""


@pytest.fixture(scope="module")
def factory_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("factories") / "factories.py"
    path.write_text(FACTORIES)
    return path


def sizes_at(source, index):
    return {axis: sizes[index] for axis, sizes in source.sizes.items()}


def test_a_factory_s_tokens_are_pooled_over_their_mask(factory_file):
    source = open_source(f"py:{factory_file}:tokens", Options(pooling="mean", normalize=True))
    assert [spec.name for spec in source.card.inputs] == ["ids", "attention_mask"]
    assert source.card.inputs[0].shape == ("batch", "length")
    for batch in (1, 2, 5):
        tensors = source.make_inputs(batch, {"length": 7}, 0)
        vectors = source.module(**tensors)
        assert vectors.shape == (batch, 6)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(batch))
    assert tensors["attention_mask"].sum(dim=1).tolist() == [7, 6, 5, 3, 2]


def test_dynamic_axes_are_found_by_trying(factory_file):
    source = open_source(f"py:{factory_file}:conv")
    assert source.card.inputs[0].shape == ("batch", 3, "height", "width")
    assert min(source.sizes["height"]) == 7
    assert source.module(**source.make_inputs(2, sizes_at(source, -1), 0)).shape == (2, 5)


def test_a_factory_is_never_taken_from_a_store(factory_file):
    assert resolve(f"py:{factory_file}:tokens").digest is None


def test_token_vectors_without_pooling_are_refused(factory_file):
    with pytest.raises(SourceError) as caught:
        open_source(f"py:{factory_file}:tokens")
    assert "pooling" in caught.value.hint


def test_random_vectors_are_refused(factory_file):
    with pytest.raises(SourceError, match="second run"):
        open_source(f"py:{factory_file}:random")


@pytest.mark.parametrize(
    ("name", "said"), [("nothing", "returned int"), ("broken", r"weights\.bin"), ("absent", "no function 'absent'")]
)
def test_a_bad_factory_is_explained(factory_file, name, said):
    with pytest.raises(SourceError, match=said):
        open_source(f"py:{factory_file}:{name}")


def test_a_module_that_is_not_installed_is_missing():
    with pytest.raises(MissingError, match="no_such_package"):
        open_source("py:no_such_package.models:factory")


def test_a_spec_without_a_function_is_refused():
    with pytest.raises(SourceError, match="does not name a factory"):
        resolve("py:package.module")


def test_a_factory_may_return_a_whole_source(tmp_path, models):
    (tmp_path / "whole.py").write_text(
        f"from deploykit.sources import open_source\ndef make():\n    return open_source({str(models('bert'))!r})\n"
    )
    source = open_source(f"py:{tmp_path / 'whole.py'}:make")
    assert isinstance(source, Source)
    assert isinstance(source.card, Card)


class Scaled(torch.nn.Module):
    """Two inputs, one of them given by keyword."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x, scale):
        return self.linear(x).sum(dim=1) * scale


def save_program(path, dynamic=True):
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto, 1: auto}, "scale": {0: auto}} if dynamic else None
    torch.manual_seed(0)
    module = Scaled().eval()
    program = torch.export.export(module, (torch.randn(3, 5, 4),), {"scale": torch.rand(3, 1)}, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return module


def test_a_saved_program_runs_as_it_was_exported(tmp_path):
    module = save_program(tmp_path / "model.pt2")
    source = open_source(str(tmp_path / "model.pt2"))
    assert source.card.inputs[0].shape == ("batch", "length", 4)
    assert resolve(str(tmp_path / "model.pt2")).kind == "exported-program"
    tensors = source.make_inputs(5, {"length": 7}, 1)
    torch.testing.assert_close(source.module(**tensors), module(**tensors))


def test_a_program_of_a_fixed_batch_is_refused(tmp_path):
    save_program(tmp_path / "model.pt2", dynamic=False)
    with pytest.raises(SourceError, match="fixed at 3"):
        open_source(str(tmp_path / "model.pt2"))


def test_pickles_in_a_program_are_refused(tmp_path):
    import zipfile

    save_program(tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive:
        archive.writestr("model/data/constants/custom_obj_0", b"x")
    with pytest.raises(SourceError, match="custom_obj_0"):
        open_source(str(tmp_path / "model.pt2"))


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"PK not really")
    with pytest.raises(SourceError, match="cut off"):
        open_source(str(tmp_path / "model.pt2"))


class Hidden(torch.nn.Module):
    """The token vectors of the tiny BERT."""

    def __init__(self, folder):
        super().__init__()
        from transformers import AutoModel

        self.model = AutoModel.from_pretrained(folder).eval()

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


@pytest.fixture(scope="module")
def onnx_bert(models, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(models("bert") / name, folder / name)
    ids = torch.randint(5, 100, (3, 9))
    axes = {0: "batch", 1: "length"}
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        Hidden(models("bert")),
        (ids, torch.ones_like(ids)),
        str(folder / "model.onnx"),
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
    )
    return folder / "model.onnx"


def test_pooling_is_appended_to_an_onnx_model(onnx_bert, models):
    import onnxruntime

    options = Options(pooling="mean", normalize=True, dim=10)
    source = open_source(str(onnx_bert), options)
    assert source.card.modality == "text"
    assert source.card.embedding.output == "sentence_embedding"
    assert source.card.preprocess["max_length"] == 64
    session = onnxruntime.InferenceSession(source.model_path)
    reference = open_source(str(models("bert")), options)
    for batch in (1, 2, 5):
        tensors = source.make_inputs(batch, {"length": 8}, batch)
        got = session.run(["sentence_embedding"], {key: value.numpy() for key, value in tensors.items()})[0]
        np.testing.assert_allclose(got, reference.module(**tensors).numpy(), atol=1e-5)


def test_an_onnx_model_of_token_vectors_asks_for_a_pooling(onnx_bert):
    with pytest.raises(SourceError) as caught:
        open_source(str(onnx_bert))
    assert "pooling" in caught.value.hint


def test_the_embedding_is_chosen_among_several_outputs(tmp_path):
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper

    shape = ["batch", "length", 3]
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["token_embeddings"]),
            helper.make_node("ReduceMax", ["token_embeddings", "axis"], ["sentence_embedding"], keepdims=0),
        ],
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("token_embeddings", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 3]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    path = tmp_path / "two.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    plain = open_source(str(path))
    assert plain.card.inputs[0].shape == ("batch", "length", 3)
    assert [output.name for output in onnx.load(plain.model_path).graph.output] == ["tensor_embedding"]
    mean = open_source(str(path), Options(pooling="mean", normalize=True))
    feeds = mean.make_inputs(5, {"length": 7}, 0)
    want = torch.nn.functional.normalize(feeds["x"].relu().mean(dim=1), dim=-1).numpy()
    import onnxruntime

    got = onnxruntime.InferenceSession(mean.model_path).run(None, {"x": feeds["x"].numpy()})[0]
    np.testing.assert_allclose(got, want, atol=1e-6)


def linear_onnx(path, operator="Gemm", batch="batch"):
    import onnx
    from onnx import TensorProto, helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], np.arange(12, dtype=np.float32))
    inputs = ["x", "w"] if operator == "Gemm" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], domain="" if operator == "Gemm" else "nowhere")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return str(path)


def test_an_onnx_model_without_tokenizer_takes_tensors(tmp_path):
    pytest.importorskip("onnxruntime")
    source = open_source(linear_onnx(tmp_path / "linear.onnx"))
    assert (source.card.modality, source.card.embedding.dim) == ("tensor", 3)
    assert source.card.embedding.output == "tensor_embedding"
    assert source.make_inputs(5, {}, 0)["x"].shape == (5, 4)


def test_a_failing_operator_is_named(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(SourceError, match="Warp"):
        open_source(linear_onnx(tmp_path / "warp.onnx", operator="Warp"))


def test_an_onnx_model_of_a_fixed_batch_is_made_dynamic(tmp_path):
    pytest.importorskip("onnx")
    source = open_source(linear_onnx(tmp_path / "fixed.onnx", batch=1))
    assert source.card.inputs[0].shape == ("batch", 4)


def test_a_damaged_onnx_file_is_named(tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(SourceError, match=r"bad\.onnx"):
        open_source(str(tmp_path / "bad.onnx"))


def test_timm_is_missing_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("deploykit.sources.timm._installed", lambda: False)
    with pytest.raises(MissingError, match="timm"):
        resolve("timm:resnet18")


@pytest.fixture
def fake_timm(monkeypatch):
    """A stand-in with the four names of timm's interface that are used."""

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 7, 5, stride=4)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    timm = types.ModuleType("timm")
    timm.__version__ = "1.0"
    timm.is_model = lambda name: name == "tiny"
    timm.list_models = lambda: ["tiny"]
    timm.create_model = lambda name, pretrained, num_classes: Tiny()
    config = {"input_size": (3, 28, 28), "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    config |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    timm.data = types.SimpleNamespace(resolve_model_data_config=lambda model: config)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setattr("deploykit.sources.timm._installed", lambda: True)
    return config


def test_timm_models_bring_their_preprocessing(fake_timm):
    source = open_source("timm:tiny")
    assert source.card.embedding.dim == 7
    assert source.card.preprocess["resize"] == {"shortest_edge": 32}
    assert source.card.preprocess["crop"] == [28, 28]
    assert source.module(**source.make_inputs(5, {}, 0)).shape == (5, 7)


def test_timm_crop_modes_that_are_not_known_are_refused(fake_timm):
    fake_timm["crop_mode"] = "border"
    with pytest.raises(SourceError, match="border"):
        open_source("timm:tiny")


def test_an_unknown_timm_model_names_the_nearest(fake_timm):
    with pytest.raises(SourceError) as caught:
        open_source("timm:tinny")
    assert "tiny" in caught.value.hint


def test_a_folder_that_timm_saved_is_known_by_its_config(monkeypatch, tmp_path):
    import json

    from safetensors.torch import save_file

    monkeypatch.setattr("deploykit.sources.timm._installed", lambda: True)
    config = {"architecture": "resnet10t", "num_features": 512, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    for spec in (str(tmp_path), f"timm:local-dir:{tmp_path}"):
        found = resolve(spec)
        assert (found.kind, found.facts["model"]) == ("timm", f"local-dir:{tmp_path}")
        assert found.digest is not None


def test_an_unknown_timm_model_names_a_few():
    from deploykit.sources.timm import _nearest

    known = [f"resnet{n}" for n in range(200)]
    assert _nearest("resnet5x", known).count("resnet") <= 5
    assert len(_nearest("zzz", known)) < 80
