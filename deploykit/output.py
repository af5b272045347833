"""Files that commands leave: refused before the work where they could not be written, and replaced in one rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deploykit.errors import InputError, MissingError


def check_output(path: Path, example: str) -> None:
    """Refuse an output that could not be written, before minutes of work are done for nothing.

    ``example`` is a file name to suggest where ``path`` is a folder. `InputError`, or `MissingError` where the folder
    may not be written to.
    """
    if path.is_dir():
        raise InputError(f"the output '{path}' is a folder", hint=f"name a file: {path / example}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder '{path.parent}' to write '{path.name}' into", hint="create it first")
    if not os.access(path.parent, os.W_OK):
        raise MissingError(f"the folder '{path.parent}' cannot be written", hint="choose another folder")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes ``path`` when the block ends well: a reader sees the old file or the whole new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, as `replacing` does."""
    content = text.encode()  # what cannot be encoded fails before there is a file
    with replacing(path) as file:
        file.write(content)
