"""Image files and Pillow images: decoded as the library that the model comes from decodes them."""

import io
import struct
import zlib

import numpy as np
import pytest

from deploykit.runtime.errors import InputError
from deploykit.runtime.manifest import Card, Embedding, from_json
from deploykit.runtime.preprocess import image, open_preprocessor
from deploykit.sources import timm
from deploykit.sources._processors import image_preprocess

Image = pytest.importorskip("PIL.Image")
transformers = pytest.importorskip("transformers")
image_utils = pytest.importorskip("transformers.image_utils")

ORIENTATION = 0x0112
SQUARE = {"size": {"height": 24, "width": 20}}
PROCESSORS = {
    "ViTImageProcessorPil": SQUARE,
    "CLIPImageProcessorPil": {"size": {"shortest_edge": 24}, "crop_size": 20},
    "SiglipImageProcessorPil": SQUARE,
    "ConvNextImageProcessorPil": {"size": {"shortest_edge": 24}},
}


def picture(mode="RGB", height=21, width=34):
    """Smooth noise, so that a turned or flipped picture differs everywhere."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    coarse = np.random.default_rng(channels).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    return Image.fromarray(coarse.squeeze(), mode=None if mode in ("L", "RGB", "RGBA") else mode).resize(
        (width, height)
    )


def encoded(made, kind, **options):
    buffer = io.BytesIO()
    made.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation, kind):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(), kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))


def turned_by_late_chunk():
    """A PNG whose eXIf chunk stands behind the pixels, where the format allows it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    plain = encoded(picture(), "PNG")
    return plain[:-12] + chunk + plain[-12:]


def palette(kind, transparency=None):
    return encoded(picture().quantize(16), kind, **({} if transparency is None else {"transparency": transparency}))


def animated(kind):
    frames = [picture(), picture().rotate(180), picture().rotate(90)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)


def gray(dtype, top, kind="TIFF"):
    return encoded(Image.fromarray(np.linspace(-3, top, 21 * 34).reshape(21, 34).clip(0).astype(dtype)), kind)


FILES = {
    **{f"JPEG, orientation {n}": lambda n=n: turned(n, "JPEG") for n in range(1, 9)},
    **{f"{kind}, orientation {n}": lambda n=n, kind=kind: turned(n, kind)
       for kind in ("PNG", "WEBP", "TIFF") for n in (3, 6)},
    "PNG with late EXIF": turned_by_late_chunk,
    "orientation out of range": lambda: turned(9, "JPEG"),
    "progressive JPEG": lambda: encoded(picture(), "JPEG", progressive=True),
    "gray JPEG": lambda: encoded(picture("L"), "JPEG"),
    "CMYK JPEG, inverted by Adobe's marker": lambda: encoded(picture("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: encoded(picture("CMYK"), "TIFF"),
    "palette": lambda: palette("PNG"),
    "palette, one colour transparent": lambda: palette("PNG", 3),
    "palette, transparency by colour": lambda: palette("PNG", bytes(range(0, 256, 16))),
    "palette GIF, transparent": lambda: palette("GIF", 3),
    "gray, one value transparent": lambda: encoded(picture("L"), "PNG", transparency=100),
    "colour, one colour transparent": lambda: encoded(picture(), "PNG", transparency=picture().getpixel((0, 0))),
    "LA": lambda: encoded(picture("LA"), "PNG"),
    "RGBA": lambda: encoded(picture("RGBA"), "PNG"),
    "RGBA WebP": lambda: encoded(picture("RGBA"), "WEBP", lossless=True),
    "1 bit": lambda: encoded(picture("L").convert("1"), "PNG"),
    "16 bits": lambda: gray(np.uint16, 65535, "PNG"),
    "16 bits, TIFF": lambda: gray(np.uint16, 300),
    "32 bits": lambda: gray(np.int32, 400),
    "32 bits, float": lambda: gray(np.float32, 260),
    "animated GIF": lambda: animated("GIF"),
    "animated PNG": lambda: animated("PNG"),
    "animated WebP": lambda: animated("WEBP"),
    "one pixel": lambda: encoded(picture(height=1, width=1), "PNG"),
    "1:50": lambda: encoded(picture(height=100, width=2), "PNG"),
    "50:1": lambda: encoded(picture(height=2, width=100), "PNG"),
}  # fmt: skip
PICTURES = {
    "with EXIF": lambda: Image.open(io.BytesIO(turned(6, "JPEG"))),
    "palette": lambda: Image.open(io.BytesIO(palette("PNG", bytes(range(0, 256, 16))))),
    **{mode: lambda mode=mode: picture(mode) for mode in ("L", "LA", "RGB", "RGBA", "CMYK")},
    "PA": lambda: picture("RGBA").quantize(16).convert("PA"),
    "1 bit": lambda: picture("L").convert("1"),
    "16 bits": lambda: Image.open(io.BytesIO(gray(np.uint16, 65535, "PNG"))),
    "32 bits": lambda: Image.open(io.BytesIO(gray(np.int32, 400))),
    "second frame": lambda: at_frame(1),
}


def at_frame(number):
    opened = Image.open(io.BytesIO(animated("GIF")))
    opened.seek(number)
    return opened


@pytest.fixture(scope="module", params=PROCESSORS)
def pair(request, tmp_path_factory):
    """A processor of transformers, and our preprocessor for its folder."""
    folder = tmp_path_factory.mktemp("processor")
    theirs = getattr(transformers, request.param)(**PROCESSORS[request.param])
    theirs.save_pretrained(folder)
    made = image_preprocess(folder)
    card = Card("it", "image", made.inputs, (), Embedding("e", 1, "none", False), made.preprocess)
    return theirs, open_preprocessor(card, folder)


def ours(preprocessor, value):
    return preprocessor.items([value])[0].tensors["pixel_values"]


@pytest.mark.parametrize("name", FILES)
def test_files_are_decoded_as_transformers_decodes_them(pair, name, tmp_path):
    theirs, preprocessor = pair
    path = tmp_path / "picture"
    path.write_bytes(FILES[name]())
    expected = theirs(str(path), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(preprocessor, path), expected, atol=1e-5)
    np.testing.assert_array_equal(ours(preprocessor, path.read_bytes()), ours(preprocessor, path))


@pytest.mark.parametrize("name", PICTURES)
def test_pillow_images_are_taken_as_the_processors_of_transformers_take_them(pair, name):
    theirs, preprocessor = pair
    expected = theirs(PICTURES[name](), do_convert_rgb=True, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(preprocessor, PICTURES[name]()), expected, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [3, 1])
def test_files_are_decoded_as_timm_decodes_them(name, channels, tmp_path):
    config = {"input_size": (channels, 8, 8), "interpolation": "bilinear", "mean": [0.5], "std": [0.5]}
    options = from_json(image.Options, {k: v for k, v in timm.preprocess("it", config).items() if k != "kind"}, "it")
    (tmp_path / "picture").write_bytes(FILES[name]())
    expected = np.asarray(Image.open(tmp_path / "picture").convert("RGB" if channels == 3 else "L"))
    pixels = image.load(tmp_path / "picture", "it", options)
    np.testing.assert_array_equal(pixels, expected.reshape(*expected.shape[:2], channels))
    np.testing.assert_array_equal(image.load(Image.open(tmp_path / "picture"), "it", options), pixels)


def test_a_colour_that_counts_as_transparent_stays_unless_the_processor_converts(pair):
    theirs, preprocessor = pair
    tagged = Image.open(io.BytesIO(FILES["colour, one colour transparent"]()))
    expected = theirs(tagged, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours(preprocessor, tagged), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["JPEG, orientation 6", "palette", "RGBA", "LA", "gray JPEG", "16 bits"])
def test_a_gray_model_gets_the_luma_of_what_transformers_loads(name):
    loaded = image_utils.load_image(Image.open(io.BytesIO(FILES[name]())))
    for decoding in ("transformers", "transformers-convert-rgb"):
        pixels = image.load(FILES[name](), "it", image.Options(decoding=decoding, channels="gray"))
        np.testing.assert_array_equal(pixels[..., 0], np.asarray(loaded.convert("L")))


@pytest.mark.parametrize("decoding", ["over-white", "transformers", "transformers-convert-rgb", "timm"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused_by_its_name(decoding, kind, share, tmp_path):
    whole = encoded(picture(height=63, width=102), kind)
    path = tmp_path / "cut off"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"image '.*cut off' cannot be decoded"):
        image.load(path, image.describe(path, 0), image.Options(decoding=decoding))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_enormous_picture_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (9500, 9500)), "PNG")
    for decoding in ("over-white", "transformers", "transformers-convert-rgb", "timm"):
        for given in (bomb, Image.open(io.BytesIO(bomb))):
            with pytest.raises(InputError, match="9500 x 9500 pixels"):
                image.load(given, "it", image.Options(decoding=decoding))


def test_a_bundle_without_the_key_decodes_as_it_did():
    options = from_json(image.Options, {"apply_exif": False, "channels": "rgb"}, "card.preprocess")
    turned_on_its_side = Image.open(io.BytesIO(turned(6, "PNG")))
    np.testing.assert_array_equal(image.load(turned(6, "PNG"), "it", options), np.asarray(turned_on_its_side))
    see_through = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (image.load(encoded(see_through, "PNG"), "it", options) == 255).all()
    with pytest.raises(InputError, match="pixel format"):
        image.load(FILES["32 bits"](), "it", options)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_are_taken_as_the_processors_of_transformers_take_them(pair, channels):
    theirs, preprocessor = pair
    array = np.random.default_rng(channels).integers(0, 256, (21, 34, channels), dtype=np.uint8)
    options = {"do_convert_rgb": True, "input_data_format": "channels_last", "return_tensors": "np"}
    np.testing.assert_allclose(ours(preprocessor, array), theirs(array, **options)["pixel_values"][0], atol=1e-5)
