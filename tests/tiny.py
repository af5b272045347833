"""Tiny, randomly initialised encoders, saved as the local folders that deploykit reads.

No two dimensions of a model are equal where its architecture allows it, because equal sizes hide swapped axes. Every
factory is deterministic: the same call writes the same weights, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "runs",
    "in",
    "of",
    "and",
    "red",
    "blue",
    "big",
    "house",
    "river",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "the cat sat on the mat",
    "a big red dog",
    "green",
    "the river sings in the small blue house of the cat and the dog",
)


def wordpiece(folder: Path, max_length: int = 64) -> Path:
    """Save a lower-casing WordPiece tokenizer (words of `WORDS`, else letters) as a BERT tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,!?")
    vocabulary = [*SPECIAL, *WORDS, *(w for w in letters if w not in WORDS), *("##" + c for c in letters)]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


def tiny_bert(folder: Path, **changes: Any) -> Path:
    """A 2-layer BERT of width 24 (3 heads of 8), 64 positions, with its tokenizer; ``changes`` go to its config."""
    from transformers import BertConfig, BertModel

    settings = {
        "vocab_size": 113,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    } | changes
    _save(BertModel, BertConfig(**settings), folder)
    return wordpiece(folder, int(settings["max_position_embeddings"]))


def tiny_vit(folder: Path) -> Path:
    """A 2-layer ViT of width 36 (3 heads of 12) on 30 x 42 images in 6 x 6 patches, with its image processor."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=52,
        image_size=(30, 42),
        patch_size=6,
        initializer_range=0.3,
    )
    _save(ViTModel, config, folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 30, "width": 42},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.6],
        "image_std": [0.5, 0.25, 0.3],
    }
    return _write(folder, "preprocessor_config.json", processor)


def tiny_resnet(folder: Path) -> Path:
    """A ResNet with basic blocks (10, 14, 22, 26 → 34 channels) on 64 x 64 crops, with its image processor."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=10, hidden_sizes=[14, 22, 26, 34], depths=[1, 2, 1, 1], layer_type="basic")
    _save(ResNetModel, config, folder)
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 64},
        "crop_pct": 0.875,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    return _write(folder, "preprocessor_config.json", processor)


def tiny_wav2vec2(folder: Path, *, masked: bool = True) -> Path:
    """A 2-layer wav2vec2 of width 28 (4 heads of 7) on raw 16 kHz waveforms.

    ``masked``: layer norm in the convolutions and an attention mask, as the large models; else group norm and no mask,
    as the base ones.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        vocab_size=31,
        hidden_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=44,
        conv_dim=(10, 14, 18, 22),
        conv_kernel=(10, 8, 6, 4),
        conv_stride=(5, 4, 4, 4),
        num_feat_extract_layers=4,
        conv_bias=masked,
        feat_extract_norm="layer" if masked else "group",
        do_stable_layer_norm=masked,
        num_conv_pos_embeddings=6,
        num_conv_pos_embedding_groups=2,
        initializer_range=0.2,
    )
    _save(Wav2Vec2Model, config, folder)
    processor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "return_attention_mask": masked,
    }
    return _write(folder, "preprocessor_config.json", processor)


def tiny_whisper(folder: Path) -> Path:
    """A Whisper with a 2-layer encoder of width 24 on 20 mel bands x 100 frames (one second)."""
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig(
        vocab_size=67,
        num_mel_bins=20,
        d_model=24,
        encoder_layers=2,
        encoder_attention_heads=3,
        encoder_ffn_dim=40,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=None,
        init_std=0.2,
    )
    _save(WhisperModel, config, folder)
    processor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": 20,
        "sampling_rate": 16000,
        "hop_length": 160,
        "chunk_length": 1,
        "n_fft": 400,
        "n_samples": 16000,
        "nb_max_frames": 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    return _write(folder, "preprocessor_config.json", processor)


def tiny_sentence_transformer(
    folder: Path, pooling: dict[str, Any], extra: tuple[tuple[str, dict[str, Any]], ...] = (), **settings: Any
) -> Path:
    """A sentence-transformers folder around `tiny_bert`.

    ``pooling`` is the pooling's config.json without the dimension; ``extra`` lists the (type, config) of the modules
    after it ("Normalize", "Dense", "LayerNorm"), whose weights are random; ``settings`` go to
    config_sentence_transformers.json.
    """
    tiny_bert(folder)
    _write(folder, "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    _write(folder, "config_sentence_transformers.json", {"__version__": {}, "prompts": {}} | settings)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    _write(folder / "1_Pooling", "config.json", {"word_embedding_dimension": 24} | pooling)
    for position, (kind, config) in enumerate(extra, start=2):
        path = f"{position}_{kind}"
        modules.append(
            {"idx": position, "name": str(position), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        _write(folder / path, "config.json", config)
        _module_weights(kind, config, folder / path)
    return _write(folder, "modules.json", modules)


def _module_weights(kind: str, config: dict[str, Any], folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    if kind == "Dense":
        weights = {"linear.weight": torch.randn(config["out_features"], config["in_features"]) / 4}
        if config.get("bias", True):
            weights["linear.bias"] = torch.randn(config["out_features"])
        save_file(weights, folder / "model.safetensors")
    elif kind == "LayerNorm":
        size = config["dimension"]
        save_file({"norm.weight": torch.rand(size) + 0.5, "norm.bias": torch.randn(size)}, folder / "model.safetensors")


def _save(model: Any, config: Any, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model(config).eval().save_pretrained(folder)


def _write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content, indent=2))
    return folder
