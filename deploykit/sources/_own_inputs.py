"""Modules of one's own: what they take is said by the options ``image``, ``audio`` or ``text``.

Here that becomes inputs, preprocessing and pooling. Without one of these a module takes preprocessed tensors
(`deploykit.sources._tensors`). Importing this module imports torch.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.runtime.preprocess import audio, image
from deploykit.sources import Options, Source, _folder
from deploykit.sources._assemble import Parts, assemble, explained
from deploykit.sources._checkpoint import first_line
from deploykit.sources._encoders import (
    Head,
    ImageEncoder,
    OnePositional,
    TextEncoder,
    WaveformEncoder,
    only_tensor,
    renormalized,
    stages,
)
from deploykit.sources._image import pixels
from deploykit.sources._options import only

SAID = ("image", "audio", "text")
_OF_IMAGES = ("image", "resize", "resample", "mean", "std")
_OF_EVERY = ("pooling", "normalize", "dim")
_HINT = "say what it takes: --image 224, --audio 16000 or --text TOKENIZER_FOLDER"
_MASKS = ("attention_mask", "mask", "src_key_padding_mask", "key_padding_mask", "padding_mask")
_UNBOUNDED_LENGTH = 512


def is_said(options: Options) -> bool:
    """Whether an option says what the module takes; `SourceError` when two do."""
    given = [name for name in SAID if getattr(options, name) is not None]
    if len(given) > 1:
        raise SourceError(f"{' and '.join(given)} are both given", hint="a module has one kind of input: leave one out")
    return bool(given)


def open_own(body: nn.Module, options: Options, name: str, provenance: dict[str, Any]) -> Source:
    """A source around a module whose input an option names. `SourceError` when it does not take that input."""
    if not is_said(options):
        raise SourceError(f"nothing says what {name} takes", hint=_HINT)
    if options.image is not None:
        return assemble(_image(body, options, name, provenance))
    if options.audio is not None:
        return assemble(_audio(body, options, name, provenance))
    return assemble(_text(body, options, name, provenance))


def arguments(body: nn.Module) -> dict[str, bool]:
    """The arguments of ``forward`` in order, and whether each must be given."""
    if isinstance(body, torch.jit.ScriptModule):
        forward: Any = body.forward
        listed = forward.schema.arguments
        return {arg.name: not arg.has_default_value() for arg in listed if arg.name != "self"}
    parameters = inspect.signature(body.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default is p.empty for p in named}


def _check_one(body: nn.Module, name: str, what: str) -> None:
    needed = [argument for argument, must in arguments(body).items() if must]
    if len(needed) > 1:
        hint = "wrap it in a module whose forward takes that one, or give example inputs with py:FILE.py:FACTORY"
        raise SourceError(f"forward of {name} needs {', '.join(needed)}, and {what} gives one tensor", hint=hint)


def _head(output: Tensor, options: Options, name: str) -> Head:
    """What brings an output to the embedding; `SourceError` for token vectors or feature maps that nobody pools."""
    pooled = options.pooling not in (None, "none", "pooler")
    if output.ndim in (3, 4) and not pooled and output.flatten(2).shape[2:] != (1,):
        shape = "[batch, tokens, width]" if output.ndim == 3 else "[batch, channels, height, width]"
        raise SourceError(f"{name} gives {shape}, not one vector for each input", hint="choose a pooling, such as mean")
    if pooled and output.ndim not in (3, 4):
        raise SourceError(f"{name} gives {list(output.shape)}, which has nothing to pool", hint="leave pooling out")
    if not pooled:
        options = renormalized(options, lambda: output.flatten(1))
    return Head([str(options.pooling)] if pooled else [], stages(options, bool(options.normalize)))


def _pick(output: Any) -> Tensor:
    """Token vectors or a vector; feature maps as tokens, or flat where there is one place."""
    tensor = only_tensor(output)
    if tensor.ndim == 4:
        tensor = tensor.flatten(2).transpose(1, 2)
        return tensor.squeeze(1) if tensor.shape[1] == 1 else tensor
    return tensor.flatten(1) if tensor.ndim == 3 and tensor.shape[2] == 1 else tensor


def _parts(options: Options, name: str, provenance: dict[str, Any], **more: Any) -> Parts:
    pooled = options.pooling not in (None, "none", "pooler")
    return Parts(
        name=name,
        pooling=str(options.pooling) if pooled else "none",
        normalized=bool(options.normalize),
        provenance=provenance,
        **more,
    )


def image_options(options: Options, channels: int) -> image.Options:
    """Pictures as torchvision's evaluation transforms take them: Pillow's resize, a crop from the centre, mean and std.

    One number for ``image``: the shorter edge becomes ``resize`` (that number itself, if it is left out), then a
    square is cut out. Two are height and width: the whole picture becomes that size, unless ``resize`` is given.
    """
    height, width = _two(options.image)
    edge = options.resize or (height if height == width and not isinstance(options.image, (tuple, list)) else None)
    resize = {"height": height, "width": width} if edge is None else {"shortest_edge": edge}
    made = image.Options(
        decoding="timm",
        channels="gray" if channels == 1 else "rgb",
        resize=resize,
        resample=options.resample or "bilinear",
        crop=None if edge is None else (height, width),
        crop_rounding="even",
        mean=_each(options.mean or (0.0,), channels),
        std=_each(options.std or (1.0,), channels),
    )
    for key, given in (("mean", made.mean), ("std", made.std)):
        if len(given) != channels or (key == "std" and 0.0 in given):
            hint = f"give 1 or {channels} numbers other than 0" if key == "std" else f"give 1 or {channels} numbers"
            raise SourceError(f"{key} is {list(given)}, and the module takes {channels} channels", hint=hint)
    return made


def _each(given: Sequence[float], channels: int) -> tuple[float, ...]:
    return tuple(given) * channels if len(given) == 1 else tuple(given)


def _two(size: Any) -> tuple[int, int]:
    numbers = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise SourceError(f"image is {list(numbers)}", hint="give one edge in pixels (224), or height and width")
    return numbers[0], numbers[1]


def _image(body: nn.Module, options: Options, name: str, provenance: dict[str, Any]) -> Parts:
    only(options, (*_OF_EVERY, *_OF_IMAGES), f"{name} takes images")
    _check_one(body, name, "a picture")
    height, width = _two(options.image)
    spec, output = _channels(body, name, height, width)
    head = _head(output, options, name)
    made = image_options(options, int(spec.shape[1]))
    image.check(made)
    preprocess = {"kind": "image", **json.loads(json.dumps(asdict(made)))}
    module = ImageEncoder(OnePositional(body), "forward", _pick, head).eval()
    notes = [] if options.mean or options.std else ["pictures are values of 0 to 1: neither mean nor std was given"]
    options = replace(options, normalize=bool(head.stages) and type(head.stages[-1]).__name__ == "Normalize")
    return _parts(
        options,
        name,
        {**provenance, "notes": [*provenance.get("notes", []), *notes]},
        modality="image",
        module=module,
        inputs=(spec,),
        make_inputs=lambda batch, sizes, seed: {spec.name: pixels(spec, batch, sizes, seed, preprocess)},
        sizes={},
        preprocess=preprocess,
    )


def _channels(body: nn.Module, name: str, height: int, width: int) -> tuple[TensorSpec, Tensor]:
    """The input with as many channels as the module takes, 3 or 1, tried out; and its output for a batch of 2."""
    failures = []
    for channels in (3, 1):
        spec = TensorSpec("pixel_values", "float32", ("batch", channels, height, width))
        try:
            with torch.inference_mode():
                return spec, only_tensor(body(pixels(spec, 2, {}, 0)))
        except Exception as error:
            failures.append(first_line(error))
    hint = "give the size that the module takes: --image HEIGHTxWIDTH"
    raise SourceError(f"{name} fails on a picture [2, 3, {height}, {width}]: {failures[0]}", hint=hint)


def _audio(body: nn.Module, options: Options, name: str, provenance: dict[str, Any]) -> Parts:
    from deploykit.sources._audio import waveform_lengths

    only(options, (*_OF_EVERY, "audio", "max_length"), f"{name} takes sounds")
    _check_one(body, name, "a sound")
    rate = int(options.audio or 0)
    if rate < 1:
        raise SourceError(f"audio is {rate}", hint="it is the sampling rate in Hz: 16000")
    specs = (TensorSpec("input_values", "float32", ("batch", "samples")),)
    example = {"input_values": torch.randn(2, options.max_length or rate, generator=torch.Generator().manual_seed(0))}
    with explained(name, example), torch.inference_mode():
        output = only_tensor(body(example["input_values"]))
    head = _head(output, options, name)
    module = WaveformEncoder(OnePositional(body), "forward", _pick, head).eval()
    given, sizes = waveform_lengths(module, specs, rate, options.max_length)
    options = replace(options, normalize=bool(head.stages) and type(head.stages[-1]).__name__ == "Normalize")
    return _parts(
        options,
        name,
        provenance,
        modality="audio",
        module=module,
        inputs=specs,
        make_inputs=given.make,
        sizes=sizes,
        preprocess={"kind": "audio", **json.loads(json.dumps(asdict(audio.Options(sampling_rate=rate))))},
    )


class OwnText(nn.Module):
    """A text module of one's own, called by position with ids and, if it takes one, a mask.

    A mask whose name says padding is True at padding, as torch.nn.Transformer takes it; any other is 1 at tokens.
    """

    def __init__(self, body: nn.Module, mask: str | None) -> None:
        super().__init__()
        self.body, self.mask = body, mask

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if self.mask is None:
            return self.body(input_ids)
        if "padding" in self.mask:
            return self.body(input_ids, **{self.mask: attention_mask == 0})
        return self.body(input_ids, **{self.mask: attention_mask})


def _mask_of(body: nn.Module, name: str) -> str | None:
    """The argument that takes the mask; `SourceError` when forward needs what no tokenizer gives."""
    first, *others = arguments(body).items()
    mask = next((argument for argument, _ in others if argument in _MASKS), None)
    unknown = [argument for argument, must in others if must and argument != mask]
    if unknown:
        hint = f"a text module takes ids, and a mask named {_MASKS[0]} or src_key_padding_mask if it has one"
        raise SourceError(f"forward of {name} needs {', '.join(unknown)} beside '{first[0]}'", hint=hint)
    return mask


def _text(body: nn.Module, options: Options, name: str, provenance: dict[str, Any]) -> Parts:
    from deploykit.sources import _text as text

    only(options, (*_OF_EVERY, "text", "max_length", "fixed_length", "prompts"), f"{name} takes texts")
    folder = Path(str(options.text)).expanduser()
    if not folder.is_dir():
        raise SourceError(f"there is no folder '{options.text}'", hint="text names the folder of a tokenizer")
    tokenizer_sha256 = _folder.digest_of(sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model")))
    own = OwnText(body, _mask_of(body, name))
    tokenizer = text.read_tokenizer(folder, options)
    longest = _longest(own, options, tokenizer, name)
    given = replace(
        text.text_input(tokenizer, None, False, longest),
        prompts=dict(options.prompts or {}),
        fixed=options.fixed_length is not None,
        masked=own.mask is not None,
        padding_side="right",
    )
    example = given.make(2, {"length": min(longest, 8) if not given.fixed else longest}, 0)
    mask = example.get("attention_mask", torch.ones_like(example["input_ids"]))
    with explained(name, example), torch.inference_mode():
        output = only_tensor(own(example["input_ids"], mask))
    head = _head(output, options, name)
    module = TextEncoder(own, "forward", _pick, head, zero_types=False).eval()
    plain = replace(given, masked=False)
    options = replace(options, normalize=bool(head.stages) and type(head.stages[-1]).__name__ == "Normalize")
    return _parts(
        options,
        name,
        {**provenance, "tokenizer_sha256": tokenizer_sha256},
        modality="text",
        module=module,
        inputs=given.specs,
        make_inputs=given.make,
        sizes=_working(module, given.sizes(None), given),
        preprocess=given.preprocess(),
        files={text.TOKENIZER: given.tokenizer},
        unpadded=lambda: (plain.specs, plain.make),
    )


def _working(module: nn.Module, sizes: Mapping[str, Sequence[int]], given: Any) -> dict[str, tuple[int, ...]]:
    """The lengths on which the module runs: one that slides over its input needs a few tokens."""

    def works(length: int) -> bool:
        try:
            with torch.inference_mode():
                module(**given.make(1, {"length": length}, 0))
        except Exception:
            return False
        return True

    first = next((place for place, size in enumerate(sizes["length"]) if works(size)), 0)
    return {"length": tuple(sizes["length"][first:])}


def _longest(own: OwnText, options: Options, tokenizer: Any, name: str) -> int:
    """The longest text in tokens: as asked, else as the tokenizer says, and no more than the module takes."""
    if options.max_length is not None and options.fixed_length is not None:
        raise SourceError("max_length and fixed_length are both given", hint="leave one out")
    asked = options.fixed_length or options.max_length
    said = int(tokenizer.model_max_length) if tokenizer.model_max_length < 10**6 else _UNBOUNDED_LENGTH
    top = asked or said

    def failure(length: int) -> str:
        ids = torch.zeros((1, length), dtype=torch.int64)
        try:
            with torch.inference_mode():
                own(ids, torch.ones_like(ids))
        except Exception as error:
            return first_line(error)
        return ""

    why = failure(top)
    if not why:
        return top
    if asked:
        raise SourceError(f"{name} fails on {asked} tokens: {why}", hint="give a length that it takes")
    low = next((n for n in (4, 8, 16, 1) if n < top and not failure(n)), None)
    if low is None:
        hint = "if it takes one length alone, say it: --fixed-length N"
        raise SourceError(f"{name} fails on texts of {top} tokens and of fewer: {why}", hint=hint)
    high = top
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if failure(middle) else (middle, high)
    return low
