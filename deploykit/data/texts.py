"""Text files, one text a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import InputError


def lines(path: Path) -> tuple[str, ...]:
    """Every line of a UTF-8 file without its line end; a blank line is an empty text, so that line n stays input n."""
    texts = tuple(numbered(path.name, path.read_bytes()))
    if not texts:
        raise InputError(f"'{path.name}' is empty", hint="put one text on each line")
    return texts


def numbered(name: str, data: bytes) -> Iterator[str]:
    """The lines of ``data``, decoded; a line that is not UTF-8 is an `InputError` with its number."""
    whole = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(whole.split(b"\n") if data else (), start=1):
        try:
            yield line.rstrip(b"\r").decode()
        except UnicodeDecodeError as error:
            hint = "save the file as UTF-8; iconv -f latin1 -t utf-8 converts old files"
            raise InputError(f"'{name}' line {number} is not UTF-8 ({error.reason})", hint=hint) from None
