"""From the processor files of a transformers folder to ``card.preprocess`` and the input tensors: JSON, no imports, but
for classes that no table knows (`deploykit.sources._processor_learned`).

``processor_config.json`` (nested) comes before ``preprocessor_config.json``, as in transformers. A null means the
class's default (of do_convert_rgb: no), and a number where a size belongs is read as the class reads it. A key that
would change the tensors and is not understood is a `SourceError` that names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from deploykit.errors import BundleError, SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.runtime.preprocess import audio, image
from deploykit.runtime.preprocess.logmel import LogMel
from deploykit.sources import _code, _processor_learned
from deploykit.sources import _processor_defaults as defaults

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's numbers, which the JSON files hold, by position."""

_TENSORS_HINT = "or give the encoder ready tensors (preprocess = 'none')"
_IMAGE_KEYS = {*defaults.IMAGE_BASE, "size", "resample", "crop_size", "image_mean", "image_std", "pad_size"}


@dataclass(frozen=True)
class Preprocessing:
    """``preprocess`` goes into the card as it is; ``inputs`` are the tensors that it makes, in the graph's order."""

    preprocess: dict[str, Any]
    inputs: tuple[TensorSpec, ...]


def image_preprocess(folder: Path, overrides: Mapping[str, Any] | None = None) -> Preprocessing:
    """Preprocessing of an image encoder; ``overrides`` replace keys of the processor's JSON, None takes one away."""
    name, values = _settings(folder, "image_processor", overrides)
    known = defaults.IMAGE.get(name)
    of_class = known if known is not None else _processor_learned.settings(name, _IMAGE_KEYS)
    if of_class is None:
        raise _unknown_class(folder, name, list(defaults.IMAGE))
    values = {**defaults.IMAGE_BASE, **of_class, **values, **of_class.get("fixed", {})}
    rule, resize_float = values.pop("rule", ""), values.pop("resize_float", False)
    values.pop("fixed", None)
    if known is not None:
        _refuse_unknown(name, values, _IMAGE_KEYS | set(known))
    elif not values.get("pad_size"):
        # Such a class pads to the largest picture of a batch; the runtime batches pictures of one size instead. What it
        # makes of one picture, and of its further keys, is seen in its tensors.
        values["do_pad"] = False
    resize, crop = _resize_and_crop(name, rule, values)
    count = _channels(folder, values["image_mean"])
    options = image.Options(
        decoding="transformers-convert-rgb" if values["do_convert_rgb"] else "transformers",
        channels="gray" if count == 1 else "bgr" if values.get("do_flip_channel_order") else "rgb",
        resize=resize,
        resample=_resample(values["resample"]),
        resize_float=resize_float,
        crop=crop,
        pad=_pad(name, values),
        **_arithmetic(values),
    )
    try:
        image.check(options)
    except BundleError as error:
        raise SourceError(f"{name}: {error.message}", hint=error.hint) from error
    height, width = options.output_size or ("height", "width")
    spec = TensorSpec("pixel_values", "float32", ("batch", count, height, width))
    made = _preprocessing("image", options, spec)
    if known is None:
        _processor_learned.refuse_difference(folder, name, made.preprocess, spec, _TENSORS_HINT.removeprefix("or "))
    return made


def audio_preprocess(folder: Path, overrides: Mapping[str, Any] | None = None) -> Preprocessing:
    """Preprocessing of an audio encoder; ``overrides`` as in `image_preprocess`."""
    name, values = _settings(folder, "feature_extractor", overrides)
    if name not in defaults.AUDIO:
        raise _unknown_class(folder, name, list(defaults.AUDIO))
    values = {**defaults.AUDIO[name], **values}
    if values.pop("padding_side", "right") != "right":
        raise SourceError(f"{name} pads on the left", hint=f"set padding_side to right, {_TENSORS_HINT}")
    inert = defaults.INERT_OF_CLASS.get(name, frozenset())
    _refuse_unknown(name, values, set(defaults.AUDIO[name]) | inert)
    _check_types(name, values)
    if name == "Wav2Vec2FeatureExtractor":
        return _waveform(name, values)
    if values["padding_value"]:
        raise _unsupported(name, "padding_value", values["padding_value"])
    mel = {"WhisperFeatureExtractor": _whisper, "ASTFeatureExtractor": _ast, "ClapFeatureExtractor": _clap}[name](
        values
    )
    tensor = "input_values" if name == "ASTFeatureExtractor" else "input_features"
    options = audio.Options(sampling_rate=values["sampling_rate"], mel=mel)
    return _preprocessing("audio", options, TensorSpec(tensor, "float32", ("batch", *mel.shape)))


def _preprocessing(kind: str, options: image.Options | audio.Options, *inputs: TensorSpec) -> Preprocessing:
    # Through JSON, so that the card in memory equals the card that a bundle gives back.
    return Preprocessing({"kind": kind, **json.loads(json.dumps(asdict(options)))}, inputs)


def _settings(folder: Path, part: str, overrides: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The class name without suffix and what its JSON says, without nulls and without keys that change nothing."""
    _code.refuse_processor(folder, {name: _json(folder / name) for name in _code.PROCESSOR_FILES})
    nested = _json(folder / "processor_config.json").get(part)
    found = nested if isinstance(nested, dict) else _json(folder / "preprocessor_config.json")
    found = {**found, **(overrides or {})}
    if not found:
        have = " (there is a video_preprocessor_config.json: video encoders are not supported)"
        note = have if (folder / "video_preprocessor_config.json").exists() else ""
        raise SourceError(
            f"'{folder}' has no preprocessor_config.json and no {part} in processor_config.json{note}",
            hint="fetch the whole model folder, or save its processor there: processor.save_pretrained(folder)",
        )
    config = _json(folder / "config.json")
    table = defaults.IMAGE_CLASS_OF_MODEL if part == "image_processor" else defaults.AUDIO_CLASS_OF_MODEL
    given = found.get(f"{part}_type") or found.get("feature_extractor_type") or found.get("image_processor_type")
    name = str(given or table.get(config.get("model_type", ""), ""))
    if part == "image_processor":
        name = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if "do_convert_rgb" in found:
        found["do_convert_rgb"] = bool(found["do_convert_rgb"])
    return name, {key: value for key, value in found.items() if value is not None and key not in defaults.INERT}


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}", hint="fetch the file again") from error
    if not isinstance(data, dict):
        raise SourceError(f"'{path}' holds no JSON object", hint="fetch the file again")
    return data


def _unknown_class(folder: Path, name: str, known: list[str]) -> SourceError:
    if not name:
        message = f"nothing in '{folder}' names the processor's class"
        return SourceError(message, hint=f"add image_processor_type or feature_extractor_type, {_TENSORS_HINT}")
    # A class of a similar name computes something else: none is suggested.
    return SourceError(
        f"the processor class {name} of '{folder}' is not known to deploykit",
        hint=f"it knows {len(known)} others; {_TENSORS_HINT}",
    )


def _unsupported(name: str, key: str, value: Any) -> SourceError:
    return SourceError(
        f"{name} has {key} = {value!r}, which is not supported",
        hint=f"take the key out of the processor's JSON if it does not matter, {_TENSORS_HINT}",
    )


def _refuse_unknown(name: str, values: Mapping[str, Any], known: set[str]) -> None:
    for key, value in values.items():
        channels_first = key in ("data_format", "input_data_format") and value in ("channels_first", "FIRST")
        if key not in known and value is not False and not channels_first:
            raise _unsupported(name, key, value)


def _check_types(name: str, values: Mapping[str, Any]) -> None:
    """A value has the type of the class's default: flag, text, whole number, or number."""
    for key, default in defaults.AUDIO[name].items():
        kind = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(values[key], kind) or isinstance(values[key], bool) != isinstance(default, bool):
            raise _unsupported(name, key, values[key])


def _resize_and_crop(
    name: str, rule: str, values: Mapping[str, Any]
) -> tuple[dict[str, int] | None, tuple[int, int] | None]:
    """The resize rule and the crop (height, width) that the class's settings amount to."""
    resize = _size(name, "size", values["size"], values["default_to_square"]) if values["do_resize"] else None
    crop = _edges(name, "crop_size", values) if values["do_center_crop"] else None
    if resize is None or not rule:
        return resize, crop
    edge, percent = resize.get("shortest_edge"), float(values.get("crop_pct", 1.0))
    if rule == "convnext":
        if edge is None or crop:
            key = "size" if edge is None else "do_center_crop"
            raise _unsupported(name, key, values[key])
        # Below 384 pixels a margin is cut off; from there on the image is squeezed into the square.
        return ({"shortest_edge": int(edge / percent)}, (edge, edge)) if edge < 384 else (_square(edge), None)
    if rule == "levit":
        return ({"shortest_edge": int(256 / 224 * edge)} if edge else resize), crop
    if edge or resize.get("height") == resize.get("width"):
        return {"shortest_edge": int((edge or resize["height"]) / percent)}, crop
    return {key: int(value / percent) for key, value in resize.items()}, crop


def _size(name: str, key: str, size: Any, square: bool) -> dict[str, int]:
    if isinstance(size, int):
        return _square(size) if square else {"shortest_edge": size}
    if isinstance(size, (list, tuple)) and len(size) in (1, 2):
        return {"height": int(size[0]), "width": int(size[-1])}
    if not isinstance(size, dict):
        raise _unsupported(name, key, size)
    return {edge: int(value) for edge, value in size.items() if value is not None}


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _edges(name: str, key: str, values: Mapping[str, Any]) -> tuple[int, int]:
    size = _size(name, key, values.get(key), square=True)
    if set(size) != {"height", "width"}:
        raise _unsupported(name, key, values.get(key))
    return size["height"], size["width"]


def _pad(name: str, values: Mapping[str, Any]) -> tuple[int, int] | None:
    if not values["do_pad"]:
        return None
    if "pad_size" not in values:
        # Without a size every image would be padded to the largest of its batch: one image, many embeddings.
        raise _unsupported(name, "do_pad", True)
    return _edges(name, "pad_size", values)


def _resample(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in RESAMPLE:
        return value.lower()
    if isinstance(value, int) and 0 <= value < len(RESAMPLE):
        return RESAMPLE[value]
    raise SourceError(f"the processor's resample is {value!r}", hint=f"use 0 to 5: {', '.join(RESAMPLE)}")


def _arithmetic(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rescaling, offset and the two normalisations of EfficientNet as one (x * rescale - offset - mean) / std."""
    mean, std = _channel_values(values["image_mean"]), _channel_values(values["image_std"])
    divide_again = bool(values.get("include_top"))
    if not values["do_normalize"]:
        mean, std = (0.0,), std if divide_again else (1.0,)
    elif divide_again:
        std = tuple(value * value for value in std)
    rescale = float(values["rescale_factor"]) if values["do_rescale"] else 1.0
    offset = 1.0 if values.get("rescale_offset") and values["do_rescale"] else 0.0
    return {"rescale": rescale, "offset": offset, "mean": mean, "std": std}


def _channel_values(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _channels(folder: Path, mean: Any) -> int:
    """Channels of the encoder's input: what its config says, else 1 where the mean is a list of one value, else 3."""
    config = _json(folder / "config.json")
    vision = config.get("vision_config")
    inner = vision.get("num_channels") if isinstance(vision, dict) else None
    count = config.get("num_channels") or inner or (1 if isinstance(mean, list) and len(mean) == 1 else 3)
    if count not in (1, 3):
        raise SourceError(
            f"the encoder takes images of {count} channels", hint="use preprocess = 'none' and ready tensors"
        )
    return cast(int, count)


def _waveform(name: str, values: Mapping[str, Any]) -> Preprocessing:
    if values["feature_size"] != 1:
        raise _unsupported(name, "feature_size", values["feature_size"])
    options = audio.Options(
        sampling_rate=values["sampling_rate"],
        normalize=values["do_normalize"],
        padding_value=float(values["padding_value"]),
    )
    inputs = [TensorSpec("input_values", "float32", ("batch", "samples"))]
    if values["return_attention_mask"]:
        inputs.append(TensorSpec("attention_mask", "int64", ("batch", "samples")))
    return _preprocessing("audio", options, *inputs)


def _whisper(values: Mapping[str, Any]) -> LogMel:
    if values["dither"]:
        raise _unsupported("WhisperFeatureExtractor", "dither", values["dither"])
    samples = values["chunk_length"] * values["sampling_rate"]
    return LogMel(
        bins=values["feature_size"],
        frames=samples // values["hop_length"],
        hop=values["hop_length"],
        window=values["n_fft"],
        fft=values["n_fft"],
        samples=samples,
        area_norm=True,
        dynamic_range=8.0,
        mean=-4.0,
        std=4.0,
    )


def _ast(values: Mapping[str, Any]) -> LogMel:
    """Kaldi's filter bank with the 25 ms window and 10 ms hop of 16 kHz that the class has built in."""
    normalize = values["do_normalize"]
    return LogMel(
        bins=values["num_mel_bins"],
        frames=values["max_length"],
        hop=160,
        window=400,
        fft=512,
        center=False,
        remove_dc=True,
        preemphasis=0.97,
        periodic=False,
        scale="kaldi",
        low_hz=20.0,
        high_hz=float(values["sampling_rate"] // 2),
        floor=2.0**-23,
        log="ln",
        fill=0.0,
        mean=float(values["mean"]) if normalize else 0.0,
        std=2.0 * values["std"] if normalize else 1.0,
        layout="frames-bins",
    )


def _clap(values: Mapping[str, Any]) -> LogMel:
    if values["truncation"] != "rand_trunc":
        raise _unsupported("ClapFeatureExtractor", "truncation", values["truncation"])
    if values["padding"] not in ("repeatpad", "pad"):
        raise _unsupported("ClapFeatureExtractor", "padding", values["padding"])
    samples = values["max_length_s"] * values["sampling_rate"]
    return LogMel(
        bins=values["feature_size"],
        frames=1 + samples // values["hop_length"],
        hop=values["hop_length"],
        window=values["fft_window_size"],
        fft=values["fft_window_size"],
        samples=samples,
        repeat=values["padding"] == "repeatpad",
        area_norm=True,
        low_hz=float(values["frequency_min"]),
        high_hz=float(values["frequency_max"]),
        std=0.1,
        layout="1-frames-bins",
    )
