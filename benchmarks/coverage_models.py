"""The architectures of the coverage sweep: tiny, randomly initialised, saved as folders just as a user has them.

One line or few for each, made from transformers' own config classes. Hardly any two sizes of a model are equal, because
equal sizes hide swapped axes. What a folder holds beside its weights is what its modality needs: a tokenizer, an image
processor or a feature extractor under the class name that transformers has for the architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Modality = Literal["text", "image", "audio"]
_WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "runs", "in", "of", "and", "red", "blue", "big")
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
VOCABULARY = 131


@dataclass(frozen=True)
class Architecture:
    """``config`` names a config class of transformers, ``model`` the class to save (AutoModel's choice when empty).

    ``settings`` go to the config, ``processor`` into the processor's file, ``export`` to `deploykit.export`.
    """

    name: str
    modality: Modality
    config: str
    settings: Mapping[str, Any]
    model: str = ""
    processor: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)


WIDE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 88}
BERT = {**WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 70, "pad_token_id": 1, "type_vocab_size": 2}
LLAMA = {
    **WIDE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 70,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
LAST = {"pooling": "last"}
_XLM = {"emb_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 70}
_EMBEDS = {"embedding_size": 36}
TOWERS = {
    "text_config": {**WIDE, "vocab_size": VOCABULARY, "max_position_embeddings": 70, "eos_token_id": 2},
    "vision_config": {**WIDE, "image_size": 48, "patch_size": 12},
    "projection_dim": 40,
}


def text(name: str, config: str, settings: Mapping[str, Any], model: str = "", **export: Any) -> Architecture:
    return Architecture(name, "text", config, settings, model, {}, export)


_TEXT = (
    text("albert", "AlbertConfig", {**BERT, **_EMBEDS}),
    text("bert", "BertConfig", BERT),
    text("bert-generation", "BertGenerationConfig", BERT),
    text("big-bird-block-sparse", "BigBirdConfig", {**BERT, "max_position_embeddings": 140, "block_size": 8}),
    text("big-bird-full", "BigBirdConfig", {**BERT, "attention_type": "original_full"}),
    text("camembert", "CamembertConfig", BERT),
    text(
        "canine",
        "CanineConfig",
        {**WIDE, "max_position_embeddings": 140, "local_transformer_stride": 16},
        fixed_length=128,
    ),
    text("clip-text", "CLIPConfig", TOWERS, tower="text"),
    text("convbert", "ConvBertConfig", {**BERT, **_EMBEDS}),
    text("data2vec-text", "Data2VecTextConfig", BERT),
    text("deberta", "DebertaConfig", {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    text(
        "deberta-v2",
        "DebertaV2Config",
        {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    text("distilbert", "DistilBertConfig", {**BERT, "dim": 48, "hidden_dim": 88, "n_heads": 4, "n_layers": 2}),
    text("dpr-question", "DPRConfig", BERT, "DPRQuestionEncoder", pooling="pooler"),
    text("electra", "ElectraConfig", {**BERT, **_EMBEDS}),
    text("ernie", "ErnieConfig", {**BERT, "use_task_id": True}),
    text("esm", "EsmConfig", {**BERT, "position_embedding_type": "rotary", "mask_token_id": 4}),
    text("eurobert", "EuroBertConfig", {**LLAMA, "mask_token_id": 4}),
    text("flaubert", "FlaubertConfig", {**_XLM, "pad_token_id": 1, "pad_index": 1}),
    text("fnet", "FNetConfig", {**BERT, "type_vocab_size": 4}, fixed_length=64),
    text(
        "funnel",
        "FunnelConfig",
        {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "block_repeats": [1, 1], "d_model": 48, "n_head": 4}
        | {"d_head": 12, "d_inner": 88},
        "FunnelModel",
        fixed_length=64,
    ),
    text("gemma3-text", "Gemma3TextConfig",
          {**LLAMA, "sliding_window": 12, "use_bidirectional_attention": True}),
    text("gpt2", "GPT2Config", {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}, **LAST),
    text("ibert", "IBertConfig", BERT),
    text("layoutlm", "LayoutLMConfig", {**BERT, "max_2d_position_embeddings": 90}),
    text("lilt", "LiltConfig", {**BERT, "channel_shrink_ratio": 2}),
    text("llama", "LlamaConfig", LLAMA, **LAST),
    text("longformer", "LongformerConfig", {**BERT, "max_position_embeddings": 140, "attention_window": 16}),
    text("megatron-bert", "MegatronBertConfig", BERT),
    text("mistral", "MistralConfig", {**LLAMA, "sliding_window": 12}, **LAST),
    text(
        "mobilebert",
        "MobileBertConfig",
        {**BERT, "embedding_size": 36, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    text(
        "modernbert",
        "ModernBertConfig",
        {**BERT, "local_attention": 8, "global_attn_every_n_layers": 2, "bos_token_id": 0, "eos_token_id": 2}
        | {"cls_token_id": 0, "sep_token_id": 2},
    ),
    text("mpnet", "MPNetConfig", BERT),
    text("mra", "MraConfig", {**BERT, "max_position_embeddings": 128}),
    text("nomic-bert", "NomicBertConfig", BERT),
    text("nystromformer", "NystromformerConfig", {**BERT, "num_landmarks": 8, "segment_means_seq_len": 8}),
    text("qwen3", "Qwen3Config", LLAMA, **LAST),
    text("rembert", "RemBertConfig", {**BERT, "input_embedding_size": 36, "output_embedding_size": 40}),
    text("roberta", "RobertaConfig", BERT),
    text("roberta-prelayernorm", "RobertaPreLayerNormConfig", BERT),
    text("roformer", "RoFormerConfig", {**BERT, "embedding_size": 36}),
    text("siglip-text", "SiglipConfig", TOWERS, tower="text"),
    text("splinter", "SplinterConfig", BERT),
    text("squeezebert", "SqueezeBertConfig", {**BERT, "embedding_size": 48}),
    text("t5-encoder", "T5Config", {"d_model": 48, "d_kv": 10, "d_ff": 88, "num_layers": 2, "num_heads": 4}
          | {"vocab_size": VOCABULARY, "pad_token_id": 1}, "T5EncoderModel"),
    text("xlm", "XLMConfig", {**_XLM, "pad_token_id": 1, "pad_index": 1}),
    text("xlm-roberta", "XLMRobertaConfig", BERT),
    text("xlm-roberta-xl", "XLMRobertaXLConfig", BERT),
    text("xmod", "XmodConfig", {**BERT, "default_language": "en_XX"}),
    text("yoso", "YosoConfig", BERT),
)  # fmt: skip

VIT = {**WIDE, "image_size": 48, "patch_size": 12}
_STAGES = {"hidden_sizes": [12, 20, 28, 36], "depths": [1, 2, 1, 1]}
_FOUR = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [12, 20, 28, 36],
    "num_attention_heads": [1, 2, 4, 6],
    "image_size": 96,
}


def image(
    name: str,
    config: str,
    processor: str,
    settings: Mapping[str, Any],
    model: str = "",
    edge: int = 48,
    how: Mapping[str, Any] | None = None,
    **export: Any,
) -> Architecture:
    given = {"image_processor_type": processor, "size": {"height": edge, "width": edge}, **(how or {})}
    return Architecture(name, "image", config, settings, model, given, export)


CLIP_CROP = {"size": {"shortest_edge": 54}, "crop_size": {"height": 48, "width": 48}}
_CROP96 = {"size": {"shortest_edge": 110}, "crop_size": {"height": 96, "width": 96}}
_EDGE96 = {"size": {"shortest_edge": 96}, "crop_pct": 0.875}
_VIT96 = {**VIT, "image_size": 96, "patch_size": 16}
_IMAGE = (
    image("aimv2-vision", "Aimv2VisionConfig", "CLIPImageProcessor", VIT, how=CLIP_CROP),
    image("beit", "BeitConfig", "BeitImageProcessor", {**VIT, "use_relative_position_bias": True}),
    image("bit", "BitConfig", "BitImageProcessor",
           {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "num_groups": 4},
           how=_CROP96),
    image("chinese-clip-vision", "ChineseCLIPVisionConfig", "ChineseCLIPImageProcessor", VIT, how=CLIP_CROP),
    image("clip-vision", "CLIPConfig", "CLIPImageProcessor", TOWERS, how=CLIP_CROP, tower="vision"),
    image("convnext", "ConvNextConfig", "ConvNextImageProcessor", {**_STAGES, "num_stages": 4}, how=_EDGE96),
    image("convnextv2", "ConvNextV2Config", "ConvNextImageProcessor", {**_STAGES, "num_stages": 4}, how=_EDGE96),
    image("cvt", "CvtConfig", "ConvNextImageProcessor",
           {"embed_dim": [12, 20, 28], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}, how=_EDGE96),
    image("data2vec-vision", "Data2VecVisionConfig", "BeitImageProcessor",
           {**VIT, "use_relative_position_bias": True}),
    image("deit", "DeiTConfig", "DeiTImageProcessor", VIT,
           how={"size": {"height": 54, "width": 54}, "crop_size": {"height": 48, "width": 48}}),
    image("dinov2", "Dinov2Config", "BitImageProcessor", {**VIT, "mlp_ratio": 2}, how=CLIP_CROP),
    image("dinov2-registers", "Dinov2WithRegistersConfig", "BitImageProcessor", {**VIT, "mlp_ratio": 2}, how=CLIP_CROP),
    image("dinov2-other-size", "Dinov2Config", "BitImageProcessor", {**_VIT96, "mlp_ratio": 2}, how=CLIP_CROP),
    image("dinov3-convnext", "DINOv3ConvNextConfig", "DINOv3ViTImageProcessor", _STAGES, edge=96),
    image("dinov3-vit", "DINOv3ViTConfig", "DINOv3ViTImageProcessor", {**VIT, "num_register_tokens": 3}),
    image("donut-swin", "DonutSwinConfig", "ViTImageProcessor",
           {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 96}, edge=96),
    image("efficientnet", "EfficientNetConfig", "EfficientNetImageProcessor",
           {"image_size": 96, "width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}, edge=96),
    image("focalnet", "FocalNetConfig", "BitImageProcessor",
           {"embed_dim": 12, "hidden_sizes": [24, 48], "depths": [1, 1], "focal_levels": [2, 2], "image_size": 96}
           | {"focal_windows": [3, 3]}, how=_CROP96),
    image("hgnet-v2", "HGNetV2Config", "ConvNextImageProcessor",
           {"embedding_size": 16, "depths": [1, 1], "hidden_sizes": [24, 40], "stem_channels": [3, 12, 16]}
           | {"stage_in_channels": [16, 24], "stage_mid_channels": [12, 20], "stage_out_channels": [24, 40]}
           | {"stage_num_blocks": [1, 1], "stage_downsample": [False, True], "stage_light_block": [False, True]}
           | {"stage_downsample_strides": [2, 2], "stage_kernel_size": [3, 5], "stage_numb_of_layers": [2, 2]},
           "HGNetV2Backbone", how=_EDGE96),
    image("hiera", "HieraConfig", "BitImageProcessor",
           {"embed_dim": 12, "image_size": [96, 96], "depths": [1, 1, 2], "num_heads": [1, 2, 4], "num_query_pool": 2}
           | {"masked_unit_size": [4, 4], "masked_unit_attention": [True, True, False]},
           how=_CROP96),
    image("ijepa", "IJepaConfig", "ViTImageProcessor", VIT),
    image("levit", "LevitConfig", "LevitImageProcessor",
           {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "image_size": 96}
           | {"key_dim": [6, 6, 6]}, how=_CROP96),
    image("mlcd-vision", "MLCDVisionConfig", "CLIPImageProcessor", VIT, how=CLIP_CROP),
    image("mobilenet-v1", "MobileNetV1Config", "MobileNetV1ImageProcessor", {"depth_multiplier": 0.25}, how=_CROP96),
    image("mobilenet-v2", "MobileNetV2Config", "MobileNetV2ImageProcessor", {"depth_multiplier": 0.35}, how=_CROP96),
    image("mobilevit", "MobileViTConfig", "MobileViTImageProcessor",
           {"hidden_sizes": [12, 20, 28], "neck_hidden_sizes": [8, 8, 12, 16, 20, 28, 40], "image_size": 96}
           | {"num_attention_heads": 2}, how=_CROP96),
    image("mobilevitv2", "MobileViTV2Config", "MobileViTImageProcessor",
           {"width_multiplier": 0.5, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [32, 48, 64]}
           | {"image_size": 96}, how=_CROP96),
    image("pixio", "PixioConfig", "BitImageProcessor", {**VIT, "mlp_ratio": 2, "n_cls_tokens": 3}, how=CLIP_CROP),
    image("poolformer", "PoolFormerConfig", "PoolFormerImageProcessor", _STAGES,
           how={"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}),
    image("pvt", "PvtConfig", "PvtImageProcessor", {**_FOUR, "mlp_ratios": [2, 2, 2, 2]}, edge=96),
    image("pvt-v2", "PvtV2Config", "PvtImageProcessor", {**_FOUR, "mlp_ratios": [2, 2, 2, 2]}, edge=96),
    image("pvt-v2-linear", "PvtV2Config", "PvtImageProcessor",
           {**_FOUR, "mlp_ratios": [2, 2, 2, 2], "linear_attention": True}, edge=96),
    image("regnet", "RegNetConfig", "ConvNextImageProcessor",
           {**_STAGES, "embedding_size": 8, "groups_width": 4}, how=_EDGE96),
    image("resnet", "ResNetConfig", "ConvNextImageProcessor", {**_STAGES, "embedding_size": 10}, how=_EDGE96),
    image("segformer", "SegformerConfig", "SegformerImageProcessor", {**_FOUR, "mlp_ratios": [2, 2, 2, 2]}, edge=96),
    image("siglip-vision", "SiglipConfig", "SiglipImageProcessor", TOWERS, tower="vision"),
    image("siglip2-vision", "Siglip2VisionConfig", "Siglip2ImageProcessor",
           {**WIDE, "patch_size": 12, "num_patches": 16}, how={"patch_size": 12, "max_num_patches": 16}),
    image("swiftformer", "SwiftFormerConfig", "ViTImageProcessor",
           {"depths": [1, 1, 1, 1], "embed_dims": [12, 20, 28, 36]}, edge=96),
    image("swin", "SwinConfig", "ViTImageProcessor",
           {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 96}, edge=96),
    image("swinv2", "Swinv2Config", "ViTImageProcessor",
           {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 96}, edge=96),
    image("textnet", "TextNetConfig", "TextNetImageProcessor",
           {"stem_out_channels": 12, "hidden_sizes": [12, 12, 20, 28, 36], "image_size": [96, 96]}, edge=96,
           how={"size": {"shortest_edge": 96}, "crop_size": {"height": 96, "width": 96}}),
    image("videomae", "VideoMAEConfig", "VideoMAEImageProcessor",
           {**VIT, "num_frames": 4, "use_mean_pooling": False}, how=CLIP_CROP, preprocess="none"),
    image("vit", "ViTConfig", "ViTImageProcessor", VIT),
    image("vit-mae", "ViTMAEConfig", "ViTImageProcessor", VIT),
    image("vit-msn", "ViTMSNConfig", "ViTImageProcessor", VIT),
    image("vivit", "VivitConfig", "VivitImageProcessor",
           {**VIT, "num_frames": 4, "tubelet_size": [2, 12, 12]}, how=CLIP_CROP, preprocess="none"),
    image("vjepa2", "VJEPA2Config", "VJEPA2VideoProcessor",
           {**VIT, "crop_size": 48, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 4}
           | {"pred_num_hidden_layers": 1, "mlp_ratio": 2.0}, how=CLIP_CROP, preprocess="none"),
)  # fmt: skip

_CONVS = {"conv_dim": [12, 20, 28], "conv_stride": [5, 4, 4], "conv_kernel": [10, 8, 4]}
_WAVE = {
    **WIDE,
    **_CONVS,
    "num_feat_extract_layers": 3,
    "vocab_size": 32,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
_WAV2VEC2 = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
_SEW = {**_WAVE, "conv_dim": [12, 20, 28], "squeeze_factor": 2}


def audio(
    name: str,
    config: str,
    settings: Mapping[str, Any],
    model: str = "",
    how: Mapping[str, Any] | None = None,
    **export: Any,
) -> Architecture:
    return Architecture(name, "audio", config, settings, model, how or _WAV2VEC2, {"max_length": 32000, **export})


_WITH_MASK = {**_WAV2VEC2, "return_attention_mask": True}
_AUDIO = (
    audio("ast", "ASTConfig", {**WIDE, "max_length": 64, "num_mel_bins": 32},
           how={"feature_extractor_type": "ASTFeatureExtractor", "max_length": 64, "num_mel_bins": 32},
           max_length=None),
    audio("clap-audio", "ClapConfig",
           {"audio_config": {"spec_size": 64, "num_mel_bins": 16, "patch_embeds_hidden_size": 12, "hidden_size": 24}
            | {"depths": [1, 1], "num_attention_heads": [2, 4], "window_size": 4, "num_hidden_layers": 2},
            "text_config": BERT, "projection_dim": 40},
           how={"feature_extractor_type": "ClapFeatureExtractor", "feature_size": 16, "truncation": "rand_trunc"}
           | {"max_length_s": 1, "hop_length": 480, "padding": "repeatpad"}, tower="audio", max_length=None),
    audio("data2vec-audio", "Data2VecAudioConfig", {**_WAVE, "conv_pos_kernel_size": 5}, how=_WITH_MASK),
    audio("hubert", "HubertConfig", _WAVE),
    audio("hubert-masked", "HubertConfig", {**_WAVE, **_MASKED}, how=_WITH_MASK),
    audio("moonshine", "MoonshineConfig",
           {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 88, "encoder_num_hidden_layers": 2}
           | {"decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}),
    audio("sew", "SEWConfig", _SEW),
    audio("sew-d", "SEWDConfig", {**_SEW, "position_buckets": 8, "max_position_embeddings": 64}),
    audio("speech-to-text", "Speech2TextConfig",
           {"d_model": 48, "encoder_layers": 2, "encoder_ffn_dim": 88, "encoder_attention_heads": 4}
           | {"decoder_layers": 1, "decoder_ffn_dim": 88, "decoder_attention_heads": 4, "vocab_size": 64},
           how={"feature_extractor_type": "Speech2TextFeatureExtractor", "num_mel_bins": 80, "feature_size": 80},
           preprocess="none", max_length=None),
    audio("unispeech", "UniSpeechConfig", _WAVE),
    audio("unispeech-sat", "UniSpeechSatConfig", _WAVE),
    audio("wav2vec2", "Wav2Vec2Config", _WAVE),
    audio("wav2vec2-masked", "Wav2Vec2Config", {**_WAVE, **_MASKED}, how=_WITH_MASK),
    audio("wav2vec2-bert", "Wav2Vec2BertConfig", {**WIDE, "vocab_size": 32, "feature_projection_input_dim": 160},
           how={"feature_extractor_type": "SeamlessM4TFeatureExtractor", "feature_size": 80, "num_mel_bins": 80},
           preprocess="none", max_length=None),
    audio("wav2vec2-conformer", "Wav2Vec2ConformerConfig", {**_WAVE, "position_embeddings_type": "relative"}),
    audio("wav2vec2-conformer-rotary", "Wav2Vec2ConformerConfig", {**_WAVE, "position_embeddings_type": "rotary"}),
    audio("wavlm", "WavLMConfig", _WAVE),
    audio("wavlm-masked", "WavLMConfig", {**_WAVE, **_MASKED}, how=_WITH_MASK),
    audio("whisper", "WhisperConfig",
           {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 88, "vocab_size": 64}
           | {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 88, "max_source_positions": 50}
           | {"num_mel_bins": 24, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
           | {"decoder_start_token_id": 3},
           how={"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 24, "chunk_length": 1},
           max_length=None),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {entry.name: entry for entry in (*_TEXT, *_IMAGE, *_AUDIO)}


def save(entry: Architecture, folder: Path) -> Path:
    """Write the checkpoint folder: config, weights and the files of its processor."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, entry.config)(**entry.settings)
    made = getattr(transformers, entry.model)(config) if entry.model else transformers.AutoModel.from_config(config)
    _spread(made)
    made.eval().save_pretrained(folder)
    if entry.modality == "text":
        _tokenizer(folder, entry)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(dict(entry.processor), indent=1), encoding="utf-8")
    return folder


def _spread(model: Any) -> None:
    """Weights large enough that tokens, masks and positions all show in the embedding, and biases that are not 0."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(noise * fan_in**-0.5)
            else:
                parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))


def _tokenizer(folder: Path, entry: Architecture) -> None:
    """A fast tokenizer of words and letters that frames a text with ``<s>`` and ``</s>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,!?")
    tokens = [*_SPECIAL, *_WORDS, *(c for c in letters if c not in _WORDS), *("##" + c for c in letters)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    settings: Mapping[str, Any] = entry.settings
    settings = settings.get("text_config", settings)
    longest = settings.get("max_position_embeddings")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64 if longest is None or longest < 100 else 128,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if settings.get("type_vocab_size", 0) > 1
        else ["input_ids", "attention_mask"],
    ).save_pretrained(folder)
