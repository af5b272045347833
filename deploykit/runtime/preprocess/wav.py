"""Waveforms from files: RIFF/WAVE by hand, everything else through the optional ``soundfile`` package.

The standard library's ``wave`` reads no float samples and, before Python 3.12, no extensible headers.
"""

from __future__ import annotations

import io
import struct

import numpy as np

from deploykit.runtime.errors import InputError, MissingError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF
_FORMATS = "PCM of 8, 16, 24 or 32 bits and float of 32 or 64 bits are read"


def read_audio(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """Samples float32 [frames, channels] in -1…1 and the rate in Hz; ``where`` names the input in errors."""
    if not data:
        raise InputError(f"{where} is empty", hint="the file has 0 bytes: fetch or record it again")
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return read_wav(data, where)
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:  # OSError: the package is there, its C library is not
        hint = 'convert it to .wav, or pip install "deploykit[audio]"'
        raise MissingError(
            f"{where} is no .wav, and soundfile, which reads other formats, is missing", hint=hint
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"{where} cannot be decoded: {error}", hint="is it an audio file? convert it to .wav"
        ) from error
    return samples, int(rate)


def read_wav(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """Like `read_audio`, for RIFF/WAVE alone."""
    chunks = _chunks(data, where)
    if len(chunks.get(b"fmt ", b"")) < 16 or b"data" not in chunks:
        raise InputError(f"{where} has no format or no data", hint="the .wav file is damaged: fetch or record it again")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if code == _EXTENSIBLE and len(chunks[b"fmt "]) >= 26:
        code = struct.unpack_from("<H", chunks[b"fmt "], 24)[0]
    if channels < 1 or rate < 1:
        raise InputError(
            f"{where} states {channels} channels at {rate} Hz", hint="the header of the .wav file is damaged"
        )
    body = chunks[b"data"]
    width = bits // 8 * channels
    if width and len(body) % width:
        body = body[: len(body) - len(body) % width]
    return _samples(body, code, bits, where).reshape(-1, channels), rate


def _chunks(data: bytes, where: str) -> dict[bytes, bytes]:
    """The chunks by name; the size of the data chunk may be unknown (written to a pipe), never too large."""
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        if name == b"data" and size == _UNKNOWN_SIZE:
            size = len(data) - position
        if position + size > len(data):
            have = len(data) - position
            raise InputError(f"{where} is cut off: {size} bytes are stated and {have} are there", hint="fetch it again")
        chunks.setdefault(name, data[position : position + size])
        position += size + size % 2
    return chunks


def _samples(body: bytes, code: int, bits: int, where: str) -> np.ndarray:
    """Raw bytes to float32 in -1…1, channels still interleaved."""
    if code == _FLOAT and bits in (32, 64):
        return np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
    if code == _PCM and bits == 8:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if code == _PCM and bits in (16, 32):
        return np.frombuffer(body, f"<i{bits // 8}").astype(np.float32) / np.float32(2.0 ** (bits - 1))
    if code == _PCM and bits == 24:
        # Put each 3-byte sample into the upper bytes of an int32: the sign comes out right by itself.
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        samples: np.ndarray = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
        return samples
    raise InputError(f"{where} holds samples of format {code} with {bits} bits", hint=_FORMATS + ": convert it")
