"""What a data spec stands for at this moment, as a digest: so that a result is not reused for data that has changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploykit import data
from deploykit.errors import InputError


def of(spec: str) -> str:
    """Digest of a file's content, of a folder's listing (names, sizes, times), or of a builtin set's name.

    A folder may hold gigabytes of images; what stands in its listing changes with every edit of them. Raises
    `InputError` when there is nothing there.
    """
    path = _path(spec)
    if path is None:
        return spec
    return _listing(path, times=True) if path.is_dir() else _content(path)


def named(spec: str) -> str:
    """As `of`, but of a folder the names alone: for whoever knows by itself which of its files it has read."""
    path = _path(spec)
    if path is None:
        return spec
    return _listing(path, times=False) if path.is_dir() else _content(path)


def places(spec: str) -> tuple[str, ...]:
    """The folder in which the data of a spec lie, or none for a builtin set."""
    path = _path(spec) if spec else None
    if path is None:
        return ()
    return (str((path if path.is_dir() else path.parent).absolute()),)


def _path(spec: str) -> Path | None:
    """The file or folder; None for a builtin set."""
    if spec.startswith("builtin:"):
        return None
    path, _ = data.split(spec)
    if not path.exists():
        data.read(spec)  # it knows what is near
        raise InputError(f"there is no file or folder '{path}'", hint="check the path")
    return path


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(folder: Path, *, times: bool) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        facts = path.stat()
        state = f"\0{facts.st_size}\0{facts.st_mtime_ns}" if times else ""
        digest.update(f"{path.relative_to(folder).as_posix()}{state}\n".encode())
    return digest.hexdigest()
