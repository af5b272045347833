"""Arrays on disk (``.npy``, ``.npz``): what their headers promise is held against their bytes before numpy makes room.

A header may promise terabytes, an entry of an ``.npz`` may be compressed a thousandfold, and an array of objects is a
pickle. numpy refuses the last; the others end in a process without memory.
"""

from __future__ import annotations

import ast
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from deploykit.runtime.errors import BundleError

MAX_ARRAYS: Final = 4096
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 4096
_KEYS = {"descr", "fortran_order", "shape"}


def check(path: Path) -> None:
    """`BundleError` unless the ``.npy`` or ``.npz`` at ``path`` holds plain numbers, as many as it says."""
    try:
        for name, size, stream in _streams(path):
            if fault := _fault(stream, size):
                raise _refused(path, name + fault)
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise _refused(path, f"it cannot be read: {error}") from error


def _streams(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Each array: how a refusal names it, its size in bytes with the header, and its bytes."""
    if path.suffix != ".npz":
        with path.open("rb") as file:
            yield "it ", path.stat().st_size, file
        return
    with zipfile.ZipFile(path) as packed:
        infos = packed.infolist()
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise _refused(path, f"'{info.filename}' is compressed or encrypted")
        if len(infos) > MAX_ARRAYS or sum(info.file_size for info in infos) > path.stat().st_size:
            raise _refused(path, "it holds too many arrays, or entries that overlap")
        for info in infos:
            with packed.open(info) as stream:
                yield f"'{info.filename}' ", info.file_size, stream


def _refused(path: Path, why: str) -> BundleError:
    return BundleError(f"'{path.name}' is refused: {why}", hint="build the bundle again, or fetch it again")


def _fault(stream: IO[bytes], size: int) -> str:
    """What is wrong with one array in numpy's format (numpy.lib.format), or nothing."""
    head = stream.read(8)
    if len(head) < 8 or head[:6] != _MAGIC or head[6] not in (1, 2, 3):
        return "is no array"
    width = 2 if head[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        return f"has a header of {length} bytes"
    try:
        header = ast.literal_eval(stream.read(length).decode("utf-8").strip())
        if not isinstance(header, dict) or header.keys() != _KEYS or not isinstance(header["descr"], str):
            return "has a header that is none of plain numbers"
        dtype, shape = np.dtype(header["descr"]), header["shape"]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, UnicodeDecodeError):
        return "has a header that cannot be read"
    if dtype.kind not in "biufc":
        return f"holds {dtype}, not numbers: numpy would have to unpickle it"
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        return f"has the shape {shape}"
    if math.prod(shape) * dtype.itemsize != size - 8 - width - length:
        return f"says that its shape is {list(shape)}, and has {size - 8 - width - length} bytes"
    return ""
