"""Single files and their neighbours: ONNX, .pt2, factories and state dicts; and what is no encoder at all."""

from __future__ import annotations

import pickle
import runpy
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.strangers_kit import TEXTS, TRAP, Call, Case, Rows, edit_json, spread, write_json
from benchmarks.strangers_sentence import old_folder
from benchmarks.strangers_text import bert, decoder

ROWS = Rows("files")
WRONG_THINGS = Rows("no encoder")
_TENSORS = {"pixels": np.random.default_rng(0).standard_normal((3, 5, 12)).astype(np.float32)}


def _wrapped(folder: Path, outputs: str) -> Any:
    """A BERT whose forward takes what an exported graph takes, and gives the named outputs."""
    import torch
    from transformers import AutoModel

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            tokens = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).float()
            vector = (tokens * weights).sum(1) / weights.sum(1)
            return {"tokens": tokens, "both": (tokens, vector), "vector": vector}[outputs]

    return Wrapped().eval()


def exported(
    place: Path, outputs: str = "tokens", where: str = "model.onnx", dtype: str = "int64", batch: int = 2
) -> Path:
    """A folder of model.onnx and tokenizer files alone, from torch's own exporter."""
    import torch

    folder = bert(place / "model", {"model_max_length": 64})
    names = {"tokens": ["last_hidden_state"], "both": ["token_embeddings", "sentence_embedding"]}
    kind = getattr(torch, dtype)
    given = (torch.ones(batch, 6, dtype=kind), torch.ones(batch, 6, dtype=kind))
    moving = {0: "batch", 1: "length"} if batch > 1 else {1: "length"}
    listed = names.get(outputs, ["sentence_embedding"])
    axes = dict.fromkeys(["input_ids", "attention_mask", *listed], moving)
    if "sentence_embedding" in listed:
        axes["sentence_embedding"] = {0: "batch"} if batch > 1 else {}
    path = folder / where
    path.parent.mkdir(exist_ok=True)
    torch.onnx.export(
        _wrapped(folder, outputs),
        given,
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=["input_ids", "attention_mask"],
        output_names=listed,
        dynamic_axes=axes,
    )
    (folder / "model.safetensors").unlink()
    return path


def by_onnxruntime(
    path: Path, tokenizer: Path, texts: Sequence[str] = TEXTS, pooling: str = "mean", output: int = 0, longest: int = 64
) -> np.ndarray:
    """The tokenizers library on tokenizer.json and onnxruntime on the file, one text at a time."""
    import onnxruntime
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    splitter = Tokenizer.from_file(str(tokenizer))
    splitter.no_padding()
    if splitter.truncation is None:
        splitter.enable_truncation(longest)
    kind = np.int32 if "int32" in session.get_inputs()[0].type else np.int64
    rows = []
    for text in texts:
        ids = np.array([splitter.encode(text).ids], dtype=kind)
        got = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[output][0]
        rows.append(got.mean(axis=0) if pooling == "mean" else got)
    return np.stack(rows).astype(np.float32)


_MEAN = ("--pooling", "mean")


def _onnx_text(place: Path, pooling: str = "mean", output: int = 0, **how: Any) -> Case:
    path = exported(place, **how)
    expected = by_onnxruntime(path, place / "model" / "tokenizer.json", pooling=pooling, output=output)
    options = ("--max-length", "64", *(_MEAN if pooling == "mean" else ()))
    return Case(path, (Call(TEXTS, expected),), options)


ROWS.add("onnx-tokens-and-tokenizer-json", _onnx_text)
ROWS.add("onnx-vectors", lambda place: _onnx_text(place, "none", outputs="vector"))
ROWS.add("onnx-several-outputs", lambda place: _onnx_text(place, "none", 1, outputs="both"))
ROWS.add("onnx-in-a-folder-of-its-own", lambda place: _onnx_text(place, where="onnx/model.onnx"))
ROWS.add("onnx-int32-ids", lambda place: _onnx_text(place, dtype="int32"))


@ROWS.row("onnx-folder-given-instead-of-the-file")
def _onnx_folder(place: Path) -> Case:
    return Case(exported(place).parent)


@ROWS.row("onnx-truncation-inside-tokenizer-json")
def _onnx_truncation(place: Path) -> Case:
    path = exported(place)
    inside = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    edit_json(path.parent / "tokenizer.json", truncation=inside)
    edit_json(path.parent / "tokenizer_config.json", model_max_length=None)
    expected = by_onnxruntime(path, path.parent / "tokenizer.json")
    return Case(path, (Call(TEXTS, expected),), _MEAN)


@ROWS.row("onnx-fixed-batch-1")
def _fixed_batch(place: Path) -> Case:
    return _onnx_text(place, batch=1)


@ROWS.row("onnx-external-data-of-another-name")
def _external(place: Path) -> Case:
    import onnx

    path = exported(place)
    model = onnx.load(path)
    path.unlink()
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    expected = by_onnxruntime(path, path.parent / "tokenizer.json")
    return Case(path, (Call(TEXTS, expected),), ("--max-length", "64", *_MEAN))


@ROWS.row("onnx-external-data-missing")
def _external_missing(place: Path) -> Case:
    case = _external(place)
    (Path(case.source).parent / "weights.bin").unlink()
    return Case(case.source, (), case.options)


@ROWS.row("onnx-float16-inside")
def _half_inside(place: Path) -> Case:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = exported(place)
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    expected = by_onnxruntime(path, path.parent / "tokenizer.json")
    return Case(path, (Call(TEXTS, expected, least=0.9999),), ("--max-length", "64", *_MEAN))


_NET = '''
"""A small network of tensors [batch, 5, 12] that depends on the order of both axes."""

import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv1d(5, 7, 3, padding=1)
        self.second = torch.nn.Linear(7 * 12, 9)

    def forward(self, pixels):
        return self.second(torch.tanh(self.first(pixels)).flatten(1))


def factory():
    return Net().eval(), (torch.zeros(2, 5, 12),)
'''


def _net(place: Path) -> tuple[Any, Path, np.ndarray]:
    import torch

    place.mkdir(parents=True, exist_ok=True)
    path = place / "net.py"
    path.write_text(_NET, encoding="utf-8")
    model = runpy.run_path(str(path))["Net"]().eval()
    with torch.inference_mode():
        return model, path, model(torch.from_numpy(_TENSORS["pixels"])).numpy()


@ROWS.row("py-factory")
def _factory(place: Path) -> Case:
    _, path, expected = _net(place)
    return Case(f"py:{path}:factory", (Call(_TENSORS, expected),))


@ROWS.row("onnx-tensors-alone")
def _tensors(place: Path) -> Case:
    import torch

    model, _, expected = _net(place)
    path = place / "net.onnx"
    axes = {"pixels": {0: "batch"}, "vector": {0: "batch"}}
    torch.onnx.export(
        model, (torch.zeros(2, 5, 12),), str(path), dynamo=False, input_names=["pixels"], output_names=["vector"],
        dynamic_axes=axes,
    )  # fmt: skip
    return Case(path, (Call(_TENSORS, expected),))


@ROWS.row("pt2")
def _pt2(place: Path) -> Case:
    import torch

    model, _, expected = _net(place)
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (torch.zeros(2, 5, 12),), dynamic_shapes=shapes)
    torch.export.save(program, place / "net.pt2")
    return Case(place / "net.pt2", (Call(_TENSORS, expected),))


@ROWS.row("pt2-of-one-batch-size")
def _pt2_fixed(place: Path) -> Case:
    import torch

    model, _, expected = _net(place)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 5, 12),)), place / "net.pt2")
    return Case(place / "net.pt2", (Call(_TENSORS, expected),))


@ROWS.row("py-factory-left-in-training-mode")
def _training(place: Path) -> Case:
    _, path, expected = _net(place)
    code = path.read_text("utf-8").replace("Net().eval()", "Net().train()")
    code = code.replace("torch.tanh(", "torch.nn.functional.dropout(torch.tanh(").replace(
        "self.first(pixels))", "self.first(pixels)), 0.5, self.training)"
    )
    path.write_text(code, encoding="utf-8")
    return Case(f"py:{path}:factory", (Call(_TENSORS, expected),))


def _thing(name: str, write: Callable[[Path], Path]) -> None:
    def make(place: Path) -> Case:
        place.mkdir(parents=True)
        return Case(write(place))

    WRONG_THINGS.add(name, make)


def _content(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        path = place / name
        path.write_bytes(content)
        return path

    return write


@dataclass(frozen=True)
class _Trap:
    """An object whose unpickling makes an empty file: it must never be read."""

    sign: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sign,))


def _state_dict(place: Path) -> Path:
    import torch

    model, _, _ = _net(place / "code")
    torch.save(model.state_dict(), place / "checkpoint.pt")
    return place / "checkpoint.pt"


def _whole_module(place: Path) -> Path:
    import torch

    torch.save(spread(torch.nn.Linear(3, 2)), place / "model.pth")
    return place / "model.pth"


def _torchscript(place: Path) -> Path:
    import torch

    torch.jit.script(torch.nn.Linear(3, 2)).save(str(place / "model.pt"))
    return place / "model.pt"


def _damaged(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        folder = bert(place / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(change(weights.read_bytes()))
        return folder

    return write


def _folder(**files: str) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        folder = place / "model"
        folder.mkdir()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content, encoding="utf-8")
        return folder

    return write


def _trapped_bin(place: Path) -> Path:
    folder = bert(place / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(place.parent / TRAP)))
    return folder


def _one_shard_gone(place: Path) -> Path:
    from transformers import AutoModel

    folder = bert(place / "model")
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    return folder


def _edited(name: str, content: str, make: Callable[[Path], Path] = bert) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        folder = make(place / "model")
        (folder / name).write_text(content, encoding="utf-8")
        return folder

    return write


def _without(name: str) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        folder = bert(place / "model")
        for path in folder.glob(name):
            path.unlink()
        return folder

    return write


def _renamed(name: str) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        folder = bert(place / "model")
        (folder / "model.safetensors").rename(folder / name)
        return folder

    return write


def _config_of_another(place: Path) -> Path:
    folder = bert(place / "model")
    edit_json(folder / "config.json", hidden_size=64)
    return folder


def _package_json(place: Path) -> Path:
    write_json(place / "model" / "package.json", {"name": "not-a-model"})
    return place / "model"


_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 438000000\n"
_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 64
_OTHERS: Mapping[str, Callable[[Path], Path]] = {
    "pickle": _content("model.pkl", pickle.dumps({"weights": [1, 2, 3]})),
    "pickle-trap-in-bin": _trapped_bin,
    "state-dict": _state_dict,
    "whole-module-by-torch-save": _whole_module,
    "torchscript": _torchscript,
    "gguf": _content("model.gguf", _GGUF),
    "gguf-folder": _folder(**{"model-q4__gguf": "GGUF"}),
    "tflite": _content("model.tflite", b"\x1c\0\0\0TFL3" + b"\0" * 64),
    "keras-h5": _content("model.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64),
    "onnx-of-garbage": _content("model.onnx", b"\x08\x07 no protobuf here"),
    "onnx-empty": _content("model.onnx", b""),
    "pt2-of-garbage": _content("model.pt2", b"PK\x03\x04 nothing"),
    "text-file": _content("model.txt", b"hello"),
    "safetensors-alone": _content("model.safetensors", struct.pack("<Q", 2) + b"{}"),
    "path-that-is-not-there": lambda place: place / "no" / "such",
    "empty-folder": _folder(),
    "folder-of-keras": _folder(saved_model__pb="x", fingerprint__pb="x"),
    "folder-of-spacy": _folder(meta__json='{"lang": "en", "pipeline": ["tok2vec"]}', config__cfg="[nlp]"),
    "folder-of-node": _package_json,
    "folder-of-openvino": _folder(openvino_model__xml="<net/>", openvino_model__bin="", config__json="{}"),
    "safetensors-cut": _damaged(lambda data: data[: len(data) // 2]),
    "safetensors-of-garbage": _damaged(lambda data: b"\xff" * 500),
    "safetensors-empty": _damaged(lambda data: b""),
    "safetensors-header-lies": _damaged(lambda data: struct.pack("<Q", 2**60) + data[8:]),
    "safetensors-is-an-lfs-pointer": _damaged(lambda data: _LFS.encode()),
    "shard-missing": _one_shard_gone,
    "weights-of-tensorflow-alone": _renamed("tf_model.h5"),
    "weights-of-flax-alone": _renamed("flax_model.msgpack"),
    "weights-of-a-variant-alone": _renamed("model.fp16.safetensors"),
    "weights-missing": _without("model.safetensors"),
    "tokenizer-missing": _without("[tsv][opo][kec]*"),
    "config-missing": _without("config.json"),
    "config-is-no-json": _edited("config.json", "{oops"),
    "config-is-a-list": _edited("config.json", "[]"),
    "config-of-an-unknown-type": _edited("config.json", '{"model_type": "no-such-model"}'),
    "config-of-another-size": _config_of_another,
    "tokenizer-json-is-no-json": _edited("tokenizer.json", "{oops"),
    "modules-json-is-no-json": _edited("modules.json", "{oops", old_folder),
    "modules-json-points-outside": _edited(
        "modules.json",
        '[{"idx":0,"name":"0","path":"../..","type":"sentence_transformers.models.Transformer"}]',
        old_folder,
    ),
    "decoder-of-text-alone": lambda place: decoder(place / "llama", "LlamaConfig"),
}
for _name, _write in _OTHERS.items():
    _thing(_name, _write)
