"""Text inputs: the tokenizer file of the bundle, what it does at the ends of a text, and token ids to prove with."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import MissingError, SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options, _code
from deploykit.sources._assemble import explained
from deploykit.sources._checkpoint import first_line, quiet

if TYPE_CHECKING:
    import torch

TOKENIZER = "preprocess/tokenizer.json"
_PROBE = "a"
_PROBES = (
    "",
    "The cat's 2 naïve ÜBER-dogs, (e.g.) the 漢字 かな 😀!",
    "  the \t end\n of it  ",
    "the end of a long text about a cat " * 12,
)
_PROBE_LENGTH = 16


@dataclass(frozen=True)
class TextInput:
    """How texts become ids.

    ``prefix`` and ``suffix`` are the special ids around every text, ``vocabulary`` the number of ids to draw from,
    without ``special``. ``zero_types``: the encoder gets token types, which are all 0 and are made inside the graph.
    ``fixed``: every batch is ``max_length`` wide. ``masked`` False: there is no mask, and nothing is padded but to a
    fixed length. ``notes`` are for the user, ``more`` are keys of ``card.preprocess`` that few encoders have.
    ``prompts_left_out``: a further mask says which tokens are pooled, since those of the prompt are not.
    """

    tokenizer: Path
    max_length: int
    pad_id: int
    padding_side: str
    truncation_side: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    special: frozenset[int]
    vocabulary: int
    zero_types: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    fixed: bool = False
    masked: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prompts_left_out: bool = False

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs."""
        length = self.max_length if self.fixed else "length"
        names = ["input_ids", *(["attention_mask"] if self.masked else [])]
        names += ["pooling_mask"] if self.prompts_left_out else []
        return tuple(TensorSpec(name, "int64", ("batch", length)) for name in names)

    def sizes(self, head_size: int | None) -> dict[str, tuple[int, ...]]:
        """The lengths that a proof covers, as `length_sizes`; the one there is where the length is fixed."""
        return {"length": (self.max_length,)} if self.fixed else length_sizes(self.max_length, head_size)

    def preprocess(self) -> dict[str, Any]:
        """``card.preprocess`` of kind text."""
        return {
            "kind": "text",
            "tokenizer": TOKENIZER,
            "max_length": self.max_length,
            "pad_id": self.pad_id,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "prompts": dict(self.prompts),
            "default_prompt": self.default_prompt,
            **self.more,
        }

    def make(self, batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Random texts: row 0 fills ``sizes["length"]``, the others are shorter and padded, where rows are padded."""
        import torch

        length = sizes["length"]
        generator = torch.Generator().manual_seed(seed)
        ids = torch.full((batch, length), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((batch, length), dtype=torch.int64)
        pooled = mask.clone()
        for row in range(batch):
            count = max(1, length - (row * max(length, batch)) // batch) if self.masked or self.fixed else length
            start = length - count if self.padding_side == "left" else 0
            ids[row, start : start + count] = self._text(count, generator)
            mask[row, start : start + count] = 1
            pooled[row, start + count // 3 : start + count] = 1
        made = {"input_ids": ids, "attention_mask": mask, "pooling_mask": pooled}
        return {spec.name: made[spec.name] for spec in self.specs}

    def _text(self, count: int, generator: torch.Generator) -> torch.Tensor:
        import torch

        allowed = torch.tensor([i for i in range(self.vocabulary) if i not in self.special])
        body = allowed[torch.randint(len(allowed), (count,), generator=generator)]
        before = torch.tensor(self.prefix[:count], dtype=torch.int64)
        body[: len(before)] = before
        room = count - len(before)
        after = torch.tensor(self.suffix[:room], dtype=torch.int64)
        if len(after):
            body[count - len(after) :] = after
        return body


def read_tokenizer(
    folder: Path, options: Options, *, lower_case: bool = False, arguments: Mapping[str, Any] | None = None
) -> Any:
    """The fast tokenizer of a folder as transformers runs it; `SourceError` when there is none.

    ``arguments`` are further ones of ``from_pretrained``, if the folder names any.
    """
    from transformers import AutoTokenizer

    _code.refuse_tokenizer(folder, options)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=options.trust_remote_code,
                use_fast=True,
                **(arguments or {}),
            )
    except ImportError as error:
        raise MissingError(
            f"the tokenizer of {folder} needs another package: {first_line(error)}", hint="install it"
        ) from error
    except Exception as error:
        raise SourceError(
            f"{folder} has no tokenizer that transformers can read: {first_line(error)}",
            hint="a text encoder needs tokenizer.json, or the vocabulary it is made from, in its folder",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(
            f"{type(tokenizer).__name__} in {folder} exists in Python only, and has no tokenizer.json",
            hint="convert it to the format of the tokenizers library, or export the model as tensors with py:",
        )
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise SourceError(  # transformers makes an empty one for a folder without a vocabulary
            f"{folder} has no tokenizer: there is no file with a vocabulary",
            hint="a text encoder needs tokenizer.json, or the vocabulary it is made from, in its folder",
        )
    if lower_case:
        _add_lower_case(tokenizer.backend_tokenizer)
    return tokenizer


def _add_lower_case(backend: Any) -> None:
    from tokenizers import normalizers

    lower = normalizers.Lowercase()
    backend.normalizer = normalizers.Sequence([lower, backend.normalizer] if backend.normalizer else [lower])


def text_input(tokenizer: Any, rows: int | None, accepts_types: bool, max_length: int) -> TextInput:
    """Write the tokenizer's file and find out how it frames a text; ``rows``: the size of the model's table of ids."""
    probe = tokenizer(_PROBE, return_token_type_ids=True, return_special_tokens_mask=True)
    marks = probe["special_tokens_mask"]
    ids = probe["input_ids"]
    first = marks.index(0) if 0 in marks else len(ids)
    last = len(marks) - marks[::-1].index(0) if 0 in marks else len(ids)
    has_types = accepts_types and "token_type_ids" in tokenizer.model_input_names
    if has_types and any(probe["token_type_ids"]):
        hint = "only token types of 0 are carried into a bundle: export the model as tensors with py:"
        raise SourceError(f"{type(tokenizer).__name__} gives token types that are not all 0", hint=hint)
    pad = tokenizer.pad_token_id
    path = _write(tokenizer)
    _refuse_difference(tokenizer, path)
    return TextInput(
        tokenizer=path,
        max_length=max_length,
        pad_id=0 if pad is None else int(pad),
        padding_side=str(tokenizer.padding_side),
        truncation_side=str(tokenizer.truncation_side),
        prefix=tuple(ids[:first]),
        suffix=tuple(ids[last:]),
        special=frozenset(int(i) for i in tokenizer.all_special_ids),
        vocabulary=_vocabulary(tokenizer, rows),
        zero_types=has_types,
        masked="attention_mask" in tokenizer.model_input_names,
    )


def _vocabulary(tokenizer: Any, rows: int | None) -> int:
    """How many ids are legal; `SourceError` when the tokenizer knows more than the model."""
    top = int(max(tokenizer.get_vocab().values())) + 1
    if rows is not None and top > rows:
        raise SourceError(
            f"the tokenizer knows {top} ids and the model has {rows}",
            hint="tokenizer and weights belong to different models, or resize_token_embeddings was never saved",
        )
    return top


def _write(tokenizer: Any) -> Path:
    """``tokenizer.json`` as transformers uses it, without the padding and truncation that some folders carry."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["padding"] = data["truncation"] = None
    path = scratch_folder() / "tokenizer.json"
    path.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    return path


def _refuse_difference(tokenizer: Any, path: Path) -> None:
    """`SourceError` where the class does in Python what its file does not: a bundle has the file alone."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(path))
    own.enable_truncation(_PROBE_LENGTH, direction=str(tokenizer.truncation_side))
    # What looks like a special token is one, or ordinary text (split_special_tokens), as the class decides.
    for probe in (*_PROBES, " ".join(["it", *map(str, tokenizer.all_special_tokens), "it"])):
        want = tokenizer(probe, truncation=True, max_length=_PROBE_LENGTH)["input_ids"]
        if own.encode(probe).ids != list(want):
            raise SourceError(
                f"{type(tokenizer).__name__} gives other ids for {probe[:30]!r} than its own tokenizer.json",
                hint="it does a part of its work in Python, which no bundle carries: export it as tensors with py:",
            )


def ordinary_token(tokenizer: Any) -> int:
    """The first id of the vocabulary that has no special meaning."""
    special = set(tokenizer.all_special_ids)
    return next((i for i in sorted(tokenizer.get_vocab().values()) if i not in special), 0)


def scratch_folder() -> Path:
    """A folder that goes away when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="deploykit-source-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def length_sizes(max_length: int, head_size: int | None) -> dict[str, tuple[int, ...]]:
    """The lengths that a proof covers: 1, 2, 7, the head size, powers of two from 8 on, and the maximum."""
    powers = [2**k for k in range(3, 31)]
    wanted = [1, 2, 7, *([head_size] if head_size else []), *powers, max_length]
    return {"length": tuple(sorted({size for size in wanted if size <= max_length}))}


def head_size_of(config: Any) -> int | None:
    """Width of one attention head."""
    size = getattr(config, "head_dim", None)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(size, int):
        return size
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None


def is_causal(name: str, encode_tokens: Any, text: TextInput) -> bool:
    """Whether a token's vector ignores the tokens behind it, as in decoders. Tried out, not looked up.

    ``encode_tokens(input_ids, attention_mask)`` gives token vectors [batch, length, width]. Raises `SourceError` where
    tokens ignore those before them too: the attention does not run.
    """
    import torch

    length = min(4, text.max_length)
    if length < 2:
        return False
    ordinary: Sequence[int] = [i for i in range(text.vocabulary) if i not in text.special][: length + 1]
    first = torch.tensor([ordinary[:length]])
    end, start = first.clone(), first.clone()
    end[0, -1] = start[0, 0] = ordinary[-1]
    mask = torch.ones_like(first)
    with explained(name, {"input_ids": first, "attention_mask": mask}), torch.inference_mode():
        one, other_end, other_start = (encode_tokens(ids, mask) for ids in (first, end, start))

    def same(tokens: torch.Tensor, place: int) -> bool:
        return torch.allclose(one[0, place], tokens[0, place], atol=1e-6)

    if not same(other_end, 0) or same(other_end, -1):
        return False
    if same(other_start, -1):
        raise SourceError(
            f"no token of {name} sees another one: its attention does not run here",
            hint="it may exist as a GPU kernel alone: look for another kind of attention in its config",
        )
    return True
