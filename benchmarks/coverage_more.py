"""More architectures for the sweep: encoder halves, decoders as embedders, towers, and what asks for other inputs.

``EVERY`` is all that the sweep knows; `benchmarks.coverage_models` has the first and greater part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.coverage_models import (
    ARCHITECTURES,
    BERT,
    CLIP_CROP,
    LAST,
    LLAMA,
    TOWERS,
    VIT,
    VOCABULARY,
    WIDE,
    Architecture,
    image,
    text,
)

_T5 = {"d_model": 48, "d_kv": 10, "d_ff": 88, "num_layers": 2, "num_heads": 4}
_T5 |= {"vocab_size": VOCABULARY, "pad_token_id": 1}
_BART = {"d_model": 48, "vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_BART |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 88, "decoder_start_token_id": 2}
_BART |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 88, "forced_eos_token_id": 2}
_SEQ2SEQ = {**_BART, "max_position_embeddings": 70}
_LED = {"max_encoder_position_embeddings": 70, "max_decoder_position_embeddings": 70, "attention_window": 16}

_TEXT = (
    text("bart-encoder", "BartConfig", _SEQ2SEQ),
    text("led-encoder", "LEDConfig", {**_BART, **_LED}),
    text("longt5-local", "LongT5Config", {**_T5, "local_radius": 7}, "LongT5EncoderModel"),
    text("luke", "LukeConfig", {**BERT, "entity_vocab_size": 20, "entity_emb_size": 16}),
    text("m2m100-encoder", "M2M100Config", _SEQ2SEQ),
    text("marian-encoder", "MarianConfig", {**_SEQ2SEQ, "decoder_vocab_size": VOCABULARY}),
    text("markuplm", "MarkupLMConfig", {**BERT, "max_depth": 5, "xpath_unit_hidden_size": 8}),
    text("mbart-encoder", "MBartConfig", _SEQ2SEQ),
    text("mt5-encoder", "MT5Config", _T5, "MT5EncoderModel"),
    text("mixtral", "MixtralConfig", {**LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2}, **LAST),
    text("umt5-encoder", "UMT5Config", _T5, "UMT5EncoderModel"),
    text("xlnet", "XLNetConfig", {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 88}),
)

_SAM = {**WIDE, "image_size": 64, "patch_size": 16, "output_channels": 20, "window_size": 2, "num_pos_feats": 10}
_SAM |= {"global_attn_indexes": [1], "mlp_dim": 88}
_IMAGE = (
    image("metaclip2-vision", "MetaClip2Config", "CLIPImageProcessor", TOWERS, how=CLIP_CROP, tower="vision"),
    image(
        "sam-vision",
        "SamVisionConfig",
        "SamImageProcessor",
        _SAM,
        how={"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}},
    ),
    image("vitdet", "VitDetConfig", "ViTImageProcessor", {**VIT, "window_size": 2, "window_block_indices": [0]}),
)

EVERY: Mapping[str, Architecture] = {**ARCHITECTURES, **{entry.name: entry for entry in (*_TEXT, *_IMAGE)}}
