"""Image encoders: architectures, processors and picture files, judged by transformers' own loader and model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coverage_models import CLIP_CROP, TOWERS, VIT
from benchmarks.strangers_kit import (
    SHORT,
    TEXTS,
    Call,
    Case,
    Rows,
    byte_level,
    save_model,
    sentencepiece,
    spread,
    write_json,
)

ROWS = Rows("images")
_PLAIN = {"do_resize": True, "size": {"height": 48, "width": 48}, "do_rescale": True, "rescale_factor": 1 / 255}
_PLAIN |= {"do_normalize": True, "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.25, 0.3], "resample": 2}
_STAGES = {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 2, 1, 1]}
_SIZES = ((80, 60), (48, 48), (30, 100), (200, 140), (7, 9))


def pixels(width: int, height: int, seed: int, channels: int = 3) -> np.ndarray:
    """A picture with edges, slopes and a little noise, uint8 [height, width, channels]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, channels)).astype(np.float64)
    rows = np.linspace(0, 4, height)
    columns = np.linspace(0, 5, width)
    smooth = coarse[rows.round().astype(int)][:, columns.round().astype(int)]
    slope = 60 * (rows[:, None] / 4 + columns[None] / 5)[..., None]
    return np.clip(0.7 * smooth + slope + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def pictures(folder: Path) -> list[Path]:
    """PNG and JPEG files of several sizes and aspects."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (width, height) in enumerate(_SIZES):
        path = folder / f"picture {index}.{'jpg' if index % 2 else 'png'}"
        Image.fromarray(pixels(width, height, index)).save(path)
        paths.append(path)
    return paths


def by_images(folder: Path, paths: Sequence[Path], pick: str = "pooler_output", method: str = "") -> np.ndarray:
    """load_image, AutoImageProcessor and AutoModel (or its ``method``), one picture at a time."""
    import torch
    import transformers
    from transformers.image_utils import load_image

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for path in paths:
            given = processor(images=load_image(str(path)), return_tensors="pt")
            output = getattr(model, method)(**given) if method else model(**given)
            rows.append(_picked(output, pick).flatten().numpy())
    return np.stack(rows)


def _picked(output: Any, pick: str) -> Any:
    if pick == "cls":
        return output.last_hidden_state[0, 0]
    if pick == "mean":
        return output.last_hidden_state[0].mean(dim=0)
    if pick == "map":
        return output.last_hidden_state[0].mean(dim=(1, 2))
    return output if hasattr(output, "flatten") else output[pick][0]


def vit(place: Path, changes: Mapping[str, Any] | None = None, kind: str = "ViTImageProcessor") -> Path:
    """A ViT with the processor file of ``kind``; None among ``changes`` takes a key away."""
    folder = place / "vit"
    save_model(folder, "ViTConfig", VIT)
    given = {"image_processor_type": kind, **_PLAIN, **(changes or {})}
    write_json(folder / "preprocessor_config.json", {key: value for key, value in given.items() if value is not None})
    return folder


def judged(folder: Path, place: Path, **how: Any) -> Case:
    """All pictures through the folder."""
    paths = pictures(place / "pictures")
    return Case(folder, (Call([str(path) for path in paths], by_images(folder, paths, **how)),))


def _row(name: str, config: str, settings: Mapping[str, Any], kind: str, how: Mapping[str, Any], pick: str) -> None:
    def make(place: Path) -> Case:
        folder = place / name
        save_model(folder, config, settings)
        write_json(folder / "preprocessor_config.json", {"image_processor_type": kind, **_PLAIN, **how})
        return judged(folder, place, pick=pick)

    ROWS.add(name, make)


_EDGE96 = {"size": {"shortest_edge": 96}, "crop_pct": 0.875, "resample": 3}
_POOLER = "pooler_output"
_ROWS: tuple[tuple[str, str, Mapping[str, Any], str, Mapping[str, Any], str], ...] = (
    ("vit", "ViTConfig", VIT, "ViTImageProcessor", {}, _POOLER),
    ("deit-crop", "DeiTConfig", VIT, "DeiTImageProcessor",
     {"size": {"height": 54, "width": 54}, "do_center_crop": True, "crop_size": {"height": 48, "width": 48}}, _POOLER),
    ("dinov2", "Dinov2Config", {**VIT, "mlp_ratio": 2}, "BitImageProcessor",
     {**CLIP_CROP, "do_center_crop": True, "resample": 3}, _POOLER),
    ("convnext-crop-pct", "ConvNextConfig", {**_STAGES, "num_stages": 4}, "ConvNextImageProcessor", _EDGE96, _POOLER),
    ("resnet", "ResNetConfig", {**_STAGES, "embedding_size": 10}, "ConvNextImageProcessor", _EDGE96, _POOLER),
    ("swin", "SwinConfig", {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 96},
     "ViTImageProcessor", {"size": {"height": 96, "width": 96}, "resample": 3}, _POOLER),
    ("beit", "BeitConfig", {**VIT, "use_relative_position_bias": True}, "BeitImageProcessor",
     {"do_center_crop": True, "size": {"height": 54, "width": 54}, "crop_size": {"height": 48, "width": 48}}, _POOLER),
    ("vit-mae-like-no-pooler", "ViTMSNConfig", VIT, "ViTImageProcessor", {}, "cls"),
    ("dinov2-whole-picture", "Dinov2Config", {**VIT, "mlp_ratio": 2}, "BitImageProcessor",
     {"size": {"shortest_edge": 60}, "do_center_crop": False}, _POOLER),
)  # fmt: skip
for _entry in _ROWS:
    _row(*_entry)


def _processor(name: str, changes: Mapping[str, Any], kind: str = "ViTImageProcessor") -> None:
    ROWS.add(name, lambda place: judged(vit(place, changes, kind), place))


_CROP48 = {"do_center_crop": True, "crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 52}}
for _number, _filter in enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")):
    if _filter != "bilinear":
        _processor(f"resample-{_filter}", {"resample": _number})
_processor("no-rescale", {"do_rescale": False})
_processor("no-normalize", {"do_normalize": False})
_processor("rescale-to-minus-one", {"rescale_factor": 1 / 127.5})
_processor("size-as-number", {"size": 48})
_processor("size-as-list-of-old", {"size": [48, 48]})
_processor("shortest-edge-center-crop", {**_CROP48, "resample": 3}, "CLIPImageProcessor")
_processor("crop-larger-than-the-picture", {**_CROP48, "size": {"shortest_edge": 40}}, "CLIPImageProcessor")
_processor("feature-extractor-of-old", {"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": None})
_processor("fast-processor", {"image_processor_type": "ViTImageProcessorFast"})
_processor("mean-and-std-absent", {"image_mean": None, "image_std": None, "resample": None})
_PADDED = {"size": {"longest_edge": 48}, "do_pad": True, "pad_size": {"height": 48, "width": 48}}
_processor("longest-edge-and-pad", _PADDED, "SamImageProcessor")


def _as_files(name: str, write: Callable[[Path], list[Path]]) -> None:
    def make(place: Path) -> Case:
        folder = vit(place)
        (place / "pictures").mkdir()
        paths = write(place / "pictures")
        return Case(folder, (Call([str(path) for path in paths], by_images(folder, paths)),))

    ROWS.add(f"file-{name}", make)


def _turned(folder: Path) -> list[Path]:
    from PIL import Image

    paths = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(folder / f"turned-{orientation}.jpg")
        Image.fromarray(pixels(90, 50, 3)).save(paths[-1], exif=exif, quality=95)
    return paths


def _modes(*modes: str, kind: str = "png") -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        from PIL import Image

        paths = []
        for index, mode in enumerate(modes * 2):
            picture = Image.fromarray(pixels(70 + 9 * index, 60, index))
            if mode in ("RGBA", "LA"):
                picture.putalpha(Image.fromarray(pixels(70 + 9 * index, 60, index + 40, 1)[..., 0]))
            paths.append(folder / f"{mode}-{index}.{kind}")
            picture.convert(mode).save(paths[-1])
        return paths

    return write


def _transparent_palette(folder: Path) -> list[Path]:
    from PIL import Image

    paths = []
    for index in range(2):
        picture = Image.fromarray(pixels(70, 50 + 30 * index, index)).quantize(32)
        paths.append(folder / f"palette-{index}.png")
        picture.save(paths[-1], transparency=3 + index)
    return paths


def _sixteen_bit(folder: Path) -> list[Path]:
    from PIL import Image

    paths = []
    for index in range(2):
        gray = pixels(70, 50 + 30 * index, index, 1)[..., 0].astype(np.uint16) * 2
        paths.append(folder / f"gray16-{index}.png")
        Image.fromarray(gray).save(paths[-1])
    return paths


def _extreme(folder: Path) -> list[Path]:
    from PIL import Image

    paths = []
    for index, (width, height) in enumerate(((1, 1), (1, 50), (50, 1), (3, 700), (1500, 1100))):
        paths.append(folder / f"extreme-{index}.png")
        Image.fromarray(pixels(width, height, index)).save(paths[-1])
    return paths


def _animated(folder: Path) -> list[Path]:
    from PIL import Image

    frames = [Image.fromarray(pixels(64, 40, seed)).quantize(64) for seed in range(4)]
    paths = [folder / "moving.gif", folder / "moving.webp"]
    frames[0].save(paths[0], save_all=True, append_images=frames[1:])
    frames[3].convert("RGB").save(paths[1], save_all=True, append_images=frames[:3], lossless=True)
    return paths


_as_files("exif-turned", _turned)
_as_files("rgba", _modes("RGBA"))
_as_files("gray-and-alpha", _modes("LA"))
_as_files("palette", _modes("P"))
_as_files("palette-transparent", _transparent_palette)
_as_files("cmyk-jpeg", _modes("CMYK", kind="jpg"))
_as_files("gray", _modes("L"))
_as_files("one-bit", _modes("1"))
_as_files("gray-16-bit", _sixteen_bit)
_as_files("extreme-sizes", _extreme)
_as_files("animated", _animated)
_as_files("bmp-tiff", lambda folder: _modes("RGB", kind="bmp")(folder) + _modes("RGB", kind="tiff")(folder))


def _clip(place: Path, end_in_config: int | None) -> tuple[Path, int]:
    """CLIP with its own order of special tokens: start and end come last, and the end pads too."""
    folder = place / "clip"
    size = byte_level(folder, "PreTrainedTokenizerFast", ("!",)) + 2
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    write_json(folder / "tokenizer_config.json", named)
    ids = {"bos_token_id": start, "eos_token_id": end_in_config or end, "pad_token_id": end, "vocab_size": size}
    save_model(folder, "CLIPConfig", {**TOWERS, "text_config": {**TOWERS["text_config"], **ids}})
    how = {**_PLAIN, **CLIP_CROP, "do_center_crop": True, "resample": 3, "image_processor_type": "CLIPImageProcessor"}
    write_json(folder / "preprocessor_config.json", how)
    return folder, size


def by_text_tower(folder: Path, texts: Sequence[str], **tokenized: Any) -> np.ndarray:
    """AutoTokenizer and ``get_text_features``, one text at a time."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            given = tokenizer(text, truncation=True, return_tensors="pt", **tokenized)
            output = model.get_text_features(**given)
            rows.append((output if isinstance(output, torch.Tensor) else output.pooler_output)[0].numpy())
    return np.stack(rows)


def _text_tower(place: Path, end_in_config: int | None) -> Case:
    folder, _ = _clip(place, end_in_config)
    return Case(folder, (Call(TEXTS, by_text_tower(folder, TEXTS)),), ("--tower", "text"))


_processor("center-crop-alone", {"do_resize": False, **_CROP48, "size": None}, "CLIPImageProcessor")
_processor("crop-size-as-number", {**_CROP48, "crop_size": 48, "size": 52}, "CLIPImageProcessor")
ROWS.add("clip-text-end-by-id", lambda place: _text_tower(place, None))
ROWS.add("clip-text-end-by-argmax-of-old", lambda place: _text_tower(place, 2))


@ROWS.row("clip-vision")
def _clip_vision(place: Path) -> Case:
    folder, _ = _clip(place, None)
    paths = pictures(place / "pictures")
    given = by_images(folder, paths, method="get_image_features")
    return Case(folder, (Call([str(path) for path in paths], given),), ("--tower", "vision"))


@ROWS.row("clip-without-a-tower-named")
def _clip_bare(place: Path) -> Case:
    return Case(_clip(place, None)[0])


def _siglip(place: Path, tokenizer: str) -> Path:
    folder = place / "siglip"
    named = {"tokenizer_class": tokenizer, "model_max_length": 64, "pad_token": "</s>", "eos_token": "</s>"}
    named |= {"unk_token": "<unk>", "add_eos_token": True}
    if tokenizer == "SiglipTokenizer":
        size = sentencepiece(folder, "spiece.model", {**named, "do_lower_case": True}) + 8
    else:
        size = byte_level(folder, tokenizer, ("</s>", "<unk>"), ends=True, **named)
    text = {**TOWERS["text_config"], "vocab_size": size, "pad_token_id": 1, "max_position_embeddings": 64}
    save_model(folder, "SiglipConfig", {**TOWERS, "text_config": text})
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor", **_PLAIN})
    return folder


def _siglip_text(place: Path, tokenizer: str) -> Case:
    folder = _siglip(place, tokenizer)
    return Case(folder, (Call(SHORT, by_text_tower(folder, SHORT, padding="max_length")),), ("--tower", "text"))


ROWS.add("siglip-text-padded-to-the-end", lambda place: _siglip_text(place, "PreTrainedTokenizerFast"))
ROWS.add("siglip-text-own-tokenizer", lambda place: _siglip_text(place, "SiglipTokenizer"))


@ROWS.row("siglip-vision")
def _siglip_vision(place: Path) -> Case:
    folder = _siglip(place, "PreTrainedTokenizerFast")
    paths = pictures(place / "pictures")
    given = by_images(folder, paths, method="get_image_features")
    return Case(folder, (Call([str(path) for path in paths], given),), ("--tower", "vision"))


@ROWS.row("vit-head-for-classification")
def _vit_head(place: Path) -> Case:
    import transformers

    folder = vit(place)
    config = transformers.ViTConfig(**VIT)
    spread(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    paths = pictures(place / "pictures")
    given = by_images(folder, paths, "cls")
    return Case(folder, (Call([str(path) for path in paths], given),), ("--pooling", "cls"))


@ROWS.row("convnext-384-warped-to-a-square")
def _warped(place: Path) -> Case:
    """From 384 on ConvNeXt's processor neither keeps the aspect nor crops."""
    folder = place / "convnext"
    save_model(folder, "ConvNextConfig", {**_STAGES, "num_stages": 4})
    how = {
        **_PLAIN,
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 384},
        "crop_pct": 0.875,
    }
    write_json(folder / "preprocessor_config.json", {**how, "resample": 3})
    return judged(folder, place)


@ROWS.row("processor-inside-processor-config")
def _nested(place: Path) -> Case:
    """transformers 5 writes the parts of a processor into one file."""
    folder, _ = _clip(place, None)
    how = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    (folder / "preprocessor_config.json").unlink()
    write_json(folder / "processor_config.json", {"processor_class": "CLIPProcessor", "image_processor": how})
    paths = pictures(place / "pictures")
    given = by_images(folder, paths, method="get_image_features")
    return Case(folder, (Call([str(path) for path in paths], given),), ("--tower", "vision"))


@ROWS.row("processor-file-missing")
def _no_processor(place: Path) -> Case:
    folder = vit(place)
    (folder / "preprocessor_config.json").unlink()
    return Case(folder)


@ROWS.row("processor-of-another-size")
def _other_size(place: Path) -> Case:
    return Case(vit(place, {"size": {"height": 60, "width": 60}}))
