"""Texts as word pieces of a vocabulary learnt from the data; views by random spans, or by dropout alone (SimCSE).

SimCSE: Gao et al. 2021, arXiv:2104.08821.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploykit.errors import InputError, MissingError, RecipeError
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Tokens
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import TensorSpec

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD, _CLS, _SEP, _MASK = 0, 2, 3, 4
_ENDS = (".", "!", "?", ";")
_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Options:
    """At most ``length`` tokens a text, its ends included; the rest is cut, or with ``pieces`` becomes texts of its own
    in the data that is learnt from. ``vocabulary`` word pieces are learnt.

    ``span``: a view is a random span of this share of the text at least; 1 leaves texts whole, and dropout in the
    encoder then makes the difference between views. ``drop``: each token of a view is left out at this rate (word
    deletion, arXiv:2012.15466), but one.
    """

    length: int = 64
    pieces: bool = False
    vocabulary: int = 8192
    span: float = 1.0
    drop: float = 0.0
    lower: bool = True


class Adapter:
    """Facts: the tokenizer, as the text of its file, and how often each of its pieces stands in the data."""

    modality = "text"

    def __init__(self, options: Options, facts: dict[str, Any]) -> None:
        possible = 0 < options.span <= 1 and 0 <= options.drop < 1
        if options.length < 4 or options.vocabulary < 300 or not possible:
            hint = "length 4 or more, vocabulary 300 or more, span above 0 and up to 1, drop from 0 and below 1"
            raise RecipeError(f"the text options make no sense: {options}", hint=hint)
        self.options, self.facts = options, facts
        self._tokenizer = _tokenizers().Tokenizer.from_str(facts["tokenizer"])
        self._whole = _tokenizers().Tokenizer.from_str(facts["tokenizer"])
        self._tokenizer.enable_truncation(options.length)
        size = self._tokenizer.get_vocab_size()
        self.space = Tokens(options.length, size, _MASK, len(_SPECIAL), tuple(facts.get("counts", ())))

    @classmethod
    def fit(cls, options: Options, inputs: Sequence[Any], seed: int) -> Adapter:
        """Learn the word pieces from all the texts, the same ones each time."""
        tokenizers = _tokenizers()
        normalizer = tokenizers.normalizers.BertNormalizer(lowercase=options.lower)
        cutter = tokenizers.pre_tokenizers.BertPreTokenizer()
        words = Counter(word for text in inputs for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text)))
        pieces = [*_SPECIAL, *_pieces(words, options.vocabulary - len(_SPECIAL))]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizer, cutter
        made.add_special_tokens(list(_SPECIAL))
        ends = [("[CLS]", _CLS), ("[SEP]", _SEP)]
        made.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        made.decoder = tokenizers.decoders.WordPiece()
        counts = [0] * len(pieces)
        for word, count in words.items():
            for piece in made.encode(word, add_special_tokens=False).ids:
                counts[piece] += count
        return cls(options, {"tokenizer": made.to_str(), "counts": counts})

    def read(self, given: Any, place: int = 0) -> tuple[np.ndarray, ...]:
        """One text as ids int32 [length], filled with padding, and its count of tokens."""
        if not isinstance(given, str):
            raise InputError(f"input {place} is a {type(given).__name__} and no text", hint="name a column of texts")
        found = self._tokenizer.encode(given).ids
        ids = np.full(self.options.length, _PAD, np.int32)
        ids[: len(found)] = found
        return ids, np.array(len(found), np.int32)

    def parts(self, given: Sequence[Any]) -> list[Any]:
        """With the option ``pieces`` the texts in parts of ``length`` tokens at most, empty lines left out."""
        if not self.options.pieces:
            return list(given)
        return [part for text in given for part in self._cut(text) if not isinstance(part, str) or part.strip()]

    def _cut(self, text: Any) -> list[Any]:
        """Parts of a text: each ends with the last sentence that ends in its second half, else with a whole word."""
        if not isinstance(text, str):
            return [text]
        found, room = self._whole.encode(text, add_special_tokens=False), self.options.length - 2
        tokens, offsets, cuts = found.tokens, found.offsets, [0]
        while len(tokens) - cuts[-1] > room:
            last = cuts[-1] + room
            half = range(last, cuts[-1] + room // 2, -1)
            sentence = next((end for end in half if tokens[end - 1] in _ENDS), None)
            word = next((end for end in half if not tokens[end].startswith("##")), last)
            cuts.append(word if sentence is None else sentence)
        bounds = [0, *(offsets[cut][0] for cut in cuts[1:]), len(text)]
        return [text[a:b].strip() for a, b in itertools.pairwise(bounds)]

    def lengths(self, held: tuple[Tensor, ...]) -> Tensor:
        """How many tokens each text has."""
        return held[1]

    def clean(self, held: tuple[Tensor, ...]) -> Input:
        """Ids and what of them is no padding, cut to the longest of the batch."""
        return _cut(held[0].long(), held[1].long())

    def views(self, held: tuple[Tensor, ...], count: int, draws: Draws) -> list[Input]:
        """Random spans between the two ends of each text, without the tokens that are dropped; one length for all."""
        ids, counts = held[0].long(), held[1].long()
        longest = int(counts.max())
        made = []
        for _ in range(count):
            draw = draws.uniform(2)
            inner = (counts - 2).clamp(min=0)
            share = self.options.span + (1 - self.options.span) * draw[:, 0]
            kept = (inner * share).round().long().clamp(min=1).minimum(inner)
            first = 1 + (draw[:, 1] * (inner - kept + 1)).long().minimum(inner - kept)
            places = torch.arange(longest, device=ids.device)[None]
            source = torch.where(places == 0, places, (places - 1 + first[:, None]).clamp(max=ids.shape[1] - 1))
            rows = ids.gather(1, source)
            rows = torch.where(places == kept[:, None] + 1, torch.full_like(rows, _SEP), rows)
            if self.options.drop:
                rows, kept = self._thin(rows, kept, draws)
            valid = places < kept[:, None] + 2
            made.append(Input(rows.masked_fill(~valid, _PAD), valid.long()))
        return made

    def _thin(self, rows: Tensor, kept: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Leave tokens out, at least one of the ``kept`` inner ones stays; the others move together."""
        draw = draws.columns(self.options.length, rows.shape[1])
        places = torch.arange(rows.shape[1], device=rows.device)[None]
        inner = (places > 0) & (places <= kept[:, None])
        safest = draw.masked_fill(~inner, -1.0).argmax(dim=1, keepdim=True)
        gone = (inner & (draw < self.options.drop)).scatter(1, safest, False)
        return rows.gather(1, gone.int().argsort(dim=1, stable=True)), kept - gone.sum(dim=1)

    def raw(self, held: tuple[Tensor, ...]) -> Tensor:
        """Shares of 512 groups of word pieces: a bag of words, hashed by id."""
        ids = held[0].long() % 512
        counts = torch.zeros(len(ids), 512).scatter_add_(1, ids, (held[0] >= len(_SPECIAL)).float())
        return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)

    def card(self, folder: Path) -> dict[str, Any]:
        """The graph takes ids and the mask; the tokenizer's file is written beside the card."""
        plain = _tokenizers().Tokenizer.from_str(self.facts["tokenizer"])
        (folder / _FILE).write_text(plain.to_str(), encoding="utf-8")
        specs = [TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")]
        preprocess = {
            **{"kind": "text", "tokenizer": f"preprocess/{_FILE}", "max_length": self.options.length, "pad_id": _PAD},
            **{"padding_side": "right", "truncation_side": "right", "prompts": {}, "default_prompt": None},
        }
        inputs = [dataclasses.asdict(spec) for spec in specs]
        return {"inputs": inputs, "preprocess": preprocess, "files": {f"preprocess/{_FILE}": _FILE}}


def _cut(ids: Tensor, counts: Tensor) -> Input:
    longest = int(counts.max())
    valid = torch.arange(longest, device=ids.device)[None] < counts[:, None]
    return Input(ids[:, :longest], valid.long())


def _pieces(words: Counter[str], count: int) -> list[str]:
    """The pieces of a vocabulary, by merging what stands side by side most often; the most basic ones first.

    The trainer of word pieces numbers those inside of words in the order of a hash table, which is another one each
    time, and so breaks ties anew. The trainer of byte pairs sorts its letters: here a letter inside of a word is
    another one than the same letter in front.
    """
    tokenizers = _tokenizers()
    letters = sorted({(place > 0, letter) for word in words for place, letter in enumerate(word)})
    signs = {letter: chr(0x10000 + i) for i, letter in enumerate(letters)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=count, show_progress=False)
    told = ("".join(signs[place > 0, letter] for place, letter in enumerate(word)) + " " for word in sorted(words))
    made.train_from_iterator((sign * words[word] for sign, word in zip(told, sorted(words), strict=True)), trainer)
    found = made.get_vocab()
    plain = {sign: letter for letter, sign in signs.items()}
    return [
        "##" * plain[piece[0]][0] + "".join(plain[sign][1] for sign in piece) for piece in sorted(found, key=found.get)
    ]


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        hint = pip_install("text")
        raise MissingError("text needs tokenizers, which is not installed", hint=hint) from error
    return tokenizers
