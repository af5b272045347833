"""Rarer architectures of every modality, with processors of their own kind, from the folders of the coverage sweep."""

from __future__ import annotations

from pathlib import Path

from benchmarks.coverage_models import save
from benchmarks.coverage_more import EVERY
from benchmarks.strangers_audio import judged as judged_sounds
from benchmarks.strangers_images import judged as judged_pictures
from benchmarks.strangers_kit import SHORT, TEXTS, Call, Case, Rows, by_transformers, unit

ROWS = Rows("architectures")
_BOTH = ("the cat sat on the mat", "a big red dog runs in the house of the cat and the dog", *SHORT[3:], TEXTS[7])


def _text(name: str, pooling: str = "mean", *options: str) -> None:
    def make(place: Path) -> Case:
        folder = save(EVERY[name], place / name)
        rows = by_transformers(folder, _BOTH, pooling)
        return Case(folder, (Call(_BOTH, unit(rows) if "--normalize" in options else rows),), options)

    ROWS.add(name, make)


for _name in ("big-bird-block-sparse", "canine", "convbert", "ernie", "eurobert", "fnet", "luke", "mobilebert"):
    _text(_name)
for _name in ("nystromformer", "rembert", "roformer", "squeezebert", "xlm", "xmod", "deberta", "ibert"):
    _text(_name)
for _name in ("gpt2", "mixtral", "llama"):
    _text(_name, "last", "--pooling", "last", "--normalize")


def _encoder_half(name: str) -> None:
    """The encoder of an encoder-decoder, as its own ``get_encoder`` gives it."""

    def make(place: Path) -> Case:
        folder = save(EVERY[name], place / name)
        return Case(folder, (Call(_BOTH, by_transformers(folder, _BOTH, half=True)),))

    ROWS.add(name, make)


for _name in ("bart-encoder", "longt5-local", "umt5-encoder", "m2m100-encoder", "marian-encoder", "mbart-encoder"):
    _encoder_half(_name)


def _image(name: str, pick: str = "pooler_output", *options: str, method: str = "") -> None:
    def make(place: Path) -> Case:
        case = judged_pictures(save(EVERY[name], place / name), place, pick=pick, method=method)
        return Case(case.source, case.calls, options)

    ROWS.add(name, make)


for _name in ("bit", "dinov2-registers", "efficientnet", "focalnet", "hiera"):
    _image(_name)
for _name in ("levit", "mobilenet-v1", "mobilenet-v2", "mobilevit", "regnet", "siglip2-vision", "swinv2"):
    _image(_name)
for _name in ("chinese-clip-vision", "aimv2-vision", "donut-swin", "textnet"):
    _image(_name)
_image("segformer", "map")
_image("poolformer", "map")
_image("pvt-v2", "map")
_image("ijepa", "mean")
_image("metaclip2-vision", "pooler_output", "--tower", "vision", method="get_image_features")


def _audio(name: str) -> None:
    def make(place: Path) -> Case:
        return judged_sounds(save(EVERY[name], place / name), place, options=("--max-length", "32000"))

    ROWS.add(name, make)


for _name in ("data2vec-audio", "hubert-masked", "sew", "unispeech-sat", "wavlm-masked", "wav2vec2-conformer-rotary"):
    _audio(_name)
