"""Texts to token ids with the ``tokenizers`` library alone.

The tokenizer's file may bring truncation and padding of its own (MiniLM's pads everything to 128); both are switched
off and done here, from the options, so that a batch is as wide as its longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deploykit.runtime.errors import BundleError, InputError, NoTokensError, nearest
from deploykit.runtime.manifest import Card, from_json
from deploykit.runtime.names import inside
from deploykit.runtime.preprocess import Item

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_IDS, _MASK, _TYPES, _POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
_POOLED = "pooling_mask"
_PREFIX = "preprocess/"
MAX_CHARACTERS = 2**20
"""Longer texts are refused: the tokenizer takes some 180 bytes and a microsecond for each character, read or cut."""

# Batches of texts this long are padded to a multiple of this many tokens, where a mask marks padding: 16 rows fill a
# tile of AMX. On long texts that costs 5 % more tokens and saves more time than that; on short ones the padding
# outweighs it.
_STEP_FROM, _WIDTH_STEP = 64, 16


@dataclass(frozen=True)
class Frame:
    """What a chat template puts around a text. ``ending`` are the ids that it ends with: a text that was cut to the
    longest length gets them back in the place of its last ids. ``unpooled`` ids at the beginning are not pooled.
    """

    before: str
    after: str
    ending: tuple[int, ...] = ()
    unpooled: int = 0


@dataclass(frozen=True)
class Options:
    """``card.preprocess`` of a text encoder.

    ``max_length`` is in tokens and counts the special ones. ``prompts`` are put before a text, by the ``kind`` given to
    ``encode``; ``default_prompt`` names the one for a call without a kind. ``lowercase`` and ``strip`` are done before
    the tokenizer sees the text. ``frames`` stand in the place of the prompts if there are any, by the prompt's name, ""
    without one. ``prompt_tokens`` of a text are not pooled, by the prompt's name, if the graph has a mask for that.
    ``allow_empty``: a text without any token gives the zero vector, and is no error.
    """

    tokenizer: str
    max_length: int
    pad_id: int = 0
    pad_type_id: int = 0
    padding_side: Literal["right", "left"] = "right"
    truncation_side: Literal["right", "left"] = "right"
    lowercase: bool = False
    strip: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    frames: dict[str, Frame] = field(default_factory=dict)
    prompt_tokens: dict[str, int] = field(default_factory=dict)
    allow_empty: bool = False


class Preprocessor:
    """Tokenises, truncates and pads. Safe to use from several threads: nothing changes after it is opened."""

    def __init__(self, tokenizer: Tokenizer, options: Options, card: Card) -> None:
        self._options = options
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in card.inputs}
        self._names = set(self._dtypes)
        unknown = sorted(self._names - {_IDS, _MASK, _TYPES, _POSITIONS, _POOLED})
        if unknown or _IDS not in self._names:
            raise BundleError(
                f"the text encoder has the inputs {sorted(self._names)}",
                hint=f"a text bundle needs {_IDS}, and may take {_MASK}, {_TYPES}, {_POSITIONS} and {_POOLED}",
            )
        self._shortest, proven = card.limits.axes.get("length", (1, options.max_length))
        self._longest = min(options.max_length, proven)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._longest, direction=options.truncation_side)
        self._tokenizer = tokenizer
        # The types of one text come from the post-processor's template, the same for all: mostly zeros, then they need
        # not be fetched.
        self._plain_types = _TYPES not in self._names or not any(tokenizer.encode("a").type_ids)

    @classmethod
    def open(cls, card: Card, root: Path) -> Preprocessor:
        """Read ``card.preprocess`` and the tokenizer; `BundleError` names what is wrong with them."""
        data = {key: value for key, value in card.preprocess.items() if key != "kind"}
        options = from_json(Options, data, "card.preprocess")
        if options.default_prompt is not None and options.default_prompt not in options.prompts:
            raise BundleError(
                f"card.preprocess.default_prompt is '{options.default_prompt}', and there is no such prompt",
                hint=nearest(options.default_prompt, list(options.prompts)),
            )
        if options.frames and {"", *options.prompts} - set(options.frames):
            raise BundleError("card.preprocess.frames lacks a prompt's frame", hint="build the bundle again")
        if options.max_length < 1 or not options.tokenizer.startswith(_PREFIX):
            raise BundleError(
                f"card.preprocess has max_length {options.max_length} and tokenizer '{options.tokenizer}'",
                hint=f"a length of 1 or more, and a file below {_PREFIX}",
            )
        return cls(_open_tokenizer(inside(root, options.tokenizer), options), options, card)

    def items(self, inputs: Sequence[Any], *, kind: str | None = None) -> list[Item]:
        """One item per text, cost in tokens; `InputError` names the first that is no text."""
        frame = self._frame(kind)
        texts = self._prepared(inputs, frame)
        try:
            if len(texts) == 1:
                encodings = [self._tokenizer.encode(texts[0])]
            else:
                encodings = self._tokenizer.encode_batch_fast(texts)
        except Exception as error:  # the library raises TypeError or a bare Exception
            raise _untokenizable(self._tokenizer, texts, error) from error
        return [self._item(encoding, index, frame) for index, encoding in enumerate(encodings)]

    def collate(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Padded ``[batch, length]`` tensors, as wide as the longest text (rounded up where a mask marks the
        padding).
        """
        rows = [item.tensors[_IDS] for item in items]
        lengths = [len(row) for row in rows]
        width = self._width(max(lengths), len(rows))
        ids = np.full((len(rows), width), self._options.pad_id, self._dtypes[_IDS])
        right = self._options.padding_side == "right"
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            ids[index, slice(length) if right else slice(width - length, width)] = row
        feeds = {_IDS: ids}
        if self._names != {_IDS}:
            real = np.arange(width) < np.asarray(lengths)[:, None]
            self._add_others(feeds, real if right else real[:, ::-1], items)
        return feeds

    def _add_others(self, feeds: dict[str, np.ndarray], real: np.ndarray, items: Sequence[Item]) -> None:
        """The mask, types and positions; ``real`` is True where a token is no padding."""
        if _MASK in self._names:
            feeds[_MASK] = real.astype(self._dtypes[_MASK])
        if _TYPES in self._names:
            types = np.where(real, 0, self._options.pad_type_id).astype(self._dtypes[_TYPES])
            if not self._plain_types:
                types[real] = np.concatenate([item.tensors[_TYPES] for item in items])
            feeds[_TYPES] = types
        if _POOLED in self._names:
            pooled = np.zeros(real.shape, self._dtypes[_POOLED])
            pooled[real] = np.concatenate([item.tensors[_POOLED] for item in items])
            feeds[_POOLED] = pooled
        if _POSITIONS in self._names:
            feeds[_POSITIONS] = np.maximum(real.cumsum(axis=1) - 1, 0).astype(self._dtypes[_POSITIONS])

    def _width(self, longest: int, count: int) -> int:
        if _MASK not in self._names:
            return max(self._shortest, longest)
        width = longest if count == 1 or longest < _STEP_FROM else -(-longest // _WIDTH_STEP) * _WIDTH_STEP
        return max(self._shortest, min(width, self._longest))

    def _prepared(self, inputs: Sequence[Any], frame: Frame) -> list[str]:
        """The texts with their prompt, as the tokenizer gets them."""
        options = self._options
        texts: list[str] = []
        for index, text in enumerate(inputs):
            if not isinstance(text, str):
                raise InputError(f"input {index} is a {type(text).__name__}, not a text", hint="pass strings")
            if len(text) > MAX_CHARACTERS:
                raise InputError(
                    f"input {index} has {len(text):,} characters",
                    hint=f"cut it below {MAX_CHARACTERS:,}: this encoder reads {self._longest} tokens of it",
                )
            if options.strip:
                text = text.strip()
            if options.lowercase:
                text = text.lower()
            texts.append(frame.before + text + frame.after)
        return texts

    def _frame(self, kind: str | None) -> Frame:
        """What stands around a text of that kind: a prompt, or the chat template with it."""
        frames, prompts = self._options.frames, self._options.prompts
        name = kind if kind is not None else self._options.default_prompt
        if name is not None and name not in prompts:
            hint = nearest(name, list(prompts)) if prompts else "this encoder has no prompts: leave kind out"
            raise InputError(f"there is no prompt for kind '{name}'", hint=hint)
        if frames:
            return frames[name or ""]
        if name is None:
            return Frame("", "")
        return Frame(prompts[name], "", unpooled=self._options.prompt_tokens.get(name, 0))

    def _item(self, encoding: Encoding, index: int, frame: Frame) -> Item:
        ids = np.array(encoding.ids, self._dtypes[_IDS])
        if frame.ending and len(ids) >= self._longest:
            kept = frame.ending[-len(ids) :]
            ids[-len(kept) :] = kept
        if not len(ids) and not (self._options.allow_empty and _MASK in self._names):
            raise NoTokensError(f"input {index} gives no tokens", hint="leave empty texts out")
        tensors = {_IDS: ids}
        if not self._plain_types:
            tensors[_TYPES] = np.array(encoding.type_ids, self._dtypes[_TYPES])
        if _POOLED in self._names:
            tensors[_POOLED] = (np.arange(len(ids)) >= frame.unpooled).astype(self._dtypes[_POOLED])
        return Item(tensors, max(1, len(ids)))


def _open_tokenizer(path: Path, options: Options) -> Any:
    """The tokenizer of a file: of the tokenizers library, or words split at whitespace."""
    from deploykit.runtime.preprocess import words

    if path.name == words.FILE:
        return words.WordTokenizer.open(path)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise BundleError(f"'{options.tokenizer}' cannot be read: {error}", hint="build the bundle again") from error


def _untokenizable(tokenizer: Any, texts: Sequence[str], error: Exception) -> InputError:
    """Which text failed. Half of a surrogate pair is what a Python string can hold and UTF-8 cannot; a vocabulary of
    words without an unknown token has nothing for other words.
    """
    for index, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as fault:
            return InputError(
                f"input {index} holds {text[fault.start]!r} at character {fault.start}, which is no Unicode text",
                hint="decode it with errors='replace'",
            )
    for index, text in enumerate(texts):
        try:
            tokenizer.encode(text)
        except Exception as fault:
            hint = "leave it out, or give the tokenizer an unknown token"
            return NoTokensError(f"input {index} cannot be tokenized: {fault}", hint=hint)
    return InputError(f"the tokenizer failed: {error}", hint="leave out the text that causes it")
