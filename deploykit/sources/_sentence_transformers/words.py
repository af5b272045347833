"""Encoders without a network before their pooling: a table with a vector for each token or word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Options, _folder, _limits
from deploykit.sources import _text as text
from deploykit.sources._checkpoint import Checkpoint
from deploykit.sources._sentence_transformers.keys import count, one_of, refuse_unknown
from deploykit.sources._sentence_transformers.modules import Chain
from deploykit.sources._sentence_transformers.stages import on_tokens, read_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

LONGEST = 4096
"""Tokens of a text if the folder names no maximum: nothing is cut there, and a bundle proves a longest one."""

_CUT_HERE = f"texts are cut after {LONGEST} tokens, because its files name no maximum, max_length sets another bound"
_WHITESPACE = "WhitespaceTokenizer"
_WRAPPED = "TransformersTokenizerWrapper"
_WORDS = "words.json"


def open_static(chain: Chain, options: Options) -> tuple[Checkpoint, text.TextInput]:
    """A StaticEmbedding: tokens of a tokenizer without special ones, and the mean of their vectors."""
    from deploykit.sources._sentence_transformers.layers import WordTable

    folder = chain.first.folder
    weights = _table(read_weights(folder))
    data = _folder.read_table(folder / "tokenizer.json")
    truncation = one_of(folder / "tokenizer.json", "truncation", data.get("truncation") or {}, dict)
    own = count(folder / "tokenizer.json", "truncation.max_length", truncation.get("max_length"))
    data |= {"post_processor": None, "truncation": None, "padding": None}
    given = _input(
        _save("tokenizer.json", data),
        _limits.decide(options, own or LONGEST, {}, _limits.Bound()).tokens,
        vocabulary=min(len(weights), _vocabulary(folder, data)),
        truncation_side=str(truncation.get("direction", "right")).lower(),
    )
    return _checkpoint("StaticEmbedding", WordTable(weights)), replace(given, notes=_notes(options, own))


def open_words(chain: Chain, options: Options, modes: tuple[str, ...]) -> tuple[Checkpoint, text.TextInput]:
    """WordEmbeddings: words split at whitespace, and what works on their vectors before the pooling."""
    from deploykit.sources._sentence_transformers.layers import WordTable

    folder = chain.first.folder
    path = folder / "wordembedding_config.json"
    config = _folder.read_table(path)
    refuse_unknown(path, config, ("tokenizer_class", "update_embeddings", "max_seq_length"))
    weights = read_weights(folder).get("emb_layer.weight")
    if weights is None or weights.ndim != 2:
        raise SourceError(f"{folder} has no table emb_layer.weight [words, width]", hint="fetch the folder again")
    own = count(path, "max_seq_length", config.get("max_seq_length"))
    longest = _limits.decide(options, min(own or LONGEST, LONGEST), {}, _limits.Bound()).tokens
    kind = str(config.get("tokenizer_class", "")).rpartition(".")[2]
    stages: list[nn.Module] = on_tokens(chain, modes, layered=False)
    body = WordTable(weights, stages)
    if kind == _WRAPPED:
        tokenizer = text.read_tokenizer(folder, options)
        if own is not None and own < LONGEST:
            hint = "a text that is cut there loses its last special token: wrap it as py:package.module:factory"
            raise SourceError(f"{path} cuts the tokens of a {_WRAPPED} at {own}", hint=hint)
        given = text.text_input(tokenizer, len(weights), False, longest)
        return _checkpoint("WordEmbeddings", body), replace(given, notes=_notes(options, own))
    if kind != _WHITESPACE:
        hint = f"understood are {_WHITESPACE} and {_WRAPPED}"
        raise SourceError(f"{path} splits texts with {config.get('tokenizer_class')}", hint=hint)
    given = _input(_words(folder), longest, vocabulary=len(weights), truncation_side="right")
    return _checkpoint("WordEmbeddings", body), replace(given, notes=_notes(options, own))


def _notes(options: Options, own: int | None) -> tuple[str, ...]:
    """A sentence for the user if texts are cut that are not cut there."""
    asked = options.max_length is not None or options.fixed_length is not None
    return () if asked or (own is not None and own <= LONGEST) else (_CUT_HERE,)


def _table(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One vector for each token: as it is, or made of the parts that model2vec saves."""
    if "embedding.weight" in weights:
        return weights["embedding.weight"].float()
    if "embeddings" not in weights:
        hint = f"it has {', '.join(weights) or 'nothing'}"
        raise SourceError("a StaticEmbedding's weights are called embedding.weight or embeddings", hint=hint)
    vectors = weights["embeddings"].float()
    if "mapping" in weights:
        vectors = vectors[weights["mapping"].long()]
    return vectors * weights["weights"].float().unsqueeze(1) if "weights" in weights else vectors


def _vocabulary(folder: Path, data: Mapping[str, Any]) -> int:
    from tokenizers import Tokenizer

    try:
        return int(Tokenizer.from_str(json.dumps(data)).get_vocab_size())
    except Exception as error:  # the library raises a bare Exception
        raise SourceError(f"{folder / 'tokenizer.json'} cannot be read: {error}", hint="fetch it again") from error


def _words(folder: Path) -> Path:
    path = folder / "whitespacetokenizer_config.json"
    config = _folder.read_table(path)
    refuse_unknown(path, config, ("vocab", "stop_words", "do_lower_case"))
    words = {
        "vocab": one_of(path, "vocab", config.get("vocab") or [], list),
        "stop_words": sorted(map(str, one_of(path, "stop_words", config.get("stop_words") or [], list))),
        "lowercase": bool(config.get("do_lower_case", False)),
    }
    return _save(_WORDS, words)


def _save(name: str, data: Mapping[str, Any]) -> Path:
    path = text.scratch_folder() / name
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    return path


def _input(tokenizer: Path, max_length: int, *, vocabulary: int, truncation_side: str) -> text.TextInput:
    """Texts without special tokens, of which one may have no token at all: its vector is zero."""
    plain = text.TextInput(
        tokenizer=tokenizer,
        max_length=max_length,
        pad_id=0,
        padding_side="right",
        truncation_side=truncation_side,
        prefix=(),
        suffix=(),
        special=frozenset(),
        vocabulary=vocabulary,
        zero_types=False,
    )
    return replace(plain, more={"allow_empty": True, "tokenizer": f"preprocess/{tokenizer.name}"})


def _checkpoint(architecture: str, body: nn.Module) -> Checkpoint:
    body.eval().requires_grad_(False)
    return Checkpoint(body, SimpleNamespace(), "input_ids", "text", architecture, {})
