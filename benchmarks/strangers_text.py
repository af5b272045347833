"""Text folders of transformers as they are published: architectures, tokenizers, weights and layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.coverage_models import BERT, LLAMA
from benchmarks.strangers_kit import (
    SHORT,
    TEXTS,
    Call,
    Case,
    Rows,
    by_sentence_transformers,
    by_transformers,
    decoder_tokenizer,
    edit_json,
    roberta_tokenizer,
    save_model,
    sentencepiece,
    spread,
    unit,
    wordpiece,
    write_json,
)

ROWS = Rows("text")
_WORDPIECE_IDS = {"pad_token_id": 0}
_ROBERTA_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_T5 = {"d_model": 48, "d_kv": 10, "d_ff": 88, "num_layers": 2, "num_heads": 4, "num_decoder_layers": 1}
LAST = ("--pooling", "last", "--normalize")


def bert(folder: Path, tokenizer: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A BERT with its own trained WordPiece, 70 positions; ``tokenizer`` goes to its config, ``changes`` to BERT's."""
    size = wordpiece(folder, **(tokenizer or {}))
    save_model(folder, "BertConfig", {**BERT, **_WORDPIECE_IDS, "vocab_size": size, **changes})
    return folder


def roberta(folder: Path, tokenizer: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A RoBERTa, whose positions begin behind the padding id."""
    size = roberta_tokenizer(folder, **(tokenizer or {}))
    save_model(folder, "RobertaConfig", {**BERT, **_ROBERTA_IDS, "vocab_size": size, **changes})
    return folder


def decoder(folder: Path, config: str, tokenizer: Mapping[str, Any] | None = None, **changes: Any) -> Path:
    """A decoder whose tokenizer pads in front and ends a text with its last token."""
    size = decoder_tokenizer(folder, **(tokenizer or {}))
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    save_model(folder, config, {**LLAMA, **ids, "vocab_size": size, **changes})
    return folder


def mean(folder: Path, texts: tuple[str, ...] = TEXTS, **how: Any) -> Case:
    """The case of a folder whose tokens are averaged, by AutoTokenizer and AutoModel."""
    return Case(folder, (Call(texts, by_transformers(folder, texts, **how)),))


def last(folder: Path, texts: tuple[str, ...] = TEXTS, options: tuple[str, ...] = (), **how: Any) -> Case:
    """The case of a decoder that embeds by its last token."""
    return Case(folder, (Call(texts, unit(by_transformers(folder, texts, "last", **how))),), (*LAST, *options))


def _named(name: str, config: str, **changes: Any) -> Callable[[Path], Case]:
    """A row of an architecture with BERT's tokenizer."""

    def make(place: Path) -> Case:
        folder = place / name
        size = wordpiece(folder)
        save_model(folder, config, {**BERT, **_WORDPIECE_IDS, "vocab_size": size, **changes})
        return mean(folder)

    return make


ROWS.add("bert-uncased", lambda place: mean(bert(place / "bert-base-uncased")))
ROWS.add("bert-cased", lambda place: mean(bert(place / "bert-cased", {"do_lower_case": False})))
ROWS.add("bert-accents-kept", lambda place: mean(bert(place / "m", {"do_lower_case": True, "strip_accents": False})))
ROWS.add(
    "bert-accents-lost-cased", lambda place: mean(bert(place / "m", {"do_lower_case": False, "strip_accents": True}))
)
ROWS.add("roberta", lambda place: mean(roberta(place / "roberta-base")))
ROWS.add("distilbert", _named("distilbert", "DistilBertConfig", dim=48, hidden_dim=88, n_heads=4, n_layers=2))
ROWS.add("electra", _named("electra", "ElectraConfig", embedding_size=36))
ROWS.add("longformer", _named("longformer", "LongformerConfig", max_position_embeddings=140, attention_window=16))
ROWS.add("nomic-bert", _named("nomic-embed", "NomicBertConfig"))


@ROWS.row("mpnet")
def _mpnet(place: Path) -> Case:
    folder = place / "all-mpnet-like"
    size = roberta_tokenizer(folder)
    save_model(folder, "MPNetConfig", {**BERT, **_ROBERTA_IDS, "vocab_size": size})
    return mean(folder)


@ROWS.row("modernbert-sliding-window")
def _modernbert(place: Path) -> Case:
    folder = place / "modernbert"
    size = roberta_tokenizer(folder, model_max_length=256)
    changes = {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 2}
    changes |= {"max_position_embeddings": 256}
    save_model(folder, "ModernBertConfig", {**BERT, **_ROBERTA_IDS, **changes, "vocab_size": size})
    return mean(folder)


@ROWS.row("deberta-v2-spm-model-only")
def _deberta(place: Path) -> Case:
    folder = place / "deberta-v3"
    ids = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
    marks = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    config = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "model_max_length": 64}
    size = sentencepiece(folder, "spm.model", config, **ids, **marks, user_defined_symbols="[MASK]")
    changes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
    save_model(folder, "DebertaV2Config", {**BERT, "pad_token_id": 0, **changes, "vocab_size": size + 8})
    return mean(folder)


@ROWS.row("albert-spiece-model-only")
def _albert(place: Path) -> Case:
    folder = place / "albert"
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "pad_piece": "<pad>"}
    config = {"tokenizer_class": "AlbertTokenizer", "do_lower_case": True, "model_max_length": 64}
    marks = {"control_symbols": "[CLS],[SEP]", "user_defined_symbols": "[MASK]"}
    size = sentencepiece(folder, "spiece.model", config, **ids, **marks)
    save_model(folder, "AlbertConfig", {**BERT, "pad_token_id": 0, "embedding_size": 36, "vocab_size": size + 8})
    return mean(folder)


@ROWS.row("xlm-roberta-bpe-model-only")
def _xlm_roberta(place: Path) -> Case:
    folder = place / "multilingual-e5"
    config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 64}
    size = sentencepiece(folder, "sentencepiece.bpe.model", config)
    save_model(folder, "XLMRobertaConfig", {**BERT, **_ROBERTA_IDS, "vocab_size": size + 8})
    return mean(folder)


def _t5(place: Path, config: str, tokenizer: str) -> Case:
    folder = place / "t5-base"
    named = {"tokenizer_class": tokenizer, "model_max_length": 64, "extra_ids": 10}
    named |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    size = sentencepiece(folder, "spiece.model", named, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    save_model(folder, config, {**_T5, "vocab_size": size + 20, "pad_token_id": 0, "decoder_start_token_id": 0})
    return Case(folder, (Call(TEXTS, by_sentence_transformers(folder)),))


ROWS.add("t5-whole-model", lambda place: _t5(place, "T5Config", "T5Tokenizer"))
ROWS.add("mt5-whole-model", lambda place: _t5(place, "MT5Config", "T5Tokenizer"))
ROWS.add("qwen3-embedding-last-left", lambda place: last(decoder(place / "Qwen3-Embedding-0.6B", "Qwen3Config")))
ROWS.add("qwen2-last-left", lambda place: last(decoder(place / "gte-Qwen2", "Qwen2Config")))
ROWS.add(
    "llama-last-right-no-pad",
    lambda place: last(decoder(place / "m", "LlamaConfig", {"pad_token": None, "padding_side": "right"})),
)
ROWS.add(
    "mistral-sliding-window-last",
    lambda place: last(decoder(place / "e5-mistral", "MistralConfig", sliding_window=12)),
)
ROWS.add(
    "gemma3-bidirectional-mean",
    lambda place: mean(
        decoder(place / "embeddinggemma", "Gemma3TextConfig", sliding_window=12, use_bidirectional_attention=True)
    ),
)
ROWS.add("decoder-without-pooling", lambda place: Case(decoder(place / "llama", "LlamaConfig")))


@ROWS.row("gpt2-weighted-mean-no-pad-token")
def _sgpt(place: Path) -> Case:
    folder = place / "SGPT"
    size = decoder_tokenizer(folder, pad_token=None, padding_side="right", ends=False)
    settings = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": size}
    save_model(folder, "GPT2Config", {**settings, "bos_token_id": 0, "eos_token_id": 0})
    return Case(folder, (Call(TEXTS, by_transformers(folder, TEXTS, "weighted_mean")),), ("--pooling", "weighted_mean"))


@ROWS.row("bloom-alibi-last")
def _bloom(place: Path) -> Case:
    folder = place / "bloom"
    size = decoder_tokenizer(folder, model_max_length=128)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    save_model(folder, "BloomConfig", {"hidden_size": 48, "n_layer": 2, "n_head": 4, "vocab_size": size, **ids})
    return last(folder)


@ROWS.row("weights-sharded")
def _sharded(place: Path) -> Case:
    folder = place / "sharded"
    size = wordpiece(folder)
    save_model(folder, "BertConfig", {**BERT, "pad_token_id": 0, "vocab_size": size}, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return mean(folder)


@ROWS.row("weights-bin-alone")
def _bin(place: Path) -> Case:
    import torch
    from safetensors.torch import load_file

    folder = bert(place / "old")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return mean(folder)


def _halved(place: Path, dtype: str) -> Case:
    import torch
    from transformers import AutoModel

    folder = bert(place / dtype)
    half = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype))
    half.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    return mean(folder)


ROWS.add("weights-float16", lambda place: _halved(place, "float16"))
ROWS.add("weights-bfloat16", lambda place: _halved(place, "bfloat16"))


def headed(folder: Path, head: str, **changes: Any) -> Path:
    """A BERT saved with the head ``head``."""
    size = wordpiece(folder)
    save_model(folder, "BertConfig", {**BERT, "pad_token_id": 0, "vocab_size": size, **changes}, head)
    return folder


def _head(place: Path, head: str, pooling: str) -> Case:
    folder = headed(place / "headed", head)
    given = by_transformers(folder, TEXTS, pooling)
    return Case(folder, (Call(TEXTS, given),), ("--pooling", pooling))


ROWS.add("head-masked-lm-tied-mean", lambda place: _head(place, "BertForMaskedLM", "mean"))
ROWS.add("head-classification-cls", lambda place: _head(place, "BertForSequenceClassification", "cls"))
ROWS.add("head-tokens-mean", lambda place: _head(place, "BertForTokenClassification", "mean"))
ROWS.add("head-pretraining-max", lambda place: _head(place, "BertForPreTraining", "max"))
for _class in ("SequenceClassification", "TokenClassification", "QuestionAnswering"):
    ROWS.add(
        f"head-{_class.lower()}-without-pooling",
        lambda place, head=f"BertFor{_class}": Case(headed(place / "headed", head)),  # type: ignore[misc]
    )


@ROWS.row("head-masked-lm-without-pooling")
def _masked_lm(place: Path) -> Case:
    folder = headed(place / "bert", "BertForMaskedLM")
    return Case(folder, (Call(TEXTS, by_sentence_transformers(folder)),))


@ROWS.row("dpr-pooler")
def _dpr(place: Path) -> Case:
    folder = place / "dpr"
    size = wordpiece(folder)
    settings = {**BERT, "pad_token_id": 0, "vocab_size": size}
    save_model(folder, "DPRConfig", settings, "DPRQuestionEncoder")
    given = by_transformers(folder, auto="DPRQuestionEncoder", pick="pooler_output")
    return Case(folder, (Call(TEXTS, given),), ("--pooling", "pooler"))


@ROWS.row("bge-cls-normalized")
def _bge(place: Path) -> Case:
    folder = bert(place / "bge-small")
    return Case(
        folder, (Call(TEXTS, unit(by_transformers(folder, TEXTS, "cls"))),), ("--pooling", "cls", "--normalize")
    )


@ROWS.row("folder-name-with-spaces-and-accents")
def _odd_name(place: Path) -> Case:
    return mean(bert(place / "Modèle für 文本 (v1.0) [final]"), SHORT)


@ROWS.row("hub-cache-of-links")
def _hub_cache(place: Path) -> Case:
    made = bert(place / "made")
    root = place / "models--org--bert"
    snapshot = root / "snapshots" / ("0a" * 20)
    (root / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(p for p in made.iterdir() if p.is_file())):
        path.rename(root / "blobs" / f"{index:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{index:040x}")
    return mean(snapshot)


_ADAPTER = {"peft_type": "LORA", "task_type": "FEATURE_EXTRACTION", "r": 2, "lora_alpha": 4}
_ADAPTED = "base_model.model.encoder.layer.0.attention.self.query"


def _adapter_files(folder: Path, base: Path) -> None:
    """A LoRA adapter of one projection of ``base``, as peft writes it, in ``folder``."""
    import torch
    from safetensors.torch import save_file

    config = {**_ADAPTER, "base_model_name_or_path": str(base), "target_modules": ["query"]}
    write_json(folder / "adapter_config.json", config)
    made = {f"{_ADAPTED}.lora_A.weight": torch.randn(2, 48), f"{_ADAPTED}.lora_B.weight": torch.randn(48, 2)}
    save_file(made, folder / "adapter_model.safetensors")


def _as_merged(base: Path, adapter: Path, merged: Path) -> Case:
    """The adapter's folder, judged by transformers on the base with alpha / r * B A added (Hu et al. 2021)."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    model, added = AutoModel.from_pretrained(base), load_file(adapter / "adapter_model.safetensors")
    weight = model.encoder.layer[0].attention.self.query.weight
    scale = _ADAPTER["lora_alpha"] / _ADAPTER["r"]
    with torch.no_grad():
        weight += scale * added[f"{_ADAPTED}.lora_B.weight"] @ added[f"{_ADAPTED}.lora_A.weight"]
    model.save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)
    return Case(adapter, mean(merged).calls)


@ROWS.row("peft-adapter-alone")
def _adapter(place: Path) -> Case:
    base = bert(place / "base")
    _adapter_files(place / "adapter", base)
    return _as_merged(base, place / "adapter", place / "merged")


@ROWS.row("peft-adapter-beside-its-base")
def _adapter_beside(place: Path) -> Case:
    from shutil import copytree

    folder = bert(place / "base")
    plain = copytree(folder, place / "plain")
    _adapter_files(folder, folder)
    return _as_merged(plain, folder, place / "merged")


_OWN_CODE = '''
import torch
from transformers import {base}Model


class OwnModel({base}Model):
    """The published model with one thing changed by its own code."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.flip(-1) * torch.linspace(
            -1, 1, output.last_hidden_state.shape[-1]
        )
        return output
'''


def _own_code(place: Path, base: str, trust: bool) -> Case:
    folder = bert(place / "own") if base == "Bert" else decoder(place / "own", f"{base}Config")
    (folder / "modeling_own.py").write_text(_OWN_CODE.format(base=base), encoding="utf-8")
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"}, architectures=["OwnModel"])
    if not trust:
        return Case(folder)
    if base == "Bert":
        return Case(folder, (Call(TEXTS, by_transformers(folder, trust=True)),), ("--trust-remote-code",))
    return last(folder, options=("--trust-remote-code",), trust=True)


ROWS.add("own-code-of-known-type-untrusted", lambda place: _own_code(place, "Bert", False))
ROWS.add("own-code-of-known-type-trusted", lambda place: _own_code(place, "Bert", True))
ROWS.add("own-code-qwen2-trusted", lambda place: _own_code(place, "Qwen2", True))


@ROWS.row("own-code-of-unknown-type-untrusted")
def _unknown_type(place: Path) -> Case:
    folder = bert(place / "own")
    (folder / "modeling_own.py").write_text(_OWN_CODE.format(base="Bert"), encoding="utf-8")
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"}, model_type="own-bert")
    return Case(folder)


@ROWS.row("weights-of-a-layer-missing")
def _missing_layer(place: Path) -> Case:
    from safetensors.torch import load_file, save_file

    folder = bert(place / "bert")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layer.1.attention.self.query" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return Case(folder)


@ROWS.row("weights-prefixed-by-another-trainer")
def _prefixed(place: Path) -> Case:
    """Weights saved from a wrapper: transformers finds none of them and starts at random."""
    from safetensors.torch import load_file, save_file

    folder = bert(place / "bert")
    weights = load_file(folder / "model.safetensors")
    renamed = {f"module.encoder_q.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return Case(folder)


@ROWS.row("two-forms-of-weights-that-disagree")
def _two_weights(place: Path) -> Case:
    """Newer safetensors beside an older .bin: transformers reads safetensors."""
    import torch
    from safetensors.torch import load_file

    folder = bert(place / "bert")
    old = {name: tensor + 0.2 for name, tensor in load_file(folder / "model.safetensors").items()}
    torch.save(old, folder / "pytorch_model.bin")
    return mean(folder)


@ROWS.row("vocabulary-larger-than-the-table")
def _too_many_tokens(place: Path) -> Case:
    from transformers import AutoTokenizer

    folder = bert(place / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["newword", "otherword"])
    tokenizer.save_pretrained(folder)
    return Case(folder)


@ROWS.row("added-and-special-tokens")
def _added(place: Path) -> Case:
    from transformers import AutoModel, AutoTokenizer

    folder = bert(place / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["riverbank", "NewWord"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENT]", "[QRY] "]})
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    spread(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return mean(folder, (*TEXTS, "[ENT] the riverbank [QRY] a newword NewWord", "[QRY]river"))
