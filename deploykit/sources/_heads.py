"""Heads that a checkpoint was trained with and that are no part of an encoder: left out, and never without a word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import SourceError

_NAMES = re.compile(r"For[A-Z]\w*$|LMHead|DoubleHeads|WithProjection$")
_HALVES = ("ForConditionalGeneration", "MTModel")
"""Their decoder is left out, which is said by itself: the encoder half is what embeds."""

_NO_WEIGHTS = (".position_ids", ".token_type_ids", ".inv_freq", ".masked_bias", ".attn.bias", ".num_batches_tracked")
"""Buffers of older versions of transformers, made anew by today's."""

_LISTED = 3


@dataclass(frozen=True)
class Head:
    """What was left out: the class that the checkpoint names, and the tensors that its encoder has no place for.

    ``foreign``: it says by its name, or by weights of a class that transformers does not know, that it was trained for
    something else than token vectors.
    """

    name: str
    weights: tuple[str, ...]
    foreign: bool

    @property
    def note(self) -> str:
        """A sentence for the user."""
        return f"the head of {self.name} is left out{_listed(self.weights)}: the embedding is that of its encoder alone"


def left_out(architectures: Iterable[str], model: Any, unexpected: Iterable[str]) -> Head | None:
    """What the loaded ``model`` lacks of the checkpoint; ``unexpected`` are the tensors that it had no place for."""
    import transformers

    name, ran = next(iter(architectures), ""), type(model).__name__
    weights = tuple(sorted(key for key in unexpected if not f".{key}".endswith(_NO_WEIGHTS)))
    if name == ran or name.endswith(_HALVES):
        return None if name.endswith(_HALVES) or not weights else Head(name, weights, foreign=False)
    named = _NAMES.search(name) is not None
    unknown = bool(weights) and not hasattr(transformers, name or "?")
    if not named and not weights:
        return None
    return Head(name or ran, weights, foreign=named or unknown)


def refuse_guess(head: Head | None, folder: Path) -> None:
    """`SourceError` where only the head knew what becomes of the token vectors, and nobody chose a pooling."""
    if head is None or not head.foreign:
        return
    raise SourceError(
        f"{folder} holds a {head.name}, whose head is left out{_listed(head.weights)}, and nothing says how its token "
        "vectors become an embedding",
        hint="if it was trained for that, choose: pooling = mean, cls, last, max, or pooler for its own pooled output "
        "(--pooling mean)",
    )


def _listed(weights: tuple[str, ...]) -> str:
    if not weights:
        return ""
    more = f" and {len(weights) - _LISTED} more" if len(weights) > _LISTED else ""
    return f" ({', '.join(weights[:_LISTED])}{more})"
