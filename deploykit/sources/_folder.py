"""Model folders on disk: which files decide the result, are they whole, whose licence. No torch, no transformers."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, _hub

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_DECIDING = (".json", ".txt", ".model", ".vocab", ".jinja", ".py")
_FOREIGN = {
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".gguf": "GGUF weights",
    ".ckpt": "a pickled checkpoint",
    ".pt": "a pickled checkpoint",
    ".pth": "a pickled checkpoint",
}


def require_folder(spec: str) -> Path:
    """The folder ``spec`` names; `SourceError` when it is not there or is a file."""
    folder = Path(spec).expanduser()
    if not folder.exists():
        raise SourceError(f"there is no folder '{spec}'", hint="check the path; a hub id has the form org/name")
    if not folder.is_dir():
        raise SourceError(f"'{spec}' is a file, not a model folder", hint="give the folder that holds config.json")
    if (folder / "manifest.json").exists():
        hint = "load it with deploykit.load, or export from the model that it was made of"
        raise SourceError(f"'{spec}' is a deploykit bundle already", hint=hint)
    return folder


def read_json(path: Path) -> Any:
    """Parsed JSON of a file; `SourceError` names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "the folder was not downloaded whole, or is not a model folder"
        raise SourceError(f"{path.parent} has no {path.name}", hint=hint) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not valid JSON ({error})", hint="the file is damaged: fetch it again") from error


def read_table(path: Path) -> dict[str, Any]:
    """As `read_json`, for files that hold one JSON object."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise SourceError(f"{path} holds {type(data).__name__}, not an object", hint="the file is damaged")
    return data


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files that transformers would load, checked to be whole; `SourceError` names what is wrong."""
    for single, index in zip(_SINGLE, _INDEXES, strict=True):
        if (folder / single).exists():
            files: tuple[Path, ...] = (folder / single,)
        elif (folder / index).exists():
            files = shards(folder / index)
        else:
            continue
        for path in files:
            check_whole(path)
        return files
    raise SourceError(f"{folder} has no weights (model.safetensors)", hint=_what_instead(folder))


def shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards names; `SourceError` when one is not there."""
    names = sorted(set(read_table(index).get("weight_map", {}).values()))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing or not names:
        listed = ", ".join(missing) or "every shard"
        raise SourceError(f"{index.parent} lacks {listed}, named in {index.name}", hint="finish the download")
    return tuple(index.parent / name for name in names)


def _what_instead(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "it holds a PEFT adapter alone: merge it into its base model first (merge_and_unload)"
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") and path.stem.startswith(("model.", "pytorch_model.")):
            name, _, variant = path.stem.partition(".")
            return f"it holds {path.name}, its variant '{variant}': copy or link that to {name}{path.suffix}"
        if path.name == "openvino_model.xml":
            return f"it holds {path.name}, which was converted already: give the model that it was made from"
        if path.suffix in _FOREIGN:
            return f"it holds {_FOREIGN[path.suffix]} ({path.name}): save it with save_pretrained as safetensors"
        if path.suffix == ".onnx":
            return f"it holds {path.name}: give that file as the source"
    return "the download did not finish: fetch the folder again"


def check_whole(path: Path) -> None:
    """`SourceError` when a weight file is a Git LFS pointer, or shorter than its own header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
        if start.startswith(b"version https://git-lfs"):
            raise SourceError(f"{path} is a Git LFS pointer, not the weights", hint="run `git lfs pull` in its folder")
        if path.suffix == ".safetensors":
            want = _safetensors_size(path, start, size)
            if want != size:
                raise SourceError(f"{path} has {size:,} bytes and needs {want:,}", hint="fetch the file again")
        elif start.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise SourceError(f"{path} is cut off after {size:,} bytes", hint="fetch the file again")


def _safetensors_size(path: Path, start: bytes, size: int) -> int:
    """Bytes that a safetensors file must have: 8, its header, and the data that the header describes."""
    if len(start) < 8:
        raise SourceError(f"{path} has only {size} bytes", hint="fetch the file again")
    (length,) = struct.unpack("<Q", start[:8])
    if length > size - 8:
        raise SourceError(f"{path} is cut off inside its header ({size:,} bytes)", hint="fetch the file again")
    with path.open("rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SourceError(f"{path} has a damaged header", hint="fetch the file again") from error
    return 8 + int(length) + int(max(ends, default=0))


def deciding_files(folder: Path, parts: Iterable[str] = ()) -> list[Path]:
    """Every file that decides the vectors: configs, tokenizers and weights of the folder and of its ``parts``."""
    files = set(weight_files(folder))
    for place in (folder, *(folder / part for part in parts)):
        files |= {p for p in place.iterdir() if p.is_file() and p.suffix in _DECIDING and not is_report(p)}
        if place != folder:
            files |= {p for p in place.iterdir() if p.name in _SINGLE}
    return sorted(files)


def is_report(path: Path) -> bool:
    """Whether it is a report of ours, which may stand beside its source and decides nothing."""
    return path.name.endswith((".report.json", ".report.md", ".report.html"))


def digest_of(files: Iterable[Path]) -> str:
    """One sha256 (hex) over the contents of files, in the order given."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def identity(kind: str, location: Path, files: Iterable[Path], options: Options, facts: Mapping[str, Any]) -> Identity:
    """The identity of a source that is files: their names and contents, the options, and the licence."""
    files = sorted(files)
    root = location if location.is_dir() else location.parent
    names = [path.relative_to(root).as_posix() for path in files]
    paper = license_file(root)
    parts = [kind, asdict(options), names, digest_of(files), dict(facts), digest_of([paper]) if paper else ""]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Identity(kind, str(location), digest, facts)


def folder_facts(folder: Path) -> dict[str, Any]:
    """Name, revision and licence of a model folder, for the provenance."""
    name, revision = _hub.origin(folder)
    facts: dict[str, Any] = {"name": name}
    if revision:
        facts["revision"] = revision
    if license_name(folder):
        facts["license"] = license_name(folder)
    return facts


def license_name(folder: Path) -> str | None:
    """The ``license:`` of the README's front matter."""
    readme = folder / "README.md"
    if not readme.exists():
        return None
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return None
    for line in lines[1:]:
        if line.strip() == "---":
            return None
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("'\"") or None
    return None


def license_file(folder: Path) -> Path | None:
    """The licence text that lies in the folder."""
    found = sorted(p for p in folder.iterdir() if p.stem.upper() in ("LICENSE", "LICENCE", "COPYING") and p.is_file())
    return found[0] if found else None
