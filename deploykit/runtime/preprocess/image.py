"""Images to ``pixel_values`` float32 [3, height, width]: decode, RGB, resize, crop, rescale, normalise, pad.

What is matched: the PIL processors of transformers 5 (``…ImageProcessorPil``, ``backend="pil"``), value for value up to
float32 rounding. Where torchvision is installed transformers resizes with torch instead: that differs from Pillow in
under 1 % of the values, by 2 of 255 at most. ``resize_float`` is for processors that exist for torchvision alone and
rescale before they resize (DINOv3): Pillow's float resize agrees with torch's antialiased one to 1e-4 of full scale.

How a picture becomes RGB is ``decoding``, the convention of the library that the model comes from:

- ``transformers`` and ``transformers-convert-rgb`` (by the processor's ``do_convert_rgb``), for sentence-transformers
  too. A file, by path or as bytes: turned upright by its EXIF orientation and alpha dropped, as ``load_image`` does; a
  processor that converts then whitens the one colour that a file may call transparent. A Pillow image: not turned, and
  transparency laid over white; one that is gray or has alpha, which a processor that does not convert refuses, as well.
- ``timm``: ``Image.open(path).convert("RGB")``: not turned, alpha dropped, files and Pillow images alike.
- ``over-white``, that of earlier bundles and of our own training: not turned unless ``apply_exif`` is set, transparency
  laid over white, more than 8 bits a channel refused, because Pillow clips at 255. In the others it clips, as there.

An array is what it is: the channels last, alpha laid over white. Of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import Card, from_json
from deploykit.runtime.preprocess import Item
from deploykit.runtime.preprocess.parallel import map_threads

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Larger images are refused, decoded or resized: a small file can unfold to gigabytes. It is Pillow's own limit."""

_RESIZES = (
    {"height", "width"},
    {"shortest_edge"},
    {"longest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)
_MODES_OF_8_BITS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@dataclass(frozen=True)
class Options:
    """``card.preprocess`` of an image encoder; steps run in the order of the fields, None skips one.

    ``resize`` is one of {height, width}, {shortest_edge}, {longest_edge}, {shortest_edge, longest_edge} (the second is
    a bound) and {max_height, max_width}. ``crop`` is (height, width), cut from the centre, with zeros around a smaller
    image; an odd margin is halved as ``crop_rounding`` says: down, as in transformers, or to the even number, as in
    torchvision. A value x becomes (x * rescale - offset - mean) / std, per channel. ``pad`` is (height, width): zeros
    at the bottom and right, after normalising.
    """

    apply_exif: bool = False
    decoding: Literal["over-white", "transformers", "transformers-convert-rgb", "timm"] = "over-white"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: dict[str, int] | None = None
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    resize_float: bool = False
    crop: tuple[int, int] | None = None
    crop_rounding: Literal["down", "even"] = "down"
    rescale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    pad: tuple[int, int] | None = None

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every preprocessed image, or None where they depend on the image."""
        if self.pad or self.crop:
            return self.pad or self.crop
        if self.resize and "height" in self.resize:
            return self.resize["height"], self.resize["width"]
        return None


class Preprocessor:
    """Paths, bytes, Pillow images and uint8 arrays [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] to batches of pixels.

    Several images are decoded at once in a small pool of threads: Pillow and numpy free the interpreter while they
    work. An array that needs no resize needs no Pillow.
    """

    def __init__(self, options: Options, name: str, bounds: dict[str, tuple[int, int]] | None = None) -> None:
        self.options = options
        self._name = name
        self._bounds = bounds or {}
        std = np.asarray(options.std, np.float64)
        scale, bias = options.rescale / std, -(options.offset + np.asarray(options.mean, np.float64)) / std
        count = 1 if options.channels == "gray" else 3
        self._scale = np.broadcast_to(scale, count).astype(np.float32).reshape(count, 1, 1)
        self._bias = np.broadcast_to(bias, count).astype(np.float32).reshape(count, 1, 1)

    @classmethod
    def open(cls, card: Card, root: Path) -> Preprocessor:
        """Read ``card.preprocess``; `BundleError` names a wrong key. No file below ``root`` is needed."""
        data = {key: value for key, value in card.preprocess.items() if key != "kind"}
        options = from_json(Options, data, "card.preprocess")
        check(options)
        return cls(options, card.inputs[0].name, card.limits.axes)

    def items(self, inputs: Sequence[Any], *, kind: str | None = None) -> list[Item]:
        """One item per image, cost in pixels; `InputError` names the first image that cannot be used."""
        if kind is not None:
            raise InputError(f"kind={kind!r} was asked for, and an image encoder has no prompts", hint="leave kind out")
        return map_threads(self._item, inputs)

    def collate(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Stack to [batch, channels, height, width]; an encoder that takes any size still needs one size a batch."""
        arrays = [item.tensors[self._name] for item in items]
        sizes = sorted({array.shape[1:] for array in arrays})
        if len(sizes) > 1:
            listed = ", ".join(f"{height} x {width}" for height, width in sizes[:4])
            raise InputError(
                f"one batch holds images of {len(sizes)} sizes ({listed})", hint="batch images of equal size"
            )
        return {self._name: np.stack(arrays)}

    def _item(self, image: Any, index: int) -> Item:
        where = describe(image, index)
        pixels = load(image, where, self.options)
        if self.options.resize is not None:
            height, width = target_size(pixels.shape[0], pixels.shape[1], self.options.resize)
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise InputError(
                    f"{where} would be resized to {height} x {width}", hint="crop it: it is too long and thin"
                )
            pixels = resize(pixels, height, width, self.options)
        if self.options.crop is not None:
            pixels = center_crop(pixels, *self.options.crop, even=self.options.crop_rounding == "even")
        if self.options.channels == "bgr":
            pixels = pixels[..., ::-1]
        tensor = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        tensor *= self._scale
        tensor += self._bias
        if self.options.pad is not None:
            tensor = _pad(tensor, *self.options.pad, where)
        self._check_bounds(tensor, where)
        return Item({self._name: tensor}, tensor.shape[1] * tensor.shape[2])

    def _check_bounds(self, tensor: np.ndarray, where: str) -> None:
        for axis, size in zip(("height", "width"), tensor.shape[1:], strict=True):
            low, high = self._bounds.get(axis, (size, size))
            if not low <= size <= high:
                raise InputError(f"{where} has {axis} {size}, and {low} to {high} is proven", hint="resize it first")


def check(options: Options) -> None:
    """`BundleError` for settings that contradict each other."""
    if options.resize is not None and set(options.resize) not in _RESIZES:
        raise BundleError(
            f"card.preprocess.resize has the keys {sorted(options.resize)}", hint=f"use one of {_RESIZES}"
        )
    sizes = [*(options.resize or {}).values(), *(options.crop or ()), *(options.pad or ())]
    if any(size < 1 for size in sizes):
        raise BundleError(f"card.preprocess holds the size {min(sizes)}", hint="sizes are 1 pixel or more")
    count = 1 if options.channels == "gray" else 3
    for key in ("mean", "std"):
        if len(getattr(options, key)) not in (1, count):
            found = len(getattr(options, key))
            raise BundleError(
                f"card.preprocess.{key} has {found} values for {count} channels", hint=f"give 1 or {count}"
            )
    if 0.0 in options.std:
        raise BundleError("card.preprocess.std holds a zero", hint="use 1 where nothing is to be divided")


def describe(image: Any, index: int) -> str:
    """How messages name an image: its path where it has one."""
    if isinstance(image, (str, os.PathLike)):
        return f"image '{os.fspath(image)}'"
    filename = getattr(image, "filename", "")
    return f"image {index} ('{filename}')" if filename else f"image {index}"


def load(image: Any, where: str, options: Options) -> np.ndarray:
    """Decode to uint8 [H, W, channels]; `InputError` for what is no image, is damaged, empty or too large."""
    if isinstance(image, np.ndarray):
        pixels = _from_array(image, where, options.channels)
    elif isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)):
        source = Path(image) if isinstance(image, (str, os.PathLike)) else io.BytesIO(image)
        with _naming(where), _pillow().open(source) as opened:
            _refuse_huge(opened.size, where)
            pixels = _from_pillow(_from_file(opened, options), where, options)
    elif hasattr(image, "getbands"):
        _refuse_huge(image.size, where)
        with _naming(where):
            pixels = _from_pillow(image, where, options)
    else:
        kind = type(image).__name__
        raise InputError(f"{where} is a {kind}", hint="pass a path, bytes, a Pillow image or a uint8 array [H, W, 3]")
    if 0 in pixels.shape:
        raise InputError(f"{where} is {pixels.shape[1]} x {pixels.shape[0]} pixels", hint="leave empty images out")
    return pixels


def _refuse_huge(size: tuple[int, int], where: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"{where} is {size[0]} x {size[1]} pixels", hint=f"scale it below {MAX_PIXELS:,} pixels")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn whatever goes wrong while reading an image into an `InputError` that names it."""
    pillow = _pillow()
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{where} does not exist", hint="check the path") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(
            f"{where} cannot be read: {error.strerror}", hint="pass the path of a readable file"
        ) from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(f"{where} is too large: {error}", hint=f"scale it below {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # decoders raise errors of every type on damaged data
        hint = "the file is empty, damaged, cut off or of a format that Pillow does not read"
        raise InputError(f"{where} cannot be decoded: {error}", hint=hint) from error


def _from_file(image: Image, options: Options) -> Image:
    """What transformers' ``load_image`` does to a file before a processor sees it; ``image`` is ours to change."""
    if not options.decoding.startswith("transformers"):
        return image
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    return _opaque(image).convert("RGB")


def _from_pillow(image: Image, where: str, options: Options) -> np.ndarray:
    pillow = _pillow()
    if options.decoding == "over-white" and image.mode not in _MODES_OF_8_BITS:
        raise InputError(f"{where} has the pixel format '{image.mode}'", hint="scale its values to 8 bits first")
    if options.apply_exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if options.decoding == "timm" or (options.decoding == "transformers" and image.mode == "RGB"):
        image = _opaque(image)
    elif "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    pixels = np.asarray(image.convert("L" if options.channels == "gray" else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _opaque(image: Image) -> Image:
    """The image, or a copy of a palette that calls several entries transparent: Pillow warns where it converts one."""
    if isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]
    return image


def _from_array(image: np.ndarray, where: str, channels: str) -> np.ndarray:
    if image.dtype != np.uint8:
        raise InputError(f"{where} is an array of {image.dtype}", hint="pass uint8 values from 0 to 255")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        shape = list(image.shape)
        raise InputError(
            f"{where} is an array of shape {shape}", hint="pass [H, W], [H, W, 3] or [H, W, 4]: channels come last"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == 4:
        alpha = image[..., 3:] / 255
        image = np.round(alpha * image[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    if channels == "gray" and image.shape[2] == 3:
        # ITU-R 601 luma in the 16-bit fixed point that Pillow's convert("L") uses.
        weighted = image.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]
    return np.repeat(image, 3, axis=2) if channels != "gray" and image.shape[2] == 1 else image


def target_size(height: int, width: int, rule: dict[str, int]) -> tuple[int, int]:
    """Height and width after the resize ``rule`` of an image; roundings are those of transformers."""
    if "height" in rule:
        return rule["height"], rule["width"]
    if "max_height" in rule:
        scale = min(rule["max_height"] / height, rule["max_width"] / width)
        return int(height * scale), int(width * scale)
    if "shortest_edge" not in rule:
        scale = rule["longest_edge"] / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)
    short, long, size = min(height, width), max(height, width), rule["shortest_edge"]
    exact: float = size
    if "longest_edge" in rule and long / short * size > rule["longest_edge"]:
        exact = rule["longest_edge"] * short / long
        size = round(exact)
    if "longest_edge" in rule and short == size:
        return height, width
    stretched = int(exact * long / short)
    return (stretched, size) if width <= height else (size, stretched)


def resize(pixels: np.ndarray, height: int, width: int, options: Options) -> np.ndarray:
    """Resize uint8 [H, W, C] with Pillow; with ``resize_float`` the result is float32 and not rounded."""
    if pixels.shape[:2] == (height, width):
        return pixels
    pillow = _pillow()
    resample = pillow.Resampling[options.resample.upper()]
    if options.resize_float:
        planes = [pillow.fromarray(plane) for plane in pixels.transpose(2, 0, 1).astype(np.float32)]
        return np.stack([np.asarray(plane.resize((width, height), resample)) for plane in planes], axis=-1)
    image = pillow.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    resized = np.asarray(image.resize((width, height), resample))
    return resized[..., None] if resized.ndim == 2 else resized


def center_crop(pixels: np.ndarray, height: int, width: int, *, even: bool = False) -> np.ndarray:
    """The centre [height, width, C], a view where the image is large enough, else with zeros around it.

    ``even``: an odd margin is split as torchvision's CenterCrop does.
    """
    rows, columns = pixels.shape[:2]
    if even:
        canvas = np.zeros((max(rows, height), max(columns, width), pixels.shape[2]), pixels.dtype)
        above, before = (canvas.shape[0] - rows) // 2, (canvas.shape[1] - columns) // 2
        canvas[above : above + rows, before : before + columns] = pixels
        top, left = round((canvas.shape[0] - height) / 2), round((canvas.shape[1] - width) / 2)
        return canvas[top : top + height, left : left + width]
    if rows >= height and columns >= width:
        top, left = (rows - height) // 2, (columns - width) // 2
        return pixels[top : top + height, left : left + width]
    canvas = np.zeros((max(rows, height), max(columns, width), pixels.shape[2]), pixels.dtype)
    # An odd margin is split with the larger half first when padding and last when cropping, as in transformers.
    pad_top, pad_left = (canvas.shape[0] - rows + 1) // 2, (canvas.shape[1] - columns + 1) // 2
    canvas[pad_top : pad_top + rows, pad_left : pad_left + columns] = pixels
    top, left = (rows - height) // 2 + pad_top, (columns - width) // 2 + pad_left
    return canvas[top : top + height, left : left + width]


def _pad(tensor: np.ndarray, height: int, width: int, where: str) -> np.ndarray:
    channels, rows, columns = tensor.shape
    if rows > height or columns > width:
        raise InputError(f"{where} is {rows} x {columns} and does not fit {height} x {width}", hint="scale it down")
    padded = np.zeros((channels, height, width), np.float32)
    padded[:, :rows, :columns] = tensor
    return padded


def _pillow() -> Any:
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        hint = f"{pip_install('image')}, or pass uint8 arrays of the model's own size"
        raise MissingError("Pillow is needed to decode or resize images and is not installed", hint=hint) from error
    return PIL.Image
