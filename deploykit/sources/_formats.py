"""Files and folders that hold a model in a form which is not read here, known by their first bytes and not by a name.

Each is refused by what it is, with what to give instead. `zip_kind` tells torch's own archives apart.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import SourceError

ZipKind = Literal["torchscript", "exported-program", "weights"]
_MADE_FROM = "give the folder or checkpoint that it was made from"
_HEAD = 512
_QUANTIZED = "give the model in float that it was made from: int8 is made here, with its drift measured (-p int8)"


@dataclass(frozen=True)
class Foreign:
    """What a file or folder is, and what to do about it."""

    what: str
    fix: str


def _at(offset: int, *marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: any(head[offset : offset + len(mark)] == mark for mark in marks)


def _is_pickle(head: bytes) -> bool:
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def _is_core_ml(head: bytes) -> bool:
    """A protobuf whose first two fields are a small version and a description that holds inputs and outputs."""
    return len(head) > 6 and head[0] == 0x08 and head[1] < 12 and head[2] == 0x12 and b"\x0a" in head[3:8]


_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
_FILES: tuple[tuple[Callable[[bytes], bool], Foreign], ...] = (
    (
        _at(0, b"version https://git-lfs"),
        Foreign("a Git LFS pointer, not the file", "run `git lfs pull` in its folder"),
    ),
    (_at(0, b"GGUF", b"ggml", b"lmgg", b"tjgg"), Foreign("a GGUF file, quantized for llama.cpp as a rule", _QUANTIZED)),
    (_at(4, b"TFL3"), Foreign("a TFLite model, which is converted already", _MADE_FROM)),
    (
        _at(0, b"\x89HDF\r\n\x1a\n"),
        Foreign("an HDF5 file, of Keras or TensorFlow", "export it to ONNX (tf2onnx) first"),
    ),
    (
        _at(4, b"ORTM"),
        Foreign("an ORT model, which is optimised for one onnxruntime", "give the .onnx it was made from"),
    ),
    (_at(0, b"ptrt", b"ftrt"), Foreign("a TensorRT engine, built for one GPU", "give the .onnx it was built from")),
    (
        _at(0, _LEGACY_TORCH),
        Foreign("a pickle of a torch below 1.6", "load it where you trust it, and torch.save it anew"),
    ),
    (_at(0, b"\x93NUMPY"), Foreign("a numpy array, not a model", "give the model; arrays are data")),
    (_at(0, b"\x1f\x8b", b"BZh", b"7z\xbc\xaf", b"\xfd7zXZ"), Foreign("a compressed archive", "unpack it first")),
    (_is_pickle, Foreign("a pickle, which could run any code when it is read", "save tensors alone, as safetensors")),
)
_ZIP = b"PK\x03\x04"
_OTHER_PLACES = {
    "saved_model.pb": Foreign("a TensorFlow SavedModel", "export it to ONNX (tf2onnx) first"),
    "model_index.json": Foreign("a diffusers pipeline of several models", "give the folder of one encoder in it"),
    "meta.json": Foreign("a spaCy pipeline", "give the folder of the transformer that it was trained from"),
    "Manifest.json": Foreign("a Core ML package, which is converted already", _MADE_FROM),
}
_OPENVINO = Foreign("OpenVINO IR, which is converted already", f"{_MADE_FROM}, and -t openvino")
_CTRANSLATE2 = Foreign("a CTranslate2 model, which is converted already", _MADE_FROM)


def refuse_foreign(location: str) -> None:
    """`SourceError` for what is there and is a model of a kind that is not read; nothing for all else."""
    path = Path(location).expanduser()
    found = _of_file(path) if path.is_file() else _of_folder(path) if path.is_dir() else None
    if found is not None:
        raise SourceError(f"'{location}' is {found.what}", hint=found.fix)


def zip_kind(path: Path) -> ZipKind | None:
    """Which of torch's archives a file is; None for every other file. ``weights`` may hold any pickle all the same."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return None
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    if "archive_format" in names or any(name.startswith("models/") and name.endswith(".json") for name in names):
        return "exported-program"
    return "weights" if "data.pkl" in names else None


def _of_file(path: Path) -> Foreign | None:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return Foreign("an empty file", "fetch it again")
    found = next((foreign for fits, foreign in _FILES if fits(head)), None)
    if found is not None:
        return found
    if head.startswith(_ZIP):
        return _of_zip(path)
    if path.suffix != ".onnx" and _is_core_ml(head) and (path.suffix == ".mlmodel" or b"com.apple" in head):
        return Foreign("a Core ML model, which is converted already", _MADE_FROM)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return Foreign("a web page: what was fetched is not the file", "fetch it again, signed in where that is needed")
    if re.match(rb"(<\?xml[^>]*>\s*)?<net\s", text):
        return _OPENVINO
    return _CTRANSLATE2 if re.match(rb"[\x01-\x0f]\0\0\0[\x04-\x60]\0\w+spec\0", head, re.IGNORECASE) else None


def _of_zip(path: Path) -> Foreign | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except zipfile.BadZipFile:
        return Foreign("a zip archive that is cut off", "fetch it again")
    if "model.weights.h5" in names:
        return Foreign("a Keras model", "export it to ONNX (model.export) first")
    if any(name.endswith("com.apple.CoreML/model.mlmodel") for name in names):
        return _OTHER_PLACES["Manifest.json"]
    if "manifest.json" in names:
        return Foreign("a packed deploykit bundle", "load it with deploykit.load, or export the model it was made of")
    return None


def _of_folder(path: Path) -> Foreign | None:
    for folder in (path, path / "0_Transformer"):
        quantized = _quantized_by(folder / "config.json")
        if quantized:
            return Foreign(f"a model quantized by {quantized}, which runs on kernels of its own", _QUANTIZED)
    names = {entry.name for entry in path.iterdir()}
    if _holds_weights(names) or "modules.json" in names:
        return None
    known = next((foreign for name, foreign in _OTHER_PLACES.items() if name in names and _is_it(path, name)), None)
    if known is not None:
        return known
    for name in sorted(names):
        if name.endswith((".gguf", ".tflite", ".xml", ".mlmodel", ".keras")) or name == "model.bin":
            found = _of_file(path / name) if (path / name).is_file() else None
            if found is not None:
                return Foreign(f"a folder with {name}: {found.what}", found.fix)
    return None


def _is_it(path: Path, name: str) -> bool:
    """Whether a file of a common name is what it would be there."""
    if name == "meta.json":
        return "pipeline" in _table(path / name)
    return name != "Manifest.json" or (path / "Data" / "com.apple.CoreML").is_dir()


def _holds_weights(names: set[str]) -> bool:
    return any(
        name.endswith(".safetensors") or re.fullmatch(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?", name)
        for name in names
    )


def _quantized_by(config: Path) -> str:
    """The method by which a transformers folder says its weights are quantized; empty if they are not."""
    data = _table(config)
    said = data.get("quantization_config") or data.get("compression_config")
    if isinstance(said, dict):
        bits = "bitsandbytes" if said.get("load_in_8bit") or said.get("load_in_4bit") else ""
        return str(said.get("quant_method") or bits or "an unnamed method")
    mlx = data.get("quantization")
    return "MLX" if isinstance(mlx, dict) and "bits" in mlx else ""


def _table(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
