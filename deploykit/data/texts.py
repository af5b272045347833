"""Text files, one text a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import InputError

_HEAD = 64
"""Bytes from which UTF-16 is told: in that many of an English text every second one is NUL."""


def lines(path: Path) -> tuple[str, ...]:
    """Every line of a UTF-8 file without its line end; a blank line is an empty text, so that line n stays input n."""
    texts = tuple(numbered(path.name, path.read_bytes()))
    if not texts:
        raise InputError(f"'{path.name}' is empty", hint="put one text on each line")
    return texts


def numbered(name: str, data: bytes) -> Iterator[str]:
    """The lines of ``data``, decoded; a line that is not UTF-8 is an `InputError` with its number."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    _refuse_other_systems(name, data)
    whole = data.removesuffix(b"\n")
    for number, line in enumerate(whole.split(b"\n") if data else (), start=1):
        try:
            yield line.rstrip(b"\r").decode()
        except UnicodeDecodeError as error:
            hint = "save the file as UTF-8; iconv -f latin1 -t utf-8 converts old files"
            raise InputError(f"'{name}' line {number} is not UTF-8 ({error.reason})", hint=hint) from None


def _refuse_other_systems(name: str, data: bytes) -> None:
    """What would decode and yet be misread: plain letters in UTF-16 are UTF-8 with NULs, and a file may be one line."""
    head = data[:_HEAD]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) > 1 and not (any(head[::2]) and any(head[1::2]))):
        raise InputError(f"'{name}' is UTF-16", hint=f"convert it: iconv -f utf-16 -t utf-8 {name}")
    if b"\n" not in data and b"\r" in data.rstrip(b"\r"):
        fact = f"'{name}' ends its lines with carriage returns alone"
        raise InputError(fact, hint=f"convert it: tr '\\r' '\\n' < {name}")
