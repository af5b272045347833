"""Waveforms from files: RIFF/WAVE and RF64 by hand, everything else through the optional ``soundfile`` package.

What is matched is libsndfile, with which transformers and librosa read files. The standard library's ``wave`` reads no
float samples and, before Python 3.12, no extensible headers.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np

from deploykit.runtime.errors import InputError, MissingError
from deploykit.runtime.install import pip_install

# No encoder here hears an hour at once; decoding, resampling and spectra of more fill the memory of a small device.
MAX_SECONDS = 3600
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_UNKNOWN_SIZE = 0x7FFF0000
"""Bytes. Programs that write to a pipe state a size from here on: ffmpeg 0xFFFFFFFF, sox 0x7FFFF000."""

_UNKNOWN_SECONDS = 1e12
"""libsndfile counts the frames of a stream that does not state them as the largest whole number."""


@dataclass(frozen=True)
class _Format:
    """The ``fmt`` chunk: ``block`` is the bytes of one sample of all channels."""

    code: int
    channels: int
    rate: int
    block: int
    bits: int

    @property
    def read_here(self) -> bool:
        """Whether samples fill their bytes and are of a kind that numpy reads; others are left to libsndfile."""
        return self.bits in _BITS.get(self.code, ()) and self.block == self.bits // 8 * self.channels


def read_audio(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """Samples float32 [frames, channels] in -1…1 and the rate in Hz; ``where`` names the input in errors."""
    if not data:
        raise InputError(f"{where} is empty", hint="the file has 0 bytes: fetch or record it again")
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return read_wav(data, where)
    return _with_soundfile(data, where, "is no .wav")


def read_wav(data: bytes, where: str) -> tuple[np.ndarray, int]:
    """Like `read_audio`, for RIFF/WAVE and RF64 alone."""
    chunks = _chunks(data, where)
    if len(chunks.get(b"fmt ", b"")) < 16 or b"data" not in chunks:
        raise InputError(f"{where} has no format or no data", hint="the .wav file is damaged: fetch or record it again")
    found = _format(chunks[b"fmt "])
    if found.channels < 1 or found.rate < 1:
        raise InputError(
            f"{where} states {found.channels} channels at {found.rate} Hz",
            hint="the header of the .wav file is damaged",
        )
    if not found.read_here:
        what = f"holds samples of format {found.code} with {found.bits} bits in blocks of {found.block} bytes"
        return _with_soundfile(data, where, what)
    body = chunks[b"data"]
    body = body[: len(body) - len(body) % found.block]
    return _samples(body, found).reshape(-1, found.channels), found.rate


def _format(chunk: bytes) -> _Format:
    code, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if code == _EXTENSIBLE and len(chunk) >= 26:
        code = struct.unpack_from("<H", chunk, 24)[0]
    return _Format(code, channels, rate, block, bits)


def _with_soundfile(data: bytes, where: str, what: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ModuleNotFoundError, OSError) as error:  # OSError: the package is there, its C library is not
        hint = f"convert it to .wav of 16 bits, or {pip_install('audio')}"
        raise MissingError(f"{where} {what}, and soundfile, which reads it, is missing", hint=hint) from error
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            if MAX_SECONDS < file.frames / rate < _UNKNOWN_SECONDS:
                hint = f"cut it into parts of {MAX_SECONDS:,} s at most"
                raise InputError(f"{where} lasts {file.frames / rate:,.0f} s", hint=hint)
        return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0], rate
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"{where} cannot be decoded: {error}", hint="is it an audio file? convert it to .wav of 16 bits"
        ) from error


def _chunks(data: bytes, where: str) -> dict[bytes, bytes]:
    """The chunks by name. What stands behind the sound (tags, a chunk that is cut off) is not needed; the sound is."""
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        position += 8
        have = len(data) - position
        if name == b"data":
            size = _data_size(size, have, chunks.get(b"ds64", b""))
        if size > have:
            if name != b"data" and b"data" in chunks:
                break
            raise InputError(f"{where} is cut off: {size} bytes are stated and {have} are there", hint="fetch it again")
        if name == b"data" and name in chunks:
            raise InputError(f"{where} has its sound in several parts", hint="convert it to a .wav with one data chunk")
        chunks.setdefault(name, data[position : position + size])
        position += size + size % 2
    return chunks


def _data_size(stated: int, have: int, ds64: bytes) -> int:
    """Bytes of sound: RF64 states them in a chunk of its own, and a file written to a pipe does not know them."""
    if stated == 0xFFFFFFFF and len(ds64) >= 16:
        stated = int(struct.unpack_from("<Q", ds64, 8)[0])
        return stated if 0 < stated < 2**63 else have
    return have if stated >= _UNKNOWN_SIZE and stated > have else stated


def _samples(body: bytes, found: _Format) -> np.ndarray:
    """Raw bytes to float32 in -1…1, channels still interleaved."""
    bits = found.bits
    if found.code == _FLOAT:
        with np.errstate(over="ignore"):  # infinite samples are refused by whoever uses them
            return np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
    if bits == 8:
        return (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:
        # Put each 3-byte sample into the upper bytes of an int32: the sign comes out right by itself.
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        samples: np.ndarray = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
        return samples
    return np.frombuffer(body, f"<i{bits // 8}").astype(np.float32) / np.float32(2.0 ** (bits - 1))
