"""Bundles that are damaged or mean harm, each made from the tiny bundle, with the reason for which it is refused.

``CASES`` maps a name to (maker, reason): the maker changes the folder that it is given, or writes a ``.dkb`` beside it,
and returns what is to be loaded. As a script it loads each in a process of its own and prints what that took:
``python -m tests.runtime.hostile FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.runtime.hostile_base import (
    CASES,
    MODEL,
    TOKENIZER,
    Maker,
    case,
    edited,
    listed,
    manifest,
    raw,
    seal,
    write_manifest,
)
from tests.runtime.hostile_models import _LAYER, external, model, node, npz, with_model

__all__ = [
    "CASES",
    "MODEL",
    "_LAYER",
    "edited",
    "external",
    "manifest",
    "model",
    "node",
    "npz",
    "packed",
    "seal",
    "with_model",
    "write_manifest",
]

# Files


@case("was altered")
def bit_flip(root: Path) -> Path:
    data = bytearray((root / MODEL).read_bytes())
    data[len(data) // 2] ^= 1
    (root / MODEL).write_bytes(data)
    return root


@case("bytes, the manifest says")
def truncation(root: Path) -> Path:
    (root / MODEL).write_bytes((root / MODEL).read_bytes()[:-7])
    return root


@case("is not listed")
def extra_file(root: Path) -> Path:
    (root / "models" / "more.bin").write_bytes(b"x")
    return root


@case("is missing")
def missing_file(root: Path) -> Path:
    (root / TOKENIZER).unlink()
    return root


@case("is a symbolic link")
def symlink(root: Path) -> Path:
    (root / TOKENIZER).rename(root.parent / "elsewhere")
    (root / TOKENIZER).symlink_to(root.parent / "elsewhere")
    return root


@case("is a symbolic link")
def symlinked_folder(root: Path) -> Path:
    (root / "preprocess").rename(root.parent / "elsewhere")
    (root / "preprocess").symlink_to(root.parent / "elsewhere")
    return root


@case("is not listed")
def hard_link(root: Path) -> Path:
    (root.parent / "secret").write_text("a file of another")
    os.link(root.parent / "secret", root / "models" / "secret")
    return root


@case("cannot be read")
def manifest_is_a_link(root: Path) -> Path:
    (root / "manifest.json").rename(root.parent / "elsewhere")
    (root / "manifest.json").symlink_to(root.parent / "elsewhere")
    return root


@case("it is no plain file")
def manifest_is_a_pipe(root: Path) -> Path:
    (root / "manifest.json").unlink()
    os.mkfifo(root / "manifest.json")
    return root


# Names in the manifest

for _name, _reason in {
    "../out": "leaves its folder",
    "/etc/passwd": "is absolute",
    "a\0b": "a control character",
    "a\\b": "holds a backslash",
    "C:a": "a colon",
    "models/NUL": "a device on Windows",
    "com1.onnx": "a device on Windows",
    "models/FP32.ONNX": "one file on some systems",
    "MANIFEST.SIG": "one file on some systems",
    "ops.so": "a program, a library or a pickle",
    "weights.pkl": "a program, a library or a pickle",
    "models/fp16.sm89.engine": "is an engine, machine code",
}.items():
    case(_reason, f"the name {_name!r}")(listed(_name))


@case("is an engine, machine code")
def unsigned_engine(root: Path) -> Path:
    (root / "models" / "x.sm89.engine").write_bytes(b"ftrt" * 16)
    return seal(root)


# The manifest


@case("has the schema 'deploykit.bundle/9'")
def newer_schema(root: Path) -> Path:
    return edited(lambda data: data.update(schema="deploykit.bundle/9"))(root)


@case(r"manifest\.variants must be a list")
def wrong_types(root: Path) -> Path:
    return edited(lambda data: data.update(variants={"a": 1}))(root)


@case("must be int")
def wrong_size_type(root: Path) -> Path:
    return edited(lambda data: data["files"][MODEL].update(size="many"))(root)


@case("larger than")
def huge_manifest(root: Path) -> Path:
    with (root / "manifest.json").open("wb") as file:
        file.truncate(100_000_000)
    return root


@case("has the schema None")
def dense_manifest(root: Path) -> Path:
    (root / "manifest.json").write_bytes(b'{"a": [' + b"{}," * 1_390_000 + b"0]}")
    return root


case("no valid JSON", "deep JSON")(raw(b'{"a":' * 200_000))
case("no valid JSON: NaN is no JSON number", "NaN")(raw(b'{"a": NaN}'))
case("no valid JSON: 1e999 is larger", "a number beyond all numbers")(raw(b'{"a": 1e999}'))
case("no valid JSON", "an integer of 4,000 digits")(raw(b'{"a": ' + b"9" * 4000 + b"}"))
case("same key twice", "a key twice")(raw(b'{"files": {}, "files": {}}'))
case("no valid JSON", "half a surrogate pair")(raw(b'{"a": "\\ud800"}'))
case("no plain text", "escape codes for the terminal")(edited(lambda d: d["card"].update(name="\x1b[2Jx")))
case("has the target '../../x'", "a target that is a path")(edited(lambda d: d["variants"][0].update(target="../../x")))


def _cache_dir(data: dict[str, Any]) -> None:
    data["variants"] = [v for v in data["variants"] if v["target"] == "openvino"]
    data["variants"][0]["settings"]["CACHE_DIR"] = "/tmp/anywhere"
    data["default"] = data["variants"][0]["name"]


def _external_folder(data: dict[str, Any]) -> None:
    key = "session.model_external_initializers_file_folder_path"
    data["variants"][0]["settings"] = {"config": {key: "/etc"}}


case("'CACHE_DIR' is none that a bundle may bring", "a setting that writes files")(edited(_cache_dir))
case("is none that a bundle may bring", "a setting that reads elsewhere")(edited(_external_folder))


# The packed form


def packed(root: Path, change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], object]) -> Path:
    """The folder as a ``.dkb`` after ``change`` of its entries."""
    entries = []
    for path in [root / "manifest.json", *sorted(p for p in root.rglob("*") if p.is_file())]:
        if path.name != "manifest.json" or not entries:
            info = zipfile.ZipInfo(path.relative_to(root).as_posix())
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            entries.append((info, path.read_bytes()))
    change(entries)
    target = root.with_suffix(".dkb")
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w") as file:
        warnings.simplefilter("ignore")
        for info, data in entries:
            file.writestr(info, data)
    return target


def entry(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Maker:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr = mode << 16
    return lambda root: packed(root, lambda entries: entries.append((info, data)))


case("leaves its folder", "zip: ../")(entry("../escape"))
case("is absolute", "zip: absolute")(entry("/tmp/escape"))
case("holds a backslash", "zip: backslash")(entry("..\\escape"))
case("no plain file", "zip: symlink")(entry("link", b"/etc/passwd", stat.S_IFLNK | 0o777))
case("one file on some systems", "zip: the same name twice")(entry(MODEL))
case("one file on some systems", "zip: names that differ in case")(entry(MODEL.upper()))
case("is not listed", "zip: extra file")(entry("extra.txt"))


@case("is compressed")
def zip_bomb(root: Path) -> Path:
    def bomb(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
        info = zipfile.ZipInfo("bomb")
        info.compress_type = zipfile.ZIP_DEFLATED
        entries.append((info, bytes(20_000_000)))

    return packed(root, bomb)


@case("no intact packed bundle")
def zip_truncation(root: Path) -> Path:
    path = packed(root, lambda entries: None)
    path.write_bytes(path.read_bytes()[:-30])
    return path


@case("overlaps another entry")
def zip_overlap(root: Path) -> Path:
    """The directory's last entry is said to begin where the one before it does."""
    path = packed(root, lambda entries: None)
    data = bytearray(path.read_bytes())
    places = [at for at in range(len(data) - 46) if data[at : at + 4] == b"PK\1\2"]
    data[places[-1] + 42 : places[-1] + 46] = data[places[-2] + 42 : places[-2] + 46]
    path.write_bytes(data)
    return path


@case("hides bytes between")
def zip_hidden_bytes(root: Path) -> Path:
    path = packed(root, lambda entries: None)
    data = path.read_bytes()
    at = struct.unpack("<I", data[-6:-2])[0]
    path.write_bytes(data[:at] + b"hidden" + data[at:-6] + struct.pack("<I", at + 6) + data[-2:])
    return path


@case("says that it holds 12000 files")
def zip_of_many(root: Path) -> Path:
    path = root.with_suffix(".dkb")
    with zipfile.ZipFile(path, "w") as file:
        for index in range(12_000):
            file.writestr(zipfile.ZipInfo(str(index)), b"")
    return path


def try_it(path: Path) -> None:
    """Load and self-test it, as a device would that takes whatever it is sent."""
    from deploykit.runtime.bundle import Bundle
    from deploykit.runtime.loading import load
    from deploykit.runtime.selftest import read_inputs, read_reference

    opened = Bundle.open(path)
    opened.verify()
    read_inputs(opened)
    read_reference(opened)
    load(path)


def main(folder: Path) -> None:
    """Each case in a process of its own: a JSON line with its name, seconds, MiB at most, and what was said."""
    import deploykit.runtime.loading  # noqa: F401  what every process shares

    for name in sorted(CASES):
        reads, writes = os.pipe()
        if (child := os.fork()) == 0:
            said, begun = "nothing was refused", time.perf_counter()
            try:
                try_it(Path((folder / _slug(name) / "path").read_text()))
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - begun
            os.write(writes, json.dumps({"name": name, "seconds": round(seconds, 3), "said": said}).encode())
            os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as file:
            row = json.loads(file.read() or "{}")
        _, _, usage = os.wait4(child, 0)
        sys.stdout.write(json.dumps({**row, "name": name, "mib": usage.ru_maxrss // 1024}) + "\n")


def make_all(bundle: Path, folder: Path) -> None:
    """Every case's bundle below ``folder``, for `main`."""
    for name, (maker, _) in CASES.items():
        place = folder / _slug(name)
        shutil.copytree(bundle, place / "x.bundle")
        (place / "path").write_text(str(maker(place / "x.bundle")))


def _slug(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
