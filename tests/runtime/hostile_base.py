"""What the makers of hostile bundles share: the table of cases, and edits of a bundle's manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path], Path]
CASES: dict[str, tuple[Maker, str]] = {}
MODEL, TOKENIZER, INPUTS = "models/fp32.onnx", "preprocess/tokenizer.json", "selftest/inputs.json"


def case(reason: str, name: str | None = None) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        CASES[name or maker.__name__] = (maker, reason)
        return maker

    return add


def manifest(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_text(encoding="utf-8"))


def write_manifest(root: Path, data: Any) -> Path:
    (root / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    return root


def seal(root: Path) -> Path:
    """Make the manifest list what is there, as whoever means harm would."""
    data = manifest(root)
    listed = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    del listed["manifest.json"]
    data["files"] = {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for name, path in listed.items()
    }
    return write_manifest(root, data)


def edited(change: Callable[[dict[str, Any]], object]) -> Maker:
    def make(root: Path) -> Path:
        data = manifest(root)
        change(data)
        return write_manifest(root, data)

    return make


def listed(name: str) -> Maker:
    return edited(lambda data: data["files"].update({name: {"sha256": "0" * 64, "size": 1}}))


def raw(text: bytes) -> Maker:
    def make(root: Path) -> Path:
        (root / "manifest.json").write_bytes(text)
        return root

    return make
