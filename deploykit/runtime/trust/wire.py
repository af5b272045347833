"""The wire format of protocol buffers, as far as the structure of a model needs it: fields, varints, nothing copied.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from deploykit.runtime.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_MAX_TAG_BYTES = 5


class Fields:
    """Reads messages out of one buffer and counts: a file of a hundred million tiny fields ends in a refusal."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._left = name, most

    def of(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """The fields of one message: number, and an integer or the bytes. `BundleError` where it is no message."""
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise self.fault("holds more parts than any encoder has")
            tag, at = self._varint(data, at, _MAX_TAG_BYTES)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise self.fault("is no ONNX: a field has the number 0")
            if kind == _VARINT:
                value, at = self._varint(data, at, _MAX_VARINT_BYTES)
                yield number, value
                continue
            if kind == _BYTES:
                size, at = self._varint(data, at, _MAX_VARINT_BYTES)
            elif kind in (_FIXED64, _FIXED32):
                size = 8 if kind == _FIXED64 else 4
            else:
                raise self.fault(f"is no ONNX: a field has the wire type {kind}")
            if size > end - at:
                raise self.fault("ends in the middle of a field")
            yield number, data[at : at + size]
            at += size

    def integers(self, value: int | memoryview) -> list[int]:
        """A repeated integer field, one value or packed, as signed 64-bit integers."""
        if isinstance(value, int):
            return [signed(value)]
        found, at = [], 0
        while at < len(value):
            self._left -= 1
            if self._left < 0:
                raise self.fault("holds more parts than any encoder has")
            one, at = self._varint(value, at, _MAX_VARINT_BYTES)
            found.append(signed(one))
        return found

    def text(self, value: int | memoryview) -> str:
        """A string field."""
        if isinstance(value, int):
            raise self.fault("is no ONNX: a name is a number")
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fault("is no ONNX: a name is no UTF-8") from error

    def fault(self, what: str) -> BundleError:
        """The refusal of this file."""
        return refused(self._name, what)

    def _varint(self, data: memoryview, at: int, longest: int) -> tuple[int, int]:
        value = 0
        for index in range(longest):
            if at + index >= len(data):
                raise self.fault("ends in the middle of a field")
            byte = data[at + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, at + index + 1
        raise self.fault("is no ONNX: a number does not end")


def signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def refused(name: str, what: str) -> BundleError:
    """The refusal of the model file ``name``."""
    return BundleError(
        f"the model '{name}' is refused: it {what}",
        hint="do not use this bundle: deploykit writes no such model; fetch it again from where it came, or build it",
    )


def words(text: str) -> frozenset[str]:
    """A set of names, written as one text."""
    return frozenset(text.split())
