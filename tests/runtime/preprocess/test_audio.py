"""Audio preprocessing on the device: decoding, resampling, waveforms and log-mel features."""

import struct
import sys

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec, to_json
from deploykit.runtime.preprocess import open_preprocessor
from deploykit.runtime.preprocess.audio import load
from deploykit.runtime.preprocess.logmel import LogMel, log_mel, mel_filters
from deploykit.runtime.preprocess.resample import resample
from deploykit.runtime.preprocess.wav import read_wav

RNG = np.random.default_rng(3)
VALUES = TensorSpec("input_values", "float32", ("batch", "samples"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "samples"))
MEL = LogMel(bins=8, frames=20, hop=160, window=400, fft=400, samples=3200, dynamic_range=8.0, mean=-4.0, std=4.0)


def make(*inputs, axes=None, **options):
    embedding = Embedding("embedding", 4, "mean", False)
    preprocess = {"kind": "audio", "sampling_rate": 16000, **options}
    return open_preprocessor(
        Card("w2v", "audio", inputs or (VALUES,), (), embedding, preprocess, Limits(axes or {})), None
    )


def waveform(sound, **options):
    return make(**options).items([sound])[0].tensors["input_values"]


def tone(hertz, rate, seconds=0.5):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def wav(samples, rate=16000, code=1, bits=16, channels=1, extensible=False):
    if code == 3:
        body = samples.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        body = np.round(samples * 128 + 128).clip(0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.round(samples.astype(np.float64) * 2 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        body = whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    width = bits // 8 * channels
    header = struct.pack("<HHIIHH", 0xFFFE if extensible else code, channels, rate, rate * width, width, bits)
    if extensible:
        header += struct.pack("<HHIH14x", 22, bits, 0, code)
    chunks = b"".join(
        struct.pack("<4sI", name, len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in ((b"fmt ", header), (b"LIST", b"odd"), (b"data", body))
    )
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


@pytest.mark.parametrize(
    ("code", "bits", "tolerance"), [(1, 8, 1e-2), (1, 16, 1e-4), (1, 24, 1e-6), (1, 32, 1e-6), (3, 32, 0), (3, 64, 0)]
)
@pytest.mark.parametrize("extensible", [False, True])
def test_every_wav_format_is_read(code, bits, tolerance, extensible):
    samples = RNG.uniform(-0.9, 0.9, 101).astype(np.float32)
    decoded, rate = read_wav(wav(samples, 8000, code, bits, extensible=extensible), "x")
    assert rate == 8000
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded[:, 0], samples, atol=tolerance)


def test_path_bytes_and_arrays_agree(tmp_path):
    samples = (RNG.integers(-(2**15), 2**15, 500)).astype(np.int16)
    floats = samples.astype(np.float32) / 2**15
    (tmp_path / "a.wav").write_bytes(wav(floats))
    forms = [floats, floats.astype(np.float64), floats.tolist(), samples, (samples, 16000), wav(floats)]
    for form in [*forms, tmp_path / "a.wav", str(tmp_path / "a.wav")]:
        np.testing.assert_array_equal(waveform(form), floats)


def test_stereo_is_averaged_whichever_axis_holds_the_channels():
    stereo = RNG.uniform(-1, 1, (300, 2)).astype(np.float32)
    expected = stereo.mean(axis=1)
    np.testing.assert_allclose(waveform(stereo), expected, atol=1e-6)
    np.testing.assert_allclose(waveform(stereo.T), expected, atol=1e-6)
    np.testing.assert_allclose(waveform(wav(stereo.reshape(-1), channels=2)), expected, atol=1e-4)


@pytest.mark.parametrize("rates", [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 48000), (11025, 16000)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_resampling_keeps_a_tone_below_the_lower_nyquist_frequency(rates, share):
    rate, target = rates
    hertz = share * min(rates) / 2
    result = resample(tone(hertz, rate), rate, target)
    expected = np.sin(2 * np.pi * hertz * np.arange(result.size) / target)
    middle = slice(result.size // 4, -result.size // 4)
    assert result.size == -(-int(rate * 0.5) * target // rate)
    assert np.abs(result[middle] - expected[middle]).max() < 3e-5


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    result = resample(tone(9000, 44100), 44100, 16000)
    assert np.abs(result[2000:-2000]).max() < 3e-5


def test_a_rate_beside_the_array_is_resampled():
    assert waveform((tone(440, 8000), 8000)).size == 8000
    assert waveform(wav(tone(440, 8000), 8000)).size == 8000


def test_normalised_waveforms_have_zero_mean_and_unit_variance():
    result = waveform(RNG.uniform(0, 1, 4000).astype(np.float32), normalize=True)
    assert abs(result.mean()) < 1e-5
    assert abs(result.var() - 1) < 1e-4


def test_silence_normalises_to_zeros():
    assert not waveform(np.zeros(1000, np.float32), normalize=True).any()
    assert not waveform(np.full(1000, 0.25, np.float32), normalize=True).any()


def test_waveforms_are_padded_and_masked():
    preprocessor = make(VALUES, MASK, padding_value=-1.0)
    feeds = preprocessor.collate(preprocessor.items([np.ones(2, np.float32), np.ones(3, np.float32)]))
    assert feeds["input_values"].tolist() == [[1, 1, -1], [1, 1, 1]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert feeds["attention_mask"].dtype == np.int64


def test_no_mask_is_made_for_an_encoder_that_takes_none():
    preprocessor = make()
    assert list(preprocessor.collate(preprocessor.items([np.ones(2, np.float32)]))) == ["input_values"]


def test_features_have_a_fixed_shape_whatever_the_length():
    preprocessor = make(TensorSpec("input_features", "float32", ("batch", 8, 20)), mel=to_json(MEL))
    items = preprocessor.items([tone(440, 16000, seconds) for seconds in (0.0001, 0.1, 0.2, 3.0)])
    assert preprocessor.collate(items)["input_features"].shape == (4, 8, 20)
    assert {item.cost for item in items} == {3200}


def test_silent_features_are_finite_and_even():
    features = log_mel(np.zeros(3200, np.float32), 16000, MEL)
    assert np.array_equal(features, np.full((8, 20), -1.5, np.float32))


def test_short_sounds_give_the_features_of_the_same_sound_with_silence_after_it():
    short = RNG.uniform(-1, 1, 700).astype(np.float32)
    padded = np.concatenate([short, np.zeros(2500, np.float32)])
    np.testing.assert_allclose(log_mel(short, 16000, MEL), log_mel(padded, 16000, MEL), atol=1e-6)


@pytest.mark.parametrize("area_norm", [False, True])
@pytest.mark.parametrize("scale", ["slaney", "htk", "kaldi"])
def test_mel_filters_are_those_of_transformers(scale, area_norm):
    audio_utils = pytest.importorskip("transformers.audio_utils")
    spec = LogMel(
        bins=40, frames=1, hop=160, window=400, fft=512, scale=scale, area_norm=area_norm, low_hz=20.0, high_hz=7600.0
    )
    kaldi, norm = scale == "kaldi", "slaney" if area_norm else None
    expected = audio_utils.mel_filter_bank(257, 40, 20.0, 7600.0, 16000, norm, scale, triangularize_in_mel_space=kaldi)
    if not (kaldi and area_norm):  # there the reference divides by mel widths, a combination that nobody uses
        np.testing.assert_allclose(mel_filters(16000, spec), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros(0, np.float32), "holds no samples"),
        (wav(np.zeros(0, np.float32)), "holds no samples"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
        (np.array([0.0, np.inf], np.float32), "infinite"),
        (np.zeros((20, 30), np.float32), r"shape \[20, 30\]"),
        (np.zeros((2, 3), np.float32), r"shape \[2, 3\]"),
        (np.float32(1.0), r"shape \[\]"),
        (np.zeros(5, complex), "complex128"),
        ("", "cannot be read"),
        ("none.wav", "audio 'none.wav' does not exist"),
        (b"", "is empty"),
        (wav(np.zeros(100, np.float32))[:-20], "cut off: 200 bytes are stated and 180 are there"),
        (wav(np.zeros(100, np.float32))[:40], "no format or no data"),
        ((np.zeros(5, np.float32), 0), "sampling rate 0"),
        ((np.zeros(5, np.float32), 8000.5), "sampling rate 8000.5"),
    ],
)
def test_unusable_sounds_are_refused(sound, message):
    with pytest.raises(InputError, match=message):
        waveform(sound)


def test_a_wav_of_fewer_samples_than_channels_is_mixed_over_the_channels():
    np.testing.assert_allclose(waveform(wav(np.array([0.5, 0.25], np.float32), channels=2)), [0.375], atol=1e-4)


def test_a_wav_of_unknown_length_is_read_to_its_end():
    data = bytearray(wav(np.ones(50, np.float32)))
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert read_wav(bytes(data), "x")[0].shape == (50, 1)


def test_lengths_outside_the_proven_bounds_are_refused():
    axes = {"samples": (400, 32000)}
    with pytest.raises(InputError, match=r"lasts 3 s, and this encoder takes 2 s at most"):
        waveform(np.ones(48000, np.float32), axes=axes)
    with pytest.raises(InputError, match="or more"):
        waveform(np.ones(399, np.float32), axes=axes)


def test_a_sound_without_one_frame_is_refused():
    spec = LogMel(bins=8, frames=20, hop=160, window=400, fft=512, center=False)
    preprocessor = make(TensorSpec("input_values", "float32", ("batch", 8, 20)), mel=to_json(spec))
    with pytest.raises(InputError, match=r"lasts 0.024938 s, and this encoder takes 0.025 s or more"):
        preprocessor.items([np.ones(399, np.float32)])


def test_other_formats_need_soundfile(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingError, match="soundfile") as caught:
        waveform(b"fLaC and so on")
    assert 'pip install "soundfile>=' in caught.value.hint


def test_wrong_options_and_prompts_are_refused():
    with pytest.raises(BundleError, match="sampling_rate"):
        make(sampling_rate=0)
    with pytest.raises(BundleError, match="'speed'"):
        make(speed=2)
    with pytest.raises(InputError, match="no prompts"):
        make().items([], kind="query")


@pytest.mark.parametrize("sound", [np.zeros(3601 * 10, np.int16), np.zeros((2, 3601 * 10), np.uint8)])
def test_more_than_an_hour_is_refused_before_anything_is_computed(sound):
    with pytest.raises(InputError, match=r"audio 0 lasts 3,601 s") as caught:
        load((sound, 10), "audio 0", 16000)
    assert "3,600 s" in caught.value.hint
    assert load((sound[..., : 10 * 5], 10), "audio 0", 20).size == 100
