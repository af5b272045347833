"""The ``README.md`` of a layout: which variant it holds, how the server is started, and what the client must do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Card, TensorSpec, Variant

README: Final = "README.md"


def render(
    bundle: Bundle, variant: Variant, title: str, start: Sequence[str], notes: Sequence[str], feeding: str = ""
) -> str:
    """The page in Markdown. ``start`` are shell lines; ``feeding`` is where the preprocessing's files stand, and empty
    where the server takes raw inputs itself.
    """
    card = bundle.manifest.card
    lines = [
        f"# {card.name} on {title}",
        "",
        f"Variant `{variant.name}` ({variant.target}, {variant.precision}) of a deploykit bundle, manifest sha256",
        f"`{bundle.digest}`.",
        *_needs(variant),
        "",
        "```bash",
        *start,
        "```",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
        *_tensors(card, enforced=not feeding),
        *(_client(card, feeding) if feeding else ()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _needs(variant: Variant) -> Iterator[str]:
    if variant.requires:
        yield ""
        yield f"What the machine must have: {json.dumps(variant.requires)}. The server does not check it."


def _tensors(card: Card, enforced: bool) -> Iterator[str]:
    yield "| tensor | | type | shape |"
    yield "|---|---|---|---|"
    for side, specs in (("input", card.inputs), ("output", card.outputs)):
        yield from (f"| `{spec.name}` | {side} | {spec.dtype} | {_shape(spec)} |" for spec in specs)
    for axis, (low, high) in sorted(card.limits.axes.items()):
        yield ""
        yield f"Proven for {axis} {low} to {high}{'' if enforced else '; the server does not enforce it'}."


def _shape(spec: TensorSpec) -> str:
    return " x ".join(map(str, spec.shape))


def _client(card: Card, feeding: str) -> Iterator[str]:
    yield ""
    yield "## What the client does"
    yield ""
    own_way = card.preprocess.get("frames") or str(card.preprocess.get("tokenizer", "")).endswith("words.json")
    if card.modality == "text" and not own_way:
        yield from _tokenizing(card, feeding)
    elif card.modality == "tensor":
        yield "The server takes ready tensors, as the encoder does."
    else:
        yield f"The server takes tensors. `deploykit embed` makes them of each {card.modality} by these options"
        yield f"(files in them stand below `{feeding}`):"
        yield ""
        yield "```json"
        yield json.dumps(card.preprocess, indent=1, ensure_ascii=False)
        yield "```"


def _tokenizing(card: Card, feeding: str) -> Iterator[str]:
    options: dict[str, Any] = card.preprocess
    side, cut = options.get("padding_side", "right"), options.get("truncation_side", "right")
    longest = longest_text(card)
    yield "The server takes tokens and has no tokenizer. Texts become tokens like this (`pip install tokenizers`):"
    yield ""
    yield "```python"
    yield "from tokenizers import Tokenizer"
    yield f'tokenizer = Tokenizer.from_file("{feeding}/{options["tokenizer"]}")'
    yield "tokenizer.no_padding()  # the file may bring padding and truncation of its own"
    yield f'tokenizer.enable_truncation({longest}, direction="{cut}")'
    yield "rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]"
    yield "```"
    yield ""
    yield f"Rows are padded on the {side} with {options.get('pad_id', 0)} to the longest of a batch."
    said = {
        "attention_mask": "is 1 on tokens and 0 on padding",
        "pooling_mask": "is 1 on tokens, and 0 on padding and on the prompt's",
        "token_type_ids": f"holds the encodings' `type_ids`, and {options.get('pad_type_id', 0)} on padding",
        "position_ids": "counts the tokens from 0; padding before them has 0",
    }
    yield from (f"`{spec.name}` {said[spec.name]}." for spec in card.inputs if spec.name in said)
    if options.get("strip") or options.get("lowercase"):
        done = [word for key, word in (("strip", "stripped"), ("lowercase", "lowercased")) if options.get(key)]
        yield f"Texts are {' and '.join(done)} first."
    prompts = options.get("prompts") or {}
    if prompts:
        yield f"A prompt stands before each text: {json.dumps(prompts, ensure_ascii=False)};"
        yield f"unless another is asked for: {json.dumps(options.get('default_prompt'))}."


def longest_text(card: Card) -> int:
    """How many tokens a text may have, the special ones among them."""
    longest = int(card.preprocess["max_length"])
    return min(longest, card.limits.axes.get("length", (1, longest))[1])
