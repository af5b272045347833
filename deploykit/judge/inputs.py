"""The raw inputs that both sides get: what people really hand over, odd forms of it among them."""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.data import builtin
from deploykit.judge import Raw

TEXTS = (
    "",
    " ",
    "a",
    "Hello, World!",
    "  leading and trailing blanks  ",
    "first line\nsecond line\n\nfourth line\n",
    "tabs\tand  two blanks\r\nand a carriage return",
    "IT'S UPPER CASE, isn't it?",
    "café, cafe\u0301, naïve, Straße, İstanbul",
    "ﬁne ligatures and ＦＵＬＬ ｗｉｄｔｈ",
    "東京で会いましょう。今天天气很好",
    "мама мыла раму; مرحبا بالعالم; שלום",
    "emoji 👩‍👩‍👧 and zero\u200bwidth",
    "[CLS] special [SEP] tokens [MASK] </s> <pad> inside",
    "https://example.com/a?b=c&d=%20#e",
    "1234567890 3.14159 -7 1e-5 ½",
    "cat dog river house sat mat " * 3,
)
"""Short and empty ones, blanks and line ends, scripts, and what tokenizers take for something else."""

_PROMPTED = ("what is a river", "  The big red house.\n", "")
_MOST_PROMPTS = 8
_LONGEST = 2048
"""Words of the long text at most: its point is where it is cut, and attention grows with the square of the length."""

# (width, height), mode, suffix, how it is turned (EXIF orientation).
PICTURES = (
    ((320, 240), "RGB", "jpg", 1),
    ((240, 320), "RGB", "jpg", 1),
    ((224, 224), "RGB", "png", 1),
    ((64, 64), "RGB", "png", 1),
    ((33, 47), "RGB", "png", 1),
    ((401, 100), "RGB", "jpg", 1),
    ((100, 399), "RGB", "png", 1),
    ((640, 480), "RGB", "jpg", 1),
    ((31, 31), "RGB", "jpg", 1),
    ((257, 255), "RGB", "webp", 1),
    ((200, 150), "L", "png", 1),
    ((150, 200), "L", "jpg", 1),
    ((120, 160), "LA", "png", 1),
    ((160, 120), "RGBA", "png", 1),
    ((90, 140), "RGBA", "webp", 1),
    ((180, 130), "P", "png", 1),
    ((130, 180), "P-transparent", "png", 1),
    ((140, 90), "1", "png", 1),
    ((110, 170), "CMYK", "jpg", 1),
    ((300, 200), "RGB", "jpg", 3),
    ((300, 200), "RGB", "jpg", 6),
    ((200, 260), "RGB", "png", 8),
    ((210, 140), "L", "jpg", 5),
)
_ORIENTATION = 0x0112
_TONES = 15


def texts(selftest: Sequence[str], longest: int, prompts: Sequence[str]) -> list[Raw]:
    """The self-test's texts, `TEXTS`, one that is longer than ``longest`` tokens, and some with each prompt."""
    sentences = builtin.sentences().inputs
    words: list[str] = []
    for sentence in sentences:
        words += str(sentence).split()
    many = min(longest + 16, _LONGEST)
    long = " ".join(np.resize(np.array(words), many).tolist())
    distinct = dict.fromkeys((*selftest, *TEXTS, long))
    raws = [Raw(f"text {i} {_shown(text)}", text) for i, text in enumerate(distinct)]
    for name in list(prompts)[:_MOST_PROMPTS]:
        raws += [Raw(f"text {_shown(text)} with the prompt '{name}'", text, name) for text in _PROMPTED]
    return raws


def images(selftest: Sequence[np.ndarray], folder: Path) -> list[Raw]:
    """The self-test's pictures as PNG, and `PICTURES` in their formats, written below ``folder``."""
    from PIL import Image

    raws = []
    for i, array in enumerate(selftest):
        path = folder / f"selftest-{i}.png"
        Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array).save(path)
        raws.append(Raw(path.name, path))
    arrays = builtin.images().inputs
    for i, (size, mode, suffix, turned) in enumerate(PICTURES):
        named = f"{i:02}-{mode.lower()}-{size[0]}x{size[1]}" + (f"-turned-{turned}" if turned != 1 else "")
        path = folder / f"{named}.{suffix}"
        exif = Image.Exif()
        exif[_ORIENTATION] = turned
        picture = _in_mode(Image.fromarray(arrays[(i + 5) % len(arrays)]).resize(size), mode)
        picture.save(path, **({"exif": exif} if turned != 1 else {}), **_transparency(mode))
        raws.append(Raw(path.name, path))
    return raws


def sounds(selftest: Sequence[np.ndarray], rate: int, bounds: tuple[int, int], folder: Path) -> list[Raw]:
    """The self-test's sounds and others as .wav of ``rate`` Hz: short and long, quiet and loud, one in stereo.

    ``bounds`` are the fewest and the most samples that the encoder takes.
    """
    low, high = bounds
    made: list[tuple[str, np.ndarray]] = [(f"selftest-{i}", np.asarray(sound)) for i, sound in enumerate(selftest)]
    tones = [np.asarray(tone) for tone in builtin.tones().inputs[4 : 4 + _TONES]]
    made += [(f"tone-{i}", tone) for i, tone in enumerate(tones)]
    made += [
        ("shortest", tones[0][: max(low, rate // 20)]),
        ("quiet", tones[1] * 0.002),
        ("loud", np.clip(tones[2] * 8, -1, 1)),
        ("silent", np.zeros(rate)),
        ("long", np.resize(tones[3], min(high, 12 * rate))),
        ("stereo", np.stack([tones[4], 0.3 * np.roll(tones[4], 40)], axis=1)),
    ]
    raws = []
    for i, (name, samples) in enumerate(made):
        path = folder / f"{i:02}-{name}.wav"
        _write_wav(path, _within(samples, low, high), rate)
        raws.append(Raw(path.name, path))
    return raws


def of_selftest(modality: str, folder: Path) -> list[Any]:
    """The raw inputs that the export wrote for the self-test."""
    import json

    if modality == "text":
        listed: list[Any] = json.loads((folder / "selftest/inputs.json").read_text(encoding="utf-8"))
        return listed
    with np.load(folder / "selftest/inputs.npz", allow_pickle=False) as arrays:
        return [arrays[name] for name in sorted(arrays.files)]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 32 else text[:31] + "…")


def _in_mode(picture: Any, mode: str) -> Any:
    """An RGB picture in another mode, with a hole in it where the mode has alpha."""
    from PIL import Image

    if mode == "P-transparent":  # a palette with a transparent colour, as web pages have it
        return picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    if mode in ("RGBA", "LA"):
        picture = picture.convert(mode)
        width, height = picture.size
        ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
        picture.putalpha(Image.fromarray(np.ascontiguousarray(ramp)))
        return picture
    return picture.convert(mode)


def _transparency(mode: str) -> Mapping[str, Any]:
    return {"transparency": 3} if mode == "P-transparent" else {}


def _within(samples: np.ndarray, low: int, high: int) -> np.ndarray:
    count = min(max(len(samples), low), high)
    return np.resize(samples, (count, *samples.shape[1:])) if count > len(samples) else samples[:count]


def _write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(np.round(samples * 32767.0), -32768, 32767).astype("<i2").tobytes())
