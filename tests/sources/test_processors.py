"""Processor files become preprocessing that gives the tensors of transformers' own processors."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from deploykit.errors import SourceError
from deploykit.runtime.manifest import Card, Embedding, TensorSpec
from deploykit.runtime.preprocess import open_preprocessor
from deploykit.sources import _processor_defaults as defaults
from deploykit.sources._processors import audio_preprocess, image_preprocess

RNG = np.random.default_rng(11)
IMAGE_CLASSES = sorted(set(defaults.IMAGE) - {"DINOv3ViTImageProcessor"})  # that one has no Pillow form


def write(folder, processor, config=None, name="preprocessor_config.json"):
    (folder / name).write_text(json.dumps(processor))
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def run(made, value):
    embedding = Embedding("embedding", 4, "cls", False)
    modality = made.preprocess["kind"]
    preprocessor = open_preprocessor(Card("model", modality, made.inputs, (), embedding, made.preprocess), None)
    feeds = preprocessor.collate(preprocessor.items([value]))
    for spec in made.inputs:
        assert feeds[spec.name].dtype == np.dtype(spec.dtype)
        assert all(
            isinstance(want, str) or want == got for want, got in zip(spec.shape, feeds[spec.name].shape, strict=True)
        )
    return feeds


def reference(name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    return getattr(transformers, name)


def images():
    from PIL import Image

    def smooth(height, width, channels):
        small = RNG.integers(0, 256, (height // 5 + 1, width // 5 + 1, channels), dtype=np.uint8)
        return Image.fromarray(small.squeeze()).resize((width, height))

    shapes = [(37, 53, 3), (301, 200, 3), (224, 224, 3), (31, 433, 3), (101, 123, 1), (101, 123, 4)]
    return [*(smooth(*shape) for shape in shapes), smooth(101, 123, 3).quantize(32)]


def on_white(picture):
    """Grey and transparent images as the processors that convert see them."""
    convert_to_rgb = importlib.import_module("transformers.image_transforms").convert_to_rgb
    return convert_to_rgb(picture, return_numpy=True)


@pytest.mark.parametrize("name", IMAGE_CLASSES)
def test_images_match_transformers(name, tmp_path):
    processor = reference(name + "Pil")()
    processor.save_pretrained(tmp_path)
    made = image_preprocess(tmp_path)
    for picture in images():
        if not processor.do_convert_rgb:
            picture = on_white(picture)
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(run(made, picture)["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 2}),
        ("BitImageProcessor", {"size": {"shortest_edge": 256}, "image_mean": [0.485, 0.456, 0.406]}),
        ("ViTImageProcessor", {"do_normalize": False, "size": {"height": 40, "width": 60}, "resample": 0}),
        ("ViTImageProcessor", {"do_rescale": False, "resample": 1}),
        ("ViTImageProcessor", {"size": {"shortest_edge": 50, "longest_edge": 70}}),
        ("ViTImageProcessor", {"size": {"max_height": 50, "max_width": 70}}),
        ("ViTImageProcessor", {"do_pad": True, "pad_size": {"height": 250, "width": 240}}),
        ("ViTImageProcessor", {"do_resize": False}),
        ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
        ("EfficientNetImageProcessor", {"do_center_crop": True, "do_normalize": False}),
        ("LevitImageProcessor", {"size": {"height": 70, "width": 80}}),
        ("PoolFormerImageProcessor", {"size": {"height": 70, "width": 80}, "do_center_crop": False}),
        ("CLIPImageProcessor", {"crop_size": {"height": 301, "width": 300}, "image_mean": 0.5, "image_std": 0.25}),
    ],
)
def test_settings_match_transformers(name, settings, tmp_path):
    processor = reference(name + "Pil")(**settings)
    processor.save_pretrained(tmp_path)
    made = image_preprocess(tmp_path)
    for picture in [on_white(picture) for picture in images()[:4]]:
        if picture.shape[0] > 250 and "pad_size" in settings:
            continue
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(run(made, picture)["pixel_values"], expected, atol=1e-5)


@pytest.mark.parametrize("name", IMAGE_CLASSES)
def test_image_defaults_are_those_of_transformers(name):
    processor = reference(name + "Pil")()
    ours = {**defaults.IMAGE_BASE, **defaults.IMAGE[name]}
    for key in set(ours) - {"rule", "fixed", "resize_float"}:
        theirs = getattr(processor, key, None)
        if key in ("size", "crop_size", "pad_size"):
            theirs = {edge: value for edge, value in dict(theirs).items() if value is not None}
        theirs = list(theirs) if isinstance(theirs, tuple) else theirs
        assert (theirs or False) == (ours[key] or False), key


def test_dinov3_resizes_floats(tmp_path):
    made = image_preprocess(write(tmp_path, {"image_processor_type": "DINOv3ViTImageProcessorFast"}))
    assert made.preprocess["resize_float"] is True
    assert run(made, images()[0])["pixel_values"].shape == (1, 3, 224, 224)


OLD_VIT = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}
OLD_CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 200}
FAST_VIT = {"image_processor_type": "ViTImageProcessorFast", "size": [20, 10]}


@pytest.mark.parametrize(
    ("processor", "config", "resize", "crop"),
    [
        (OLD_VIT, {}, {"height": 224, "width": 224}, None),
        (OLD_CLIP, {}, {"shortest_edge": 224}, [200, 200]),
        (FAST_VIT, {}, {"height": 20, "width": 10}, None),
        ({"size": 224, "crop_pct": 0.875}, {"model_type": "resnet"}, {"shortest_edge": 256}, [224, 224]),
        ({"size": None, "crop_size": None}, {"model_type": "dinov2"}, {"shortest_edge": 224}, [224, 224]),
        ({"size": 288, "crop_size": 256}, {"model_type": "mobilevit"}, {"shortest_edge": 288}, [256, 256]),
    ],
)
def test_old_files_are_understood(processor, config, resize, crop, tmp_path):
    made = image_preprocess(write(tmp_path, processor, config))
    assert made.preprocess["resize"] == resize
    assert made.preprocess["crop"] == crop


def test_the_nested_file_comes_first(tmp_path):
    write(tmp_path, {"image_processor_type": "ViTImageProcessor", "size": 10})
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 20}, "processor_class": "X"}
    write(tmp_path, nested, name="processor_config.json")
    assert image_preprocess(tmp_path).inputs == (TensorSpec("pixel_values", "float32", ("batch", 3, 20, 20)),)


def test_overrides_replace_keys_and_none_removes_them(tmp_path):
    write(tmp_path, {"image_processor_type": "ViTImageProcessor", "do_tiling": True})
    made = image_preprocess(tmp_path, {"do_tiling": None, "size": 32})
    assert made.inputs[0].shape == ("batch", 3, 32, 32)


def test_sizes_that_depend_on_the_image_are_dynamic_axes(tmp_path):
    made = image_preprocess(write(tmp_path, {"image_processor_type": "ViTImageProcessor", "do_resize": False}))
    assert made.inputs[0].shape == ("batch", 3, "height", "width")


def test_a_grey_encoder_gets_one_channel(tmp_path):
    processor = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.5], "image_std": [0.5]}
    made = image_preprocess(write(tmp_path, processor, {"num_channels": 1}))
    assert run(made, images()[0])["pixel_values"].shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor", "do_tiling": True}, "do_tiling"),
        ({"image_processor_type": "ViTImageProcessor", "data_format": "channels_last"}, "data_format"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"min_pixels": 1, "max_pixels": 2}}, "resize"),
        ({"image_processor_type": "ViTImageProcessor", "size": "big"}, "size"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, "resample"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2]}, "mean"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "crop_size"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3, "width": 3}}, "size"),
        ({"image_processor_type": "VitImageProcessor"}, "VitImageProcessor"),
        ({"size": 3}, "names the processor's class"),
    ],
)
def test_what_is_not_understood_is_named(processor, message, tmp_path):
    with pytest.raises(SourceError, match=message) as caught:
        image_preprocess(write(tmp_path, processor))
    assert caught.value.hint


def test_six_channels_are_refused(tmp_path):
    with pytest.raises(SourceError, match="6 channels"):
        image_preprocess(write(tmp_path, {"image_processor_type": "ViTImageProcessor"}, {"num_channels": 6}))


def test_deriving_imports_neither_torch_nor_transformers(tmp_path):
    write(tmp_path, {"image_processor_type": "ViTImageProcessor"})
    script = (
        "import sys, pathlib; from deploykit.sources._processors import image_preprocess\n"
        "image_preprocess(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


@pytest.mark.parametrize("derive", [image_preprocess, audio_preprocess])
def test_missing_and_damaged_files_are_named(derive, tmp_path):
    with pytest.raises(SourceError, match=r"no preprocessor_config\.json") as caught:
        derive(tmp_path)
    assert "save_pretrained" in caught.value.hint
    (tmp_path / "preprocessor_config.json").write_text("{half")
    with pytest.raises(SourceError, match="cannot be read"):
        derive(tmp_path)


def test_a_video_processor_is_named(tmp_path):
    with pytest.raises(SourceError, match="video encoders are not supported"):
        image_preprocess(write(tmp_path, {}, name="video_preprocessor_config.json"))


@pytest.mark.filterwarnings("ignore:At least one mel filter")
@pytest.mark.parametrize("name", sorted(defaults.AUDIO))
def test_audio_defaults_are_those_of_transformers(name):
    extractor = reference(name)()
    assert {key: getattr(extractor, key) for key in defaults.AUDIO[name]} == defaults.AUDIO[name]


@pytest.mark.parametrize(
    ("name", "settings", "counts"),
    [
        ("Wav2Vec2FeatureExtractor", {}, (1, 700, 16000)),
        ("Wav2Vec2FeatureExtractor", {"do_normalize": False, "return_attention_mask": True}, (700,)),
        ("WhisperFeatureExtractor", {}, (1, 300, 20000, 500000)),
        ("WhisperFeatureExtractor", {"feature_size": 128, "chunk_length": 2, "hop_length": 200}, (300, 31999, 32000)),
        ("ASTFeatureExtractor", {"max_length": 100}, (400, 9000, 16000)),
        ("ASTFeatureExtractor", {"num_mel_bins": 64, "do_normalize": False}, (9000,)),
        ("ClapFeatureExtractor", {"truncation": "rand_trunc", "max_length_s": 1}, (1, 300, 47000, 48000)),
        ("ClapFeatureExtractor", {"truncation": "rand_trunc", "max_length_s": 1, "padding": "pad"}, (300,)),
    ],
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_sounds_match_transformers(name, settings, counts, tmp_path):
    extractor = reference(name)(**settings)
    extractor.save_pretrained(tmp_path)
    made = audio_preprocess(tmp_path)
    for count in counts:
        sound = (RNG.standard_normal(count) * np.sin(np.arange(count) / 500)).astype(np.float32) / 4
        expected = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="np")
        feeds = run(made, sound)
        # transformers may take the spectrum in float32, which shows in the quietest bins alone.
        np.testing.assert_allclose(feeds[made.inputs[0].name], expected[made.inputs[0].name], atol=1e-4)
        assert ("attention_mask" in feeds) == bool(settings.get("return_attention_mask"))


def test_old_audio_files_are_named_by_their_model(tmp_path):
    made = audio_preprocess(write(tmp_path, {"return_attention_mask": True}, {"model_type": "hubert"}))
    assert made.preprocess == {
        "kind": "audio", "sampling_rate": 16000, "normalize": True, "padding_value": 0.0, "mel": None
    }  # fmt: skip
    assert [spec.name for spec in made.inputs] == ["input_values", "attention_mask"]


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "truncation = 'fusion'"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "dither": 0.1}, "dither"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "hop_length": "160"}, "hop_length"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "padding_value": 1.0}, "padding_value"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 2}, "feature_size"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "padding_side": "left"}, "left"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "speed": 2}, "speed"),
        ({"feature_extractor_type": "EncodecFeatureExtractor"}, "EncodecFeatureExtractor"),
    ],
)
def test_audio_settings_that_are_not_understood_are_named(processor, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        audio_preprocess(write(tmp_path, processor))


LEARNED = [
    ("DPTImageProcessor", {}, (384, 384)),
    ("DPTImageProcessor", {"size": {"height": 40, "width": 56}}, (40, 56)),
    ("DetrImageProcessor", {}, ("height", "width")),
    ("RTDetrImageProcessor", {}, (640, 640)),
]


@pytest.mark.parametrize(("name", "settings", "size"), LEARNED)
def test_a_class_that_no_table_knows_is_read_from_transformers_and_compared(name, settings, size, tmp_path):
    processor = reference(name + "Pil")(**settings)
    processor.save_pretrained(tmp_path)
    made = image_preprocess(tmp_path)
    assert made.inputs[0].shape == ("batch", 3, *size)
    for picture in [on_white(picture) for picture in images()[:4]]:
        expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
        np.testing.assert_allclose(run(made, picture)["pixel_values"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("DPTImageProcessor", {"ensure_multiple_of": 32, "keep_aspect_ratio": True}, r"a way of its own: it makes \["),
        ("MaskFormerImageProcessor", {}, "a way of its own"),
        ("Qwen2VLImageProcessor", {}, "a way of its own"),
        ("HunYuanVLImageProcessor", {}, "is not understood"),
        ("ImageGPTImageProcessor", {}, "fails on a picture by itself"),
    ],
)
def test_a_class_that_does_more_than_its_settings_say_is_refused(name, settings, says, tmp_path):
    reference(name + "Pil")(**settings).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match=says) as caught:
        image_preprocess(write(tmp_path, json.loads((tmp_path / "preprocessor_config.json").read_text())))
    assert "preprocess = 'none'" in caught.value.hint
