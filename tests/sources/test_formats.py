"""Models in forms that are not read are refused by what they are, whatever their files are called."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile

import pytest

from deploykit.errors import SourceError
from deploykit.sources import resolve

CONTENTS = {
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "TFLite": b"\x1c\0\0\0TFL3" + b"\0" * 40,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 40,
    "ORT model": b"\x20\0\0\0ORTM" + b"\0" * 40,
    "TensorRT engine": b"ptrt" + b"\0" * 40,
    "pickle": pickle.dumps({"weights": [1, 2]}),
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "numpy array": b"\x93NUMPY\x01\0",
    "compressed": b"\x1f\x8b\x08\0",
    "web page": b"\n<!DOCTYPE html><html>",
    "OpenVINO IR": b'<?xml version="1.0"?>\n<net name="m" version="11">',
    "CTranslate2": b"\x06\0\0\0\x13\0TransformerEncoderSpec\0",
    "empty file": b"",
}


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.parametrize("name", ["model.bin", "model"])
def test_a_file_is_refused_by_its_content(tmp_path, what, name):
    (tmp_path / name).write_bytes(CONTENTS[what])
    with pytest.raises(SourceError, match=what) as caught:
        resolve(str(tmp_path / name))
    assert caught.value.hint
    assert "no file or folder" not in caught.value.message


def test_core_ml_and_keras_are_known(tmp_path):
    (tmp_path / "m.mlmodel").write_bytes(b"\x08\x04\x12\x20\x0a\x10" + b"\0" * 40)
    with pytest.raises(SourceError, match="Core ML"):
        resolve(str(tmp_path / "m.mlmodel"))
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("model.weights.h5", "x")
    with pytest.raises(SourceError, match="Keras"):
        resolve(str(tmp_path / "m.keras"))


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_8bit": True}, "bitsandbytes"),
    ],
)
def test_quantized_checkpoints_name_their_method(tmp_path, config, method):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "quantization_config": config}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=f"quantized by {method}") as caught:
        resolve(str(tmp_path))
    assert "-p int8" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"openvino_model.xml": CONTENTS["OpenVINO IR"], "openvino_model.bin": b"0", "config.json": b"{}"}, "OpenVINO"),
        ({"model.bin": CONTENTS["CTranslate2"], "vocabulary.txt": b"a"}, "CTranslate2"),
        ({"saved_model.pb": b"x"}, "SavedModel"),
        ({"weights-q4.gguf": CONTENTS["GGUF"]}, "GGUF"),
        ({"meta.json": b'{"pipeline": ["tok2vec"]}'}, "spaCy"),
    ],
)
def test_folders_are_refused_by_what_they_hold(tmp_path, files, what):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=what):
        resolve(str(tmp_path))
