"""A TorchScript archive (``torch.jit.save``), whatever its file is called: its zip says what it is.

What it takes is said by the options ``image``, ``audio`` or ``text``: an archive keeps no sizes of its inputs. It is
proven against the scripted module itself. No Python runs when it is loaded, only TorchScript's own interpreter; code in
it that would touch files is refused.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, Source, _folder, _formats

KIND = "torchscript"
_TOUCHES_FILES = re.compile(rb"\b(?:torch|aten)[.:]+(?:save|from_file|load)\(")


def matches(spec: str) -> bool:
    """A file whose zip holds TorchScript code."""
    return _formats.zip_kind(Path(spec).expanduser()) == KIND


def identify(spec: str, options: Options) -> Identity:
    """Digest of the file."""
    path = _require(spec)
    return _folder.identity(KIND, path, [path], options, {"name": path.stem})


def open(spec: str, options: Options) -> Source:
    """Load the module on the CPU in float32, and wrap it as the options say what it takes."""
    import torch

    from deploykit.sources._own_inputs import open_own

    path = _require(spec)
    _refuse_files(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except Exception as error:
        hint = "it needs operators of another library, was saved by a newer torch, or is damaged"
        raise SourceError(f"torch {torch.__version__} cannot load {path}: {_first(error)}", hint=hint) from error
    module = module.float()
    for weight in module.parameters():
        weight.requires_grad_(False)
    provenance = {"kind": KIND, "name": path.stem, "weights_sha256": _folder.digest_of([path])}
    return open_own(module, options, path.stem, provenance)


def _require(spec: str) -> Path:
    path = Path(spec).expanduser()
    if not path.is_file():
        raise SourceError(f"there is no file '{spec}'", hint="check the path")
    if _formats.zip_kind(path) != KIND:
        raise SourceError(f"{path} is no TorchScript archive", hint="save it with torch.jit.save")
    return path


def _refuse_files(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/code/" in name and name.endswith(".py") and _TOUCHES_FILES.search(archive.read(name)):
                hint = "script it again without reading or writing files"
                raise SourceError(f"the code in {path} ({name}) reads or writes files, which is refused", hint=hint)


def _first(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)
