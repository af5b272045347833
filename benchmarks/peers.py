"""Environments for the peers that cannot share one with deploykit.

sentence-transformers reaches ONNX Runtime and OpenVINO through optimum, whose packages hold transformers below versions
that deploykit builds with. Each gets a virtual environment of its own, with the newest versions that go together.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Installed first and alone, so that pip takes a CPU build of torch where one is offered.
TORCH = "torch==2.13.0"
HOME = Path("~/.cache/deploykit-peers").expanduser()


class InstallError(Exception):
    """An environment could not be made."""


@dataclass(frozen=True)
class Environment:
    """``alone`` is installed without its dependencies, which ``packages`` then names where they are wanted."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


ENVIRONMENTS = {
    "onnx": Environment(
        "onnx",
        packages=(
            "optimum-onnx[onnxruntime]==0.1.0",
            "onnxruntime==1.32.0",
            "transformers==4.57.6",
            "sentence-transformers==5.7.0",
        ),
    ),
    # optimum-intel asks for torchvision, which text models never import and which has no CPU build in some indexes.
    "openvino": Environment(
        "openvino",
        packages=(
            "optimum==2.3.0",
            "openvino==2026.4.1",
            "openvino-tokenizers==2026.4.1.0",
            "nncf==3.4.0",
            "transformers==5.5.4",
            "huggingface-hub<1.22",
            "requests>=2.33,<3",
            "setuptools",
            "sentence-transformers==6.2.0",
        ),
        alone=("optimum-intel==2.2.0",),
    ),
}


def python(name: str, folder: Path) -> Path:
    """The interpreter of environment ``name`` below ``folder``, made on first use and again when its pins change.

    `InstallError` when pip cannot install it; pip's own words are on standard error.
    """
    environment = ENVIRONMENTS[name]
    root = folder / name
    interpreter = root / "bin" / "python"
    stamp = root / ".installed"
    wanted = hashlib.sha256(repr((TORCH, environment)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"installing the peer environment {root}: a few minutes, about 2 GB", file=sys.stderr)
    install = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run([sys.executable, "-m", "venv", "--clear", str(root)])
    _run([*install, TORCH])
    _run([*install, TORCH, *environment.packages])
    if environment.alone:
        _run([*install, "--no-deps", *environment.alone])
    stamp.write_text(wanted)
    return interpreter


def exports(model: Path, folder: Path) -> Path:
    """Where the peers keep what they exported from ``model``; another model, or other pins, get another folder."""
    files = sorted(p for p in model.rglob("*") if p.is_file())
    facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = hashlib.sha256(repr((facts, ENVIRONMENTS)).encode()).hexdigest()[:16]
    home = folder / "models" / key
    home.mkdir(parents=True, exist_ok=True)
    return home


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"`{shlex.join(command)}` ended with {error.returncode}") from error
