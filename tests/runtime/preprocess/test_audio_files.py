"""Sound files: read as libsndfile reads them, and resampled as soxr does, with which transformers loads sound."""

import io
import struct
import sys

import numpy as np
import pytest

from deploykit.runtime.errors import InputError, MissingError
from deploykit.runtime.preprocess.audio import load
from deploykit.runtime.preprocess.resample import resample

RATE = 16000
PCM = (np.random.default_rng(0).standard_normal(3001) * 6000).astype("<i2").tobytes()


def chunk(name, data):
    return struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)


def riff(*chunks, tag=b"RIFF"):
    body = b"".join(chunks)
    return tag + struct.pack("<I", len(body) + 4) + b"WAVE" + body


def fmt(code=1, channels=1, bits=16, block=None, valid=None):
    block = block or bits // 8 * channels
    head = struct.pack("<HHIIHH", 0xFFFE if valid else code, channels, RATE, RATE * block, block, bits)
    extension = b"" if valid is None else struct.pack("<HHIH14x", 22, valid, 0, code)
    guid = bytes.fromhex("000000001000800000aa00389b71")
    return chunk(b"fmt ", head + extension.removesuffix(bytes(14)) + (guid if valid else b""))


def small(factor):
    """Integers of 32 bits that need no more than 24."""
    return (np.frombuffer(PCM, "<i2").astype("<i4") * factor).tobytes()


def unsized(size):
    return riff(fmt(), struct.pack("<4sI", b"data", size) + PCM)


def rf64():
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, len(PCM), len(PCM) // 2, 0))
    return riff(ds64, fmt(), struct.pack("<4sI", b"data", 0xFFFFFFFF) + PCM, chunk(b"LIST", b"odd"), tag=b"RF64")


WAVS = {
    "24 valid bits of 32": lambda: riff(fmt(bits=32, valid=24), chunk(b"data", 4 * PCM)),
    "20 valid bits of 24": lambda: riff(fmt(bits=24, valid=20), chunk(b"data", 3 * PCM)),
    "float beyond 1": lambda: riff(fmt(code=3, bits=32), chunk(b"data", np.linspace(-3, 3, 99, dtype="<f4").tobytes())),
    "10 channels": lambda: riff(fmt(channels=10), chunk(b"data", PCM[:6000])),
    "half a sample at the end": lambda: riff(fmt(), chunk(b"data", PCM[:-1])),
    "tags before": lambda: riff(fmt(), chunk(b"LIST", b"INFOx"), chunk(b"data", PCM)),
    "tags behind": lambda: riff(fmt(), chunk(b"data", PCM), chunk(b"LIST", b"INFOx")),
    "tags behind, unpadded": lambda: riff(fmt(bits=8), chunk(b"data", PCM[:3001])[:-1], chunk(b"LIST", b"INFOx")),
    "foreign bytes behind": lambda: riff(fmt(), chunk(b"data", PCM)) + b"ID3\3\0\0\0\0\x7f\x7f and so on",
    "last chunk cut off": lambda: riff(fmt(), chunk(b"data", PCM), struct.pack("<4sI", b"LIST", 1000) + b"abc"),
    "to a pipe, by sox": lambda: unsized(0x7FFFF000),
    "to a pipe, by ffmpeg": lambda: unsized(0xFFFFFFFF),
    "to a pipe, largest size that fits": lambda: unsized(0xFFFFFFFF - 36),
    "RF64": rf64,
}  # fmt: skip
OTHERS = {
    "24 bits in 4 bytes": lambda: riff(fmt(bits=24, block=4), chunk(b"data", small(2**8))),
    "12 bits in 2 bytes": lambda: riff(fmt(bits=12, block=2), chunk(b"data", PCM)),
    "20 bits in 3 bytes": lambda: riff(fmt(bits=20, block=3), chunk(b"data", 3 * PCM)),
    "A-law": lambda: riff(fmt(code=6, bits=8), chunk(b"data", PCM)),
    "mu-law": lambda: riff(fmt(code=7, bits=8), chunk(b"data", PCM)),
    **{f"{form}, {channels} channels": lambda form=form, channels=channels: written(*form, channels)
       for form in (("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", None), ("AIFF", "PCM_16"), ("W64", "PCM_16"))
       for channels in (1, 2)},
}  # fmt: skip


def written(kind, subtype, channels):
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, (4000, channels))
    buffer = io.BytesIO()
    pytest.importorskip("soundfile").write(buffer, samples, RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [*WAVS, *OTHERS])
def test_files_are_read_as_libsndfile_reads_them(name, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    path = tmp_path / "sound"
    path.write_bytes({**WAVS, **OTHERS}[name]())
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert rate == RATE
    np.testing.assert_allclose(load(path, "it", RATE), samples.mean(axis=1), atol=2e-7)


@pytest.mark.parametrize("name", WAVS)
def test_wavs_are_read_without_soundfile(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert load(WAVS[name](), "it", RATE).size > 90


@pytest.mark.parametrize("name", ["24 bits in 4 bytes", "12 bits in 2 bytes", "20 bits in 3 bytes", "A-law", "mu-law"])
def test_other_kinds_of_samples_need_soundfile(name, monkeypatch):
    sound = OTHERS[name]()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingError, match=r"it holds samples of format \d with \d+ bits") as caught:
        load(sound, "it", RATE)
    assert "16 bits" in caught.value.hint


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (riff(fmt(), chunk(b"data", PCM))[:-1000], "cut off: 6002 bytes are stated and 5002 are there"),
        (rf64()[:-1000], "cut off: 6002 bytes are stated"),
        (riff(fmt(), struct.pack("<4sI", b"data", 0) + PCM), "holds no samples"),
        (riff(fmt(), chunk(b"data", PCM[:2000]), chunk(b"data", PCM[2000:])), "several parts"),
        (riff(fmt(code=3, bits=64), chunk(b"data", np.full(9, 1e300).tobytes())), "infinite"),
    ],
)
def test_damaged_files_are_refused(sound, message):
    with pytest.raises(InputError, match=message):
        load(sound, "it", RATE)


def test_a_flac_that_is_cut_off_is_refused_by_its_name(tmp_path):
    path = tmp_path / "cut off.flac"
    path.write_bytes(written("FLAC", "PCM_16", 1)[:-500])
    with pytest.raises(InputError, match=r"cut off.flac' cannot be decoded"):
        load(path, f"audio '{path}'", RATE)


def test_a_long_sound_is_refused_before_it_is_decoded(monkeypatch):
    soundfile = pytest.importorskip("soundfile")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(3601 * 8, np.int16), 8, format="FLAC")
    monkeypatch.setattr(soundfile, "read", None)
    with pytest.raises(InputError, match="lasts 3,601 s"):
        load(buffer.getvalue(), "it", RATE)


@pytest.mark.parametrize("rates", [(8000, 16000), (44100, 16000), (48000, 44100)])
@pytest.mark.parametrize(
    ("share", "gain"), [(0.9, 1.0), (0.92, 0.9998), (0.94, 0.9254), (0.957, 0.4957), (0.97, 0.1328), (0.99, 0.0011)]
)
def test_the_response_at_the_edge_of_the_band_is_that_of_soxr(rates, share, gain):
    rate, target = rates
    hertz = share * min(rates) / 2
    result = resample(np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32), rate, target)[2000:-2000]
    window = np.hanning(result.size)
    turn = np.exp(-2j * np.pi * hertz * np.arange(result.size) / target)
    assert abs(2 * np.abs(turn @ (result * window)) / window.sum() - gain) < 3e-3


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_files_of_other_rates_are_loaded_as_transformers_loads_them(rate, tmp_path):
    pytest.importorskip("soxr")
    audio_utils = pytest.importorskip("transformers.audio_utils")
    noise = np.random.default_rng(rate).standard_normal((rate, 2)).astype(np.float32) * 0.2
    path = tmp_path / "noise.wav"
    pytest.importorskip("soundfile").write(path, noise, rate, subtype="FLOAT")
    expected = audio_utils.load_audio(str(path), RATE, backend="soundfile")
    loaded = load(path, "it", RATE)
    assert loaded.shape == expected.shape
    assert loaded @ expected / np.linalg.norm(loaded) / np.linalg.norm(expected) > 0.99999
