"""What both sides are given."""

from __future__ import annotations

import wave

import numpy as np
import pytest

from deploykit.judge import inputs


def test_texts_are_short_and_long_odd_and_prompted():
    raws = inputs.texts(["one", ""], 50, ["query"])
    plain = [str(raw.value) for raw in raws if raw.prompt is None]
    assert len(set(plain)) == len(plain)
    assert {"one", "", " "} <= set(plain)
    assert max(len(text.split()) for text in plain) > 50
    assert any(text != text.strip() and "\n" in text for text in plain)
    assert [raw.prompt for raw in raws].count("query") >= 3


def test_pictures_come_in_many_forms(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    raws = inputs.images([pixels], tmp_path)
    assert len(raws) >= 24
    with image.open(raws[0].value) as stored:
        np.testing.assert_array_equal(np.asarray(stored), pixels)
    found = set()
    for raw in raws:
        with image.open(raw.value) as picture:
            found |= {picture.mode, picture.format, f"turned {picture.getexif().get(0x0112, 1)}"}
    assert {"RGB", "L", "LA", "RGBA", "P", "CMYK", "PNG", "JPEG", "turned 3", "turned 6", "turned 8"} <= found


def test_sounds_are_waves_inside_the_bounds(tmp_path):
    raws = inputs.sounds([np.ones(3000, np.float32) * 0.5], 8000, (1000, 20_000), tmp_path)
    assert len(raws) >= 20
    lengths, channels = set(), set()
    for raw in raws:
        with wave.open(str(raw.value), "rb") as file:
            assert file.getframerate() == 8000
            lengths.add(file.getnframes())
            channels.add(file.getnchannels())
    assert min(lengths) == 1000
    assert max(lengths) == 20_000
    assert channels == {1, 2}
