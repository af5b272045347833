"""Settings of published text folders: lengths, padding, positions, tokenizer files, and options of the command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coverage_models import BERT
from benchmarks.strangers_kit import (
    SHORT,
    TEXTS,
    Call,
    Case,
    Rows,
    by_sentence_transformers,
    by_transformers,
    edit_json,
    save_model,
    sentencepiece,
    unit,
    wordpiece,
    write_json,
)
from benchmarks.strangers_text import bert, decoder, last, mean, roberta

ROWS = Rows("settings")


def by_st(folder: Path, **how: Any) -> Case:
    """A plain folder as sentence-transformers opens it: the mean, and no text longer than the positions."""
    return Case(folder, (Call(TEXTS, by_sentence_transformers(folder, **how)),))


@ROWS.row("tokenizer-json-with-truncation-inside")
def _truncation(place: Path) -> Case:
    folder = bert(place / "m")
    inside = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", truncation=inside)
    edit_json(folder / "tokenizer_config.json", model_max_length=None)
    return by_st(folder)


@ROWS.row("tokenizer-json-with-padding-inside")
def _padding(place: Path) -> Case:
    folder = bert(place / "m")
    inside = {"strategy": {"Fixed": 48}, "direction": "Right", "pad_to_multiple_of": None}
    inside |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    edit_json(folder / "tokenizer.json", padding=inside)
    return mean(folder)


@ROWS.row("tokenizer-json-pads-to-a-multiple-of-8")
def _multiple(place: Path) -> Case:
    folder = bert(place / "m")
    inside = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 8}
    inside |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    edit_json(folder / "tokenizer.json", padding=inside)
    return mean(folder)


ROWS.add("padding-side-left", lambda place: by_st(bert(place / "m", {"padding_side": "left"})))
ROWS.add("padding-side-left-roberta", lambda place: mean(roberta(place / "m", {"padding_side": "left"})))
ROWS.add("truncation-side-left", lambda place: mean(bert(place / "m", {"truncation_side": "left"})))
ROWS.add("model-max-length-16", lambda place: mean(bert(place / "m", {"model_max_length": 16})))
ROWS.add("model-max-length-above-positions", lambda place: by_st(bert(place / "m", {"model_max_length": 512})))


@ROWS.row("model-max-length-absent")
def _absent(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "tokenizer_config.json", model_max_length=None)
    return by_st(folder)


@ROWS.row("model-max-length-1e30")
def _endless(place: Path) -> Case:
    folder = roberta(place / "m")
    edit_json(folder / "tokenizer_config.json", model_max_length=int(1e30))
    return Case(folder, (Call(SHORT, by_sentence_transformers(folder, SHORT)),))


@ROWS.row("tokenizer-json-alone")
def _alone(place: Path) -> Case:
    folder = bert(place / "m")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    return by_st(folder)


@ROWS.row("vocab-txt-alone")
def _slow(place: Path) -> Case:
    folder = bert(place / "m")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    assert (folder / "vocab.txt").exists()
    return by_st(folder)


@ROWS.row("roberta-vocab-and-merges-alone")
def _merges(place: Path) -> Case:
    """The files that byte-level tokenizers had before tokenizer.json."""
    folder = roberta(place / "m")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    write_json(folder / "vocab.json", content["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "model_max_length": 64})
    return mean(folder)


@ROWS.row("tokenizer-config-with-leftovers-of-training")
def _leftovers(place: Path) -> Case:
    """A tokenizer saved in the middle of a training keeps how it was last called."""
    folder = bert(place / "m")
    inside = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    edit_json(folder / "tokenizer.json", truncation=inside)
    left = {"max_length": 12, "stride": 0, "truncation_strategy": "longest_first", "pad_to_multiple_of": None}
    edit_json(folder / "tokenizer_config.json", model_max_length=48, **left)
    return by_st(folder)


@ROWS.row("nllb-encoder-with-a-language-code")
def _nllb(place: Path) -> Case:
    from transformers import AutoTokenizer

    folder = place / "nllb"
    named = {"tokenizer_class": "NllbTokenizer", "src_lang": "fra_Latn", "tgt_lang": "eng_Latn", "model_max_length": 64}
    sentencepiece(folder, "sentencepiece.bpe.model", named)
    size = len(AutoTokenizer.from_pretrained(folder))
    shape = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 88}
    shape |= {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 88, "max_position_embeddings": 70}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    save_model(folder, "M2M100Config", {**shape, **ids, "vocab_size": size})
    return mean(folder, half=True)


@ROWS.row("lower-case-said-otherwise-beside-tokenizer-json")
def _disagree(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    return mean(folder)


@ROWS.row("llama-sentencepiece-add-eos")
def _add_eos(place: Path) -> Case:
    folder = place / "e5-mistral"
    named = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "legacy": False}
    named |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    named |= {"padding_side": "left", "model_max_length": 64}
    size = sentencepiece(folder, "tokenizer.model", named)
    decoders = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 88}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 70}
    save_model(folder, "MistralConfig", {**decoders, **ids, "num_key_value_heads": 2, "vocab_size": size + 8})
    return last(folder)


@ROWS.row("xlnet-left-padded")
def _xlnet(place: Path) -> Case:
    folder = place / "xlnet"
    named = {"tokenizer_class": "XLNetTokenizer", "do_lower_case": False, "model_max_length": 64}
    marks = {"control_symbols": "<cls>,<sep>,<pad>", "user_defined_symbols": "<mask>,<eod>,<eop>"}
    size = sentencepiece(folder, "spiece.model", named, **marks)
    shape = {"d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 88, "vocab_size": size + 8}
    save_model(folder, "XLNetConfig", shape)
    return mean(folder)


@ROWS.row("config-returns-tuples-and-attentions")
def _tuples(place: Path) -> Case:
    folder = bert(place / "m")
    given = by_transformers(folder)
    edit_json(folder / "config.json", return_dict=False, output_attentions=True, output_hidden_states=True)
    return Case(folder, (Call(TEXTS, given),))


@ROWS.row("config-says-float16-weights-are-float32")
def _says_half(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "config.json", dtype=None, torch_dtype="float16")
    return mean(folder)


@ROWS.row("bert-as-causal-decoder")
def _causal(place: Path) -> Case:
    return last(bert(place / "m", is_decoder=True))


def _quantized(place: Path, **settings: Any) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "config.json", quantization_config=settings)
    return Case(folder)


ROWS.add("quantized-by-bitsandbytes", lambda place: _quantized(place, quant_method="bitsandbytes", load_in_8bit=True))
ROWS.add("quantized-by-gptq", lambda place: _quantized(place, quant_method="gptq", bits=4, group_size=128))

_LONG = {"model_max_length": 256}


def _rope(place: Path, config: str = "LlamaConfig", positions: int = 64, **scaling: Any) -> Case:
    """A decoder with rotary positions and ``rope_scaling`` as folders published before transformers 5 have it."""
    folder = decoder(place / "m", config, _LONG, max_position_embeddings=positions)
    if scaling:
        old = {"rope_scaling": scaling, "rope_theta": 10000.0}
        edit_json(folder / "config.json", rope_parameters=None, **old)
    return last(folder)


ROWS.add("rope-texts-beyond-the-positions", lambda place: _rope(place))
ROWS.add("rope-linear", lambda place: _rope(place, "LlamaConfig", 256, type="linear", factor=4.0))
ROWS.add("rope-dynamic-ntk", lambda place: _rope(place, rope_type="dynamic", factor=4.0))
ROWS.add(
    "rope-yarn",
    lambda place: _rope(place, "Qwen3Config", 256, rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
)
ROWS.add(
    "rope-llama3",
    lambda place: _rope(
        place,
        "LlamaConfig",
        256,
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
)


@ROWS.row("rope-longrope")
def _longrope(place: Path) -> Case:
    changes = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}
    folder = decoder(place / "phi", "Phi3Config", _LONG, **changes, head_dim=12)
    factors = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0]}
    edit_json(
        folder / "config.json",
        rope_parameters=None,
        rope_theta=10000.0,
        rope_scaling={"type": "longrope", **factors},
        original_max_position_embeddings=32,
    )
    return last(folder)


@ROWS.row("rope-nomic-max-seq-length-beyond-positions")
def _nomic(place: Path) -> Case:
    folder = place / "nomic-embed"
    size = wordpiece(folder, model_max_length=256)
    save_model(folder, "NomicBertConfig", {**BERT, "pad_token_id": 0, "vocab_size": size})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    pooling = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    return by_st(folder)


@ROWS.row("positions-512-and-long-texts")
def _full(place: Path) -> Case:
    return mean(bert(place / "m", {"model_max_length": 512}, max_position_embeddings=512))


def _options(place: Path, *options: str, normalized: bool = False, cut: int | None = None, **tokenized: Any) -> Case:
    folder = bert(place / "m")
    rows = by_transformers(folder, **tokenized)[:, :cut]
    return Case(folder, (Call(TEXTS, unit(rows) if normalized else rows),), options)


ROWS.add("option-max-length", lambda place: _options(place, "--max-length", "12", max_length=12))
ROWS.add("option-fixed-length", lambda place: _options(place, "--fixed-length", "24", max_length=24))
ROWS.add("option-dim-normalize", lambda place: _options(place, "--dim", "16", "--normalize", normalized=True, cut=16))


@ROWS.row("option-prompt")
def _prompt(place: Path) -> Case:
    folder = bert(place / "e5")
    calls = (
        Call(SHORT, by_transformers(folder, [f"query: {text}" for text in SHORT]), "query"),
        Call(SHORT, by_transformers(folder, SHORT)),
    )
    return Case(folder, calls, ("--prompt", "query=query: "))


def _config(place: Path, changes: Mapping[str, Any]) -> Case:
    return mean(bert(place / "m", **changes))


ROWS.add(
    "bert-other-activation-and-epsilon",
    lambda place: _config(place, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
)
ROWS.add("bert-without-token-types", lambda place: _config(place, {"type_vocab_size": 1}))


@ROWS.row("tokenizer-config-drops-token-types")
def _no_types(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    return mean(folder)


@ROWS.row("texts-that-are-odd")
def _odd_texts(place: Path) -> Case:
    """Empty, blank, with NUL, written from right to left, one word of 5,000 letters."""
    texts = ("", " ", "\n\n", "a\x00b river", "\u202eabc שלום עליכם", "cat" * 1700, "\ufeffthe cat", "cafe\u0301")
    return mean(bert(place / "m"), texts)


def _impossible(name: str, *options: str) -> None:
    ROWS.add(f"impossible-{name}", lambda place: Case(bert(place / "m"), (), options))


_impossible("tower", "--tower", "vision")
_impossible("pooling", "--pooling", "no-such")
_impossible("dim", "--dim", "4096")
_impossible("max-length", "--max-length", "100000")
_impossible("prompt", "--prompt", "no-equals-sign")


@ROWS.row("split-special-tokens")
def _split(place: Path) -> Case:
    """Texts that hold special tokens as words, and a tokenizer told to read them as words."""
    folder = bert(place / "m")
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    return mean(folder)


@ROWS.row("roberta-add-prefix-space")
def _prefix_space(place: Path) -> Case:
    return mean(roberta(place / "m", {"add_prefix_space": True}))


@ROWS.row("roberta-other-padding-id")
def _other_padding(place: Path) -> Case:
    return mean(roberta(place / "m", {"pad_token": "<mask>"}, pad_token_id=4))


@ROWS.row("decoder-made-bidirectional-by-its-config")
def _not_causal(place: Path) -> Case:
    folder = decoder(place / "m", "Qwen2Config")
    edit_json(folder / "config.json", is_causal=False)
    return Case(folder, (Call(TEXTS, by_transformers(folder)),), ("--pooling", "mean"))


@ROWS.row("config-of-fewer-layers-than-the-weights")
def _fewer(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "config.json", num_hidden_layers=1)
    return mean(folder)


@ROWS.row("config-without-architectures")
def _no_architectures(place: Path) -> Case:
    folder = bert(place / "m")
    edit_json(folder / "config.json", architectures=None, transformers_version=None)
    return mean(folder)


@ROWS.row("vocab-txt-with-crlf")
def _crlf(place: Path) -> Case:
    folder = bert(place / "m")
    lines = (folder / "vocab.txt").read_text("utf-8").splitlines()
    (folder / "vocab.txt").write_bytes("\r\n".join(lines).encode() + b"\r\n")
    (folder / "tokenizer.json").unlink()
    return mean(folder)


@ROWS.row("folder-by-a-link-with-a-slash")
def _link(place: Path) -> Case:
    folder = bert(place / "m")
    (place / "latest").symlink_to(folder)
    given = by_transformers(folder)
    return Case(f"{place / 'latest'}/", (Call(TEXTS, given),))


@ROWS.row("deberta-v3-as-published")
def _deberta_v3(place: Path) -> Case:
    folder = place / "deberta-v3"
    size = wordpiece(folder)
    how = {"relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    how |= {"pos_att_type": "p2c|c2p", "max_relative_positions": -1, "position_biased_input": False}
    save_model(folder, "DebertaV2Config", {**BERT, "pad_token_id": 0, "vocab_size": size, "type_vocab_size": 0, **how})
    return mean(folder)


@ROWS.row("tokenizer-of-another-model")
def _other_tokenizer(place: Path) -> Case:
    """Ids beyond the table of the weights: nothing can be right."""
    folder = bert(place / "m")
    roberta(place / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((place / "other" / name).read_bytes())
    assert len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) > 260
    return Case(folder)
