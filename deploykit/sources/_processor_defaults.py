"""What the processor classes of transformers do where their JSON is silent, as data.

Keys and values are those of the class attributes in transformers 5; a test compares them. Three keys are our own:
``rule`` names a way of resizing that the class has to itself, ``fixed`` holds values that the class uses whatever its
JSON says, and ``resize_float`` marks a class that rescales before it resizes. Names are without the suffixes ``Fast``
and ``Pil``.
"""

from __future__ import annotations

from typing import Any

IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
BILINEAR, BICUBIC = {"resample": 2}, {"resample": 3}


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


IMAGE_BASE: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "do_convert_rgb": False,
    "default_to_square": True,
}

_BY_SHORT_EDGE: dict[str, Any] = {"default_to_square": False, "do_center_crop": True, "crop_size": _square(224)}
_CONVERTS = {"do_convert_rgb": True}
_CLIP_LIKE: dict[str, Any] = {**BICUBIC, **CLIP, **_BY_SHORT_EDGE, **_CONVERTS, "size": {"shortest_edge": 224}}
_MOBILE_NET: dict[str, Any] = {**BILINEAR, **HALF, **_BY_SHORT_EDGE, "size": {"shortest_edge": 256}}

IMAGE: dict[str, dict[str, Any]] = {
    "BeitImageProcessor": {**BICUBIC, **HALF, "size": _square(224), "crop_size": _square(224)},
    "BitImageProcessor": _CLIP_LIKE,
    "BlipImageProcessor": {**BICUBIC, **CLIP, **_CONVERTS, "size": _square(384)},
    "CLIPImageProcessor": _CLIP_LIKE,
    "ChineseCLIPImageProcessor": _CLIP_LIKE,
    "ConvNextImageProcessor": {
        **BICUBIC,
        **HALF,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
        "rule": "convnext",
    },
    "DINOv3ViTImageProcessor": {**BILINEAR, **IMAGENET, "size": _square(224), "resize_float": True},
    "DeiTImageProcessor": {
        **BICUBIC,
        **HALF,
        "size": _square(256),
        "do_center_crop": True,
        "crop_size": _square(224),
    },
    "EfficientNetImageProcessor": {
        **BICUBIC,
        **HALF,
        "size": _square(346),
        "crop_size": _square(289),
        "rescale_offset": False,
        "include_top": True,
    },
    "LevitImageProcessor": {
        **BICUBIC,
        **IMAGENET,
        **_BY_SHORT_EDGE,
        "size": {"shortest_edge": 224},
        "rule": "levit",
    },
    "MobileNetV1ImageProcessor": _MOBILE_NET,
    "MobileNetV2ImageProcessor": _MOBILE_NET,
    "MobileViTImageProcessor": {
        **BICUBIC,
        **HALF,
        **_BY_SHORT_EDGE,
        "size": {"shortest_edge": 224},
        "crop_size": _square(256),
        "do_normalize": None,
        "do_flip_channel_order": True,
        "fixed": {"do_normalize": False},
    },
    "OwlViTImageProcessor": {**BICUBIC, **CLIP, **_CONVERTS, "size": _square(768), "crop_size": _square(768)},
    "PoolFormerImageProcessor": {
        **BICUBIC,
        **IMAGENET,
        **_BY_SHORT_EDGE,
        "size": {"shortest_edge": 224},
        "crop_pct": 0.9,
        "rule": "poolformer",
    },
    "PvtImageProcessor": {**BICUBIC, **IMAGENET, "size": _square(224)},
    "SamImageProcessor": {
        **BILINEAR,
        **IMAGENET,
        **_CONVERTS,
        "size": {"longest_edge": 1024},
        "do_pad": True,
        "pad_size": _square(1024),
    },
    "SegformerImageProcessor": {**BILINEAR, **IMAGENET, "size": _square(512)},
    "SiglipImageProcessor": {**BICUBIC, **HALF, **_CONVERTS, "size": _square(224), "default_to_square": False},
    "ViTImageProcessor": {**BILINEAR, **HALF, "size": _square(224)},
}

IMAGE_CLASS_OF_MODEL: dict[str, str] = {
    "aimv2": "CLIPImageProcessor",
    "aimv2_vision_model": "CLIPImageProcessor",
    "align": "EfficientNetImageProcessor",
    "altclip": "CLIPImageProcessor",
    "beit": "BeitImageProcessor",
    "bit": "BitImageProcessor",
    "blip": "BlipImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "cvt": "ConvNextImageProcessor",
    "data2vec-vision": "BeitImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinat": "ViTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_convnext": "DINOv3ViTImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
    "focalnet": "BitImageProcessor",
    "groupvit": "CLIPImageProcessor",
    "hiera": "BitImageProcessor",
    "ijepa": "ViTImageProcessor",
    "levit": "LevitImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "mlcd": "CLIPImageProcessor",
    "mobilenet_v1": "MobileNetV1ImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "mobilevitv2": "MobileViTImageProcessor",
    "owlvit": "OwlViTImageProcessor",
    "pixio": "BitImageProcessor",
    "poolformer": "PoolFormerImageProcessor",
    "pvt": "PvtImageProcessor",
    "pvt_v2": "PvtImageProcessor",
    "regnet": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "sam": "SamImageProcessor",
    "segformer": "SegformerImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "swiftformer": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "vit_msn": "ViTImageProcessor",
}

AUDIO: dict[str, dict[str, Any]] = {
    "ASTFeatureExtractor": {
        "feature_size": 1,
        "sampling_rate": 16000,
        "num_mel_bins": 128,
        "max_length": 1024,
        "padding_value": 0.0,
        "do_normalize": True,
        "mean": -4.2677393,
        "std": 4.5689974,
    },
    "ClapFeatureExtractor": {
        "feature_size": 64,
        "sampling_rate": 48000,
        "hop_length": 480,
        "max_length_s": 10,
        "fft_window_size": 1024,
        "padding_value": 0.0,
        "frequency_min": 0,
        "frequency_max": 14000,
        "truncation": "fusion",
        "padding": "repeatpad",
    },
    "Wav2Vec2FeatureExtractor": {
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_value": 0.0,
        "return_attention_mask": False,
        "do_normalize": True,
    },
    "WhisperFeatureExtractor": {
        "feature_size": 80,
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
        "dither": 0.0,
    },
}

AUDIO_CLASS_OF_MODEL: dict[str, str] = {
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "clap": "ClapFeatureExtractor",
    "clap_audio_model": "ClapFeatureExtractor",
    "data2vec-audio": "Wav2Vec2FeatureExtractor",
    "hubert": "Wav2Vec2FeatureExtractor",
    "sew": "Wav2Vec2FeatureExtractor",
    "sew-d": "Wav2Vec2FeatureExtractor",
    "unispeech": "Wav2Vec2FeatureExtractor",
    "unispeech-sat": "Wav2Vec2FeatureExtractor",
    "wav2vec2": "Wav2Vec2FeatureExtractor",
    "wav2vec2-conformer": "Wav2Vec2FeatureExtractor",
    "wavlm": "Wav2Vec2FeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}

INERT: frozenset[str] = frozenset(
    {
        # names and bookkeeping
        "_processor_class", "auto_map", "class_name", "feature_extractor_type", "image_processor_type",
        "model_input_names", "name_or_path", "processor_class", "return_tensors", "transformers_version",
        "_valid_processor_keys",
        # where and how the processor ran
        "device", "disable_grouping", "backend", "use_fast",
        # only about segmentation maps and labels
        "do_reduce_labels", "reduce_labels", "ignore_index", "num_labels", "mask_size", "mask_pad_size",
        # derived by the class from other keys
        "mel_filters", "mel_filters_slaney", "n_samples", "nb_frequency_bins", "nb_max_frames", "nb_max_samples",
    }
)  # fmt: skip
"""Keys that do not change the tensors of one image or sound."""

INERT_OF_CLASS: dict[str, frozenset[str]] = {
    "ASTFeatureExtractor": frozenset({"return_attention_mask"}),
    "ClapFeatureExtractor": frozenset({"return_attention_mask", "top_db"}),
    "WhisperFeatureExtractor": frozenset({"return_attention_mask"}),
}
"""Keys that the class writes and does not use, or that its encoder has no input for."""
