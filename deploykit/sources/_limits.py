"""How many tokens a text may have: what the model can read, and what its files say.

A bound is what is in the model: a table that is looked up by position has so many rows, and frequencies that depend on
the longest text of a batch are those of the export only up to the length at which they change. The config's
``max_position_embeddings`` is neither: models with rotary positions or ALiBi read on behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Options, _folder
from deploykit.sources._checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

UNBOUNDED_MAX_LENGTH = 512
"""Tokens, for models whose files name no maximum (relative positions)."""

LONGEST_UNASKED = 8192
"""Tokens. A longer maximum is proven only if somebody asks for it: attention takes memory by its square."""

_TOO_LARGE = 10**6  # transformers writes 1e30 for "no maximum"
_TRIED = 2048  # one pass over a text of so many tokens is cheap enough to see whether the model reads one more
_PAIRS = ((4, 6), (32, 34), (256, 258))  # lengths whose lookups are compared; some models fail on short texts

Lookup = tuple[int, int, int]
"""Rows of a table, the number of ids that are looked up in it, and the largest of them."""


@dataclass(frozen=True)
class Bound:
    """``most`` tokens are read right, None: nothing bounds them; ``why`` says what does. ``trained``: the length that
    the config names, which bounds nothing.
    """

    most: int | None = None
    why: str = ""
    trained: int | None = None


@dataclass(frozen=True)
class Length:
    """Tokens of the longest text, and what the user should know about it."""

    tokens: int
    notes: tuple[str, ...] = ()


def bound_of(checkpoint: Checkpoint, token: int) -> Bound:
    """What bounds the texts of a loaded encoder; ``token`` is an ordinary id to try it with."""
    declared = getattr(checkpoint.config, "max_position_embeddings", None)
    trained = int(declared) if isinstance(declared, int) and declared > 0 else None
    found: list[tuple[int, str]] = []
    rows = _positions(checkpoint, token, trained)
    if rows is not None:
        found.append((rows, f"the model has {rows} positions"))
    for length, kind in _changing_frequencies(checkpoint.body):
        found.append((length, f"above {length} its '{kind}' frequencies depend on the longest text of the batch"))
    most, why = min(found, default=(None, ""))
    return Bound(most, why, trained)


def decide(options: Options, declared: int | None, files: Mapping[str, int], bound: Bound) -> Length:
    """The longest text: as asked, else as ``declared``, else the first of what the ``files`` say (by what says so).

    Raises `SourceError` when more is asked or said than the model reads right, if texts would be cut without a word.
    """
    asked = _asked(options, bound)
    if asked is not None:
        return Length(asked)
    said = next(iter(files.values()), None) if declared is None else declared
    if said is None:
        return _unsaid(bound)
    if bound.most is not None and said > bound.most:
        if "depend" in bound.why:
            hint = f"max_length = {bound.most} (--max-length {bound.most}) cuts them there"
            raise SourceError(f"texts of up to {said} tokens cannot be exported: {bound.why}", hint=hint)
        return Length(bound.most)  # the library fails on longer ones: there is no vector that this would change
    usual = max(bound.trained or 0, LONGEST_UNASKED)
    if declared is None and bound.most is None and said > usual:
        return Length(usual, (f"texts are cut after {usual} tokens, not {said}: max_length sets more",))
    return Length(said)


def _asked(options: Options, bound: Bound) -> int | None:
    if options.max_length is not None and options.fixed_length is not None:
        raise SourceError(
            "max_length and fixed_length are both given", hint="fixed_length is the longest too: leave one"
        )
    for name, asked in (("max_length", options.max_length), ("fixed_length", options.fixed_length)):
        if asked is None:
            continue
        if asked < 1 or (bound.most is not None and asked > bound.most):
            raise SourceError(f"{name} {asked} is not possible", hint=bound.why or "give 1 token or more")
        return asked
    return None


def _unsaid(bound: Bound) -> Length:
    """No file says how long a text may be; the library would read it all."""
    if bound.most is not None and "depend" not in bound.why:
        return Length(bound.most)
    tokens = min(bound.trained or UNBOUNDED_MAX_LENGTH, bound.most or LONGEST_UNASKED, LONGEST_UNASKED)
    why = f": {bound.why}" if tokens == bound.most else ", max_length sets another bound"
    return Length(tokens, (f"texts are cut after {tokens} tokens, because its files name no maximum{why}",))


def unasked(declared: int | None, files: Mapping[str, int], bound: Bound) -> int:
    """The longest text if the user asks for nothing: the width of rows that are padded to their full length."""
    known = [*([] if declared is None else [declared]), *files.values()][:1] or [bound.trained or UNBOUNDED_MAX_LENGTH]
    return min(*known, bound.most or known[0])


def said_by_files(tokenizer: Any) -> dict[str, int]:
    """The maximum that tokenizer_config.json names; transformers takes no other from a folder's tokenizer files."""
    own = tokenizer.model_max_length
    return {"tokenizer_config.json": int(own)} if own < _TOO_LARGE else {}


def truncation_inside(folder: Path) -> dict[str, int]:
    """The truncation inside tokenizer.json: who runs a graph with that file alone, by the tokenizers library, gets it.

    transformers sets its own in its place.
    """
    path = folder / "tokenizer.json"
    truncation = _folder.read_table(path).get("truncation") if path.exists() else None
    if isinstance(truncation, Mapping) and isinstance(truncation.get("max_length"), int):
        return {"tokenizer.json": int(truncation["max_length"])}
    return {}


def capped(files: Mapping[str, int], bound: Bound) -> int | None:
    """What sentence-transformers takes if its own files name no maximum: the least of tokenizer's and config's."""
    own = files.get("tokenizer_config.json")
    return min(own or bound.trained or 0, bound.trained or own or 0) or None


def _positions(checkpoint: Checkpoint, token: int, trained: int | None) -> int | None:
    """Rows that its tables have for positions; None if it has none and reads more tokens than its config names."""
    for short, long in _PAIRS:
        first, second = _lookups(checkpoint, token, short), _lookups(checkpoint, token, long)
        if first is None or second is None or len(first) != len(second):
            continue
        most = min(_rows(short, long, first, second), default=None)
        if trained is None or trained > _TRIED or (most is None and _rotates(checkpoint.body)):
            return most
        if most is not None and most <= trained:
            return most
        # Some slice a table, or a buffer of positions, in ways that no lookup shows.
        return trained if _lookups(checkpoint, token, trained + 1) is None else most
    return trained


def _rows(short: int, long: int, first: Sequence[Lookup], second: Sequence[Lookup]) -> Iterator[int]:
    """How many tokens each table of positions has rows for, from the lookups in a short and in a long text."""
    for (rows, count, top), (same, more, next_top) in zip(first, second, strict=True):
        # A position costs a row: two tokens more look up two rows more. Others look up pairs of tokens, which are
        # relative positions, or the tokens themselves, which are all the same here. Some fill a window with padding.
        if rows != same or (count, more) == (short * short, long * long):
            continue
        if next_top - top == long - short:
            yield rows - (top - short + 1)
        elif more == next_top + 1 > long and next_top > top:
            yield rows


def _lookups(checkpoint: Checkpoint, token: int, length: int) -> list[Lookup] | None:
    """Every lookup while one text is read; None if the model fails on it."""
    import torch
    from torch.overrides import TorchFunctionMode

    found: list[Lookup] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.nn.functional.embedding:
                ids, table = (*args, *(kwargs or {}).values())[:2]
                found.append((int(table.shape[0]), ids.numel(), int(ids.max())))
            return func(*args, **(kwargs or {}))

    ids = torch.full((1, length), token)
    try:
        with torch.inference_mode(), Watch():
            getattr(checkpoint.body, checkpoint.method)(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception:
        return None
    return found


def _rotates(body: nn.Module) -> bool:
    """Whether positions are angles, which no table bounds."""
    return any("inv_freq" in name for name, _ in body.named_buffers())


def _changing_frequencies(body: nn.Module) -> Iterator[tuple[int, str]]:
    """The length up to which rotary frequencies stay as they are, for each kind of scaling that changes them then."""
    for module in body.modules():
        kinds = getattr(module, "rope_type", None)
        of_layers = kinds if isinstance(kinds, Mapping) else {None: kinds}
        for layer, kind in of_layers.items():
            if not isinstance(kind, str) or ("dynamic" not in kind and kind != "longrope"):
                continue
            config = getattr(module, "config", None)
            settings = getattr(config, "rope_parameters", None) or {}
            settings = settings.get(layer, settings) if layer is not None else settings
            length = settings.get("original_max_position_embeddings") if kind == "longrope" else None
            length = length or getattr(module, "original_max_seq_len", None)
            if isinstance(length, int):
                yield length, kind
