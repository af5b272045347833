"""Image preprocessing on the device: what it takes, what it makes, what it refuses."""

import io
import subprocess
import sys

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError, InputError
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from deploykit.runtime.preprocess import image, open_preprocessor

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(7)


def make_card(preprocess, axes=None):
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, "height", "width"))
    embedding = Embedding("embedding", 4, "cls", False)
    return Card("vit", "image", (spec,), (), embedding, {"kind": "image", **preprocess}, Limits(axes or {}))


def preprocess(value, tmp_path=None, axes=None, **options):
    preprocessor = open_preprocessor(make_card(options, axes), tmp_path)
    return preprocessor.items([value])[0].tensors["pixel_values"]


def pixels(height, width, channels=3):
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_values_are_rescaled_and_normalised_per_channel():
    array = pixels(5, 7)
    result = preprocess(array, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2], offset=1.0)
    expected = ((array / 255 - 1 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 0.2]).transpose(2, 0, 1)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


def test_path_bytes_pillow_image_and_array_agree(tmp_path):
    array = pixels(30, 41)
    (tmp_path / "a.png").write_bytes(png(array))
    forms = [array, png(array), Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")]
    results = [preprocess(form, resize={"height": 16, "width": 12}, resample="bicubic") for form in forms]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert results[0].shape == (3, 16, 12)


def test_items_keep_order_and_collate_stacks():
    preprocessor = open_preprocessor(make_card({"rescale": 1.0}), None)
    items = preprocessor.items([np.full((4, 6, 3), value, np.uint8) for value in range(20)])
    batch = preprocessor.collate(items)["pixel_values"]
    assert batch.shape == (20, 3, 4, 6)
    assert batch[:, 0, 0, 0].tolist() == list(range(20))
    assert items[0].cost == 24


def test_images_of_different_sizes_do_not_stack():
    preprocessor = open_preprocessor(make_card({}), None)
    items = preprocessor.items([pixels(4, 4), pixels(4, 5)])
    with pytest.raises(InputError, match="4 x 4, 4 x 5"):
        preprocessor.collate(items)


@pytest.mark.parametrize(
    ("rule", "size", "expected"),
    [
        ({"height": 8, "width": 9}, (100, 50), (8, 9)),
        ({"shortest_edge": 224}, (480, 641), (224, 299)),
        ({"shortest_edge": 224}, (641, 480), (299, 224)),
        ({"longest_edge": 100}, (50, 200), (25, 100)),
        ({"shortest_edge": 80, "longest_edge": 100}, (50, 200), (25, 100)),
        ({"shortest_edge": 80, "longest_edge": 1000}, (50, 200), (80, 320)),
        ({"max_height": 100, "max_width": 100}, (50, 200), (25, 100)),
    ],
)
def test_target_size(rule, size, expected):
    assert image.target_size(*size, rule) == expected


@pytest.mark.parametrize("shape", [(4, 4), (5, 4), (3, 9), (2, 2), (7, 7)])
def test_center_crop_cuts_the_middle_or_surrounds_with_zeros(shape):
    array = pixels(*shape) // 2 + 1
    cropped = image.center_crop(array, 4, 6)
    assert cropped.shape == (4, 6, 3)
    kept = min(shape[0], 4) * min(shape[1], 6)
    assert np.count_nonzero(cropped.all(axis=2)) == kept


def test_padding_stands_at_the_bottom_right_after_normalising():
    result = preprocess(pixels(3, 4), pad=[5, 6], mean=[0.5], std=[0.5])
    assert result.shape == (3, 5, 6)
    assert not result[:, 3:].any()
    assert not result[:, :, 4:].any()


def test_bgr_swaps_red_and_blue():
    array = pixels(3, 3)
    assert np.array_equal(preprocess(array, channels="bgr"), preprocess(array)[::-1])


def test_gray_becomes_three_equal_channels_and_rgb_becomes_luma():
    gray = pixels(6, 5, 1)[..., 0]
    assert np.array_equal(preprocess(gray), np.repeat(preprocess(gray)[:1], 3, axis=0))
    array = pixels(6, 5)
    from_array = preprocess(array, channels="gray", rescale=1.0)
    assert from_array.shape == (1, 6, 5)
    assert np.array_equal(from_array, preprocess(png(array), channels="gray", rescale=1.0))


def test_transparency_is_laid_over_white():
    array = pixels(6, 5, 4)
    array[..., 3] = 0
    assert np.array_equal(preprocess(array), np.ones((3, 6, 5), np.float32))
    assert np.array_equal(preprocess(png(array)), np.ones((3, 6, 5), np.float32))


def test_exif_rotation_is_applied_only_when_asked():
    tagged = Image.fromarray(pixels(4, 6))
    tagged.getexif()[274] = 6
    buffer = io.BytesIO()
    tagged.save(buffer, "PNG", exif=tagged.getexif())
    assert preprocess(buffer.getvalue()).shape == (3, 4, 6)
    assert preprocess(buffer.getvalue(), apply_exif=True).shape == (3, 6, 4)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_float_resize_agrees_with_torch(mode):
    torch = pytest.importorskip("torch")
    array = pixels(50, 37)
    result = preprocess(array, resize={"height": 24, "width": 31}, resample=mode, resize_float=True)
    tensor = torch.from_numpy(array.transpose(2, 0, 1) / np.float32(255))[None]
    expected = torch.nn.functional.interpolate(tensor, (24, 31), mode=mode, antialias=True)[0].numpy()
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "image 0 cannot be decoded"),
        (b"not an image", "image 0 cannot be decoded"),
        (png(pixels(64, 64))[:200], "image 0 cannot be decoded"),
        (np.zeros((0, 4, 3), np.uint8), "4 x 0 pixels"),
        (np.zeros((3, 8, 9), np.uint8), r"shape \[3, 8, 9\]"),
        (np.zeros((8, 9, 3), np.float32), "array of float32"),
        (Image.new("I;16", (4, 4)), "pixel format 'I;16'"),
        (Image.new("RGB", (0, 4)), "image 0"),
        (3, "image 0 is a int"),
    ],
)
def test_unusable_images_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        preprocess(value)


def test_files_are_named_in_errors(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for name, message in [("none.jpg", "does not exist"), ("empty.jpg", "cannot be decoded"), ("", "cannot be read")]:
        with pytest.raises(InputError, match=message) as caught:
            preprocess(tmp_path / name)
        assert name in str(caught.value)


def test_a_damaged_lazy_pillow_image_is_refused():
    lazy = Image.open(io.BytesIO(png(pixels(64, 64))[:300]))
    with pytest.raises(InputError, match="cannot be decoded"):
        preprocess(lazy)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("edge", [9500, 14000])
def test_decompression_bombs_are_refused_before_they_unfold(edge):
    buffer = io.BytesIO()
    Image.new("1", (edge, edge)).save(buffer, "PNG")
    with pytest.raises(InputError, match=r"pixels|too large"):
        preprocess(buffer.getvalue())


def test_a_resize_to_an_absurd_size_is_refused():
    with pytest.raises(InputError, match="too long and thin"):
        preprocess(pixels(1, 5000), resize={"shortest_edge": 224})
    with pytest.raises(InputError, match="resized to 0 x 10"):
        preprocess(pixels(1, 5000), resize={"longest_edge": 10})


def test_sizes_outside_the_proven_bounds_are_refused():
    with pytest.raises(InputError, match="width 9, and 1 to 8 is proven"):
        preprocess(pixels(4, 9), axes={"height": (1, 8), "width": (1, 8)})


def test_a_prompt_is_refused():
    with pytest.raises(InputError, match="no prompts"):
        open_preprocessor(make_card({}), None).items([], kind="query")


def test_no_images_give_no_items():
    assert open_preprocessor(make_card({}), None).items([]) == []


@pytest.mark.parametrize(
    "options",
    [
        {"colour": "rgb"},
        {"resize": {"edge": 3}},
        {"resize": {"shortest_edge": 0}},
        {"mean": [0.1, 0.2]},
        {"std": [0.0]},
        {"resample": "cubic"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(BundleError, match=r"card\.preprocess"):
        open_preprocessor(make_card(options), None)


def test_arrays_of_the_right_size_need_no_pillow():
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "import numpy as np\n"
        "from deploykit.runtime.errors import MissingError\n"
        "from deploykit.runtime.preprocess.image import Options, Preprocessor\n"
        "p = Preprocessor(Options(resize={'height': 4, 'width': 4}), 'x')\n"
        "assert p.items([np.zeros((4, 4, 3), np.uint8)])[0].tensors['x'].shape == (3, 4, 4)\n"
        "try: p.items([np.zeros((5, 4, 3), np.uint8)])\n"
        "except MissingError as error: assert 'pip install \"pillow>=' in error.hint\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
