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
    if spec.startswith("builtin:"):
        return spec
    path, _ = data.split(spec)
    if path.is_dir():
        return _listing(path)
    if not path.exists():
        data.read(spec)  # it knows what is near
        raise InputError(f"there is no file or folder '{path}'", hint="check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
