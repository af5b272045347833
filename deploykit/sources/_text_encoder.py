"""The text encoder that both kinds of transformers folders lead to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options, _folder
from deploykit.sources._assemble import MakeInputs, Parts
from deploykit.sources._checkpoint import Checkpoint, first_line, no_encoder, provenance
from deploykit.sources._padding import Published, as_published, pools_at_the_end
from deploykit.sources._text import TextInput, head_size_of, is_causal

if TYPE_CHECKING:
    from torch import nn

    from deploykit.sources._encoders import TextEncoder

_FEW_TOKENS = 4
"""A text of fewer may be filled up with padding that the model reads: it is blank, or a word or two."""


@dataclass(frozen=True)
class Pooled:
    """How token vectors become an embedding.

    ``modes`` are side by side, none where the model pools by itself; ``stages`` follow. ``reason`` is for the
    provenance. ``for_decoders``: the choice was made for a decoder, or by the model's own authors. ``by_default``:
    nobody made it. ``context_free``: no token sees another one, as in a table of words.
    """

    modes: tuple[str, ...]
    stages: Sequence[nn.Module]
    reason: str
    for_decoders: bool
    by_default: bool = False
    context_free: bool = False

    @property
    def normalized(self) -> bool:
        """Whether vectors come out with length 1."""
        from deploykit.graph.pooling import Normalize

        return bool(self.stages) and isinstance(self.stages[-1], Normalize)


def text_parts(
    kind: str,
    folder: Path,
    checkpoint: Checkpoint,
    given: TextInput,
    pooled: Pooled,
    options: Options,
    published: Published | None = None,
) -> Parts:
    """Join body, pooling and tokenizer; refuses a decoder whose pooling nobody chose, unless it pools by itself.

    A decoder is padded on the right, where padding can neither be seen by its tokens nor shift their positions.
    ``published``: how its processor pads and cuts texts.
    """
    module, given, pooled = _settled(folder, checkpoint, given, pooled)
    name = checkpoint.architecture
    given = as_published(name, module, given, options, published, by_itself=not pooled.modes)
    facts = provenance(kind, folder, checkpoint, pooled.reason)
    sizes, why = _working_lengths(module, given, given.sizes(head_size_of(checkpoint.config)))
    if why:
        least = min(sizes["length"])
        facts["notes"].append(f"texts are padded to {least} tokens at least: it fails on shorter ones ({why})")
    facts["notes"] += given.notes
    if given.fixed:
        facts["notes"].append(f"one length only: texts are padded or cut to {given.max_length} tokens")
    parts = Parts(
        name=_folder.folder_facts(folder)["name"],
        modality="text",
        module=module,
        inputs=given.specs,
        make_inputs=given.make,
        sizes=sizes,
        preprocess=given.preprocess(),
        pooling="+".join(pooled.modes) or "pooler",
        normalized=pooled.normalized,
        provenance=facts,
        files={str(given.preprocess()["tokenizer"]): given.tokenizer},
        license=_folder.license_file(folder),
    )
    return replace(parts, unpadded=lambda: _unpadded(parts, given))


def _settled(
    folder: Path, checkpoint: Checkpoint, given: TextInput, pooled: Pooled
) -> tuple[TextEncoder, TextInput, Pooled]:
    """The encoder with the pooling that it is meant for, and the side on which it can be padded."""
    if pooled.by_default and _pools_at_the_end(checkpoint, given):
        pooled = replace(pooled, modes=(), reason="the model pools by itself, at the last place of a row")
    module = _encoder(checkpoint, given, pooled)
    if not pooled.modes or pooled.context_free or not is_causal(checkpoint.architecture, module.tokens, given):
        return module, given, pooled
    if pooled.by_default and _pools_by_itself(checkpoint, given):  # CLIP's texts: the vector of the last token
        pooled = replace(pooled, modes=(), reason="a decoder that pools by itself")
        module = _encoder(checkpoint, given, pooled)
    elif not pooled.for_decoders:
        raise no_encoder(checkpoint.architecture, folder)
    return module, replace(given, padding_side="right"), pooled


def _encoder(checkpoint: Checkpoint, given: TextInput, pooled: Pooled) -> TextEncoder:
    from deploykit.sources._encoders import Head, TextEncoder, last_hidden_state, pooler_output

    pick = last_hidden_state if pooled.modes else pooler_output
    head = Head(pooled.modes, pooled.stages)
    return TextEncoder(checkpoint.body, checkpoint.method, pick, head, zero_types=given.zero_types).eval()


def _pools_by_itself(checkpoint: Checkpoint, given: TextInput) -> bool:
    """Whether the model's output has a pooled vector of its own that tells texts apart: a first token's does not."""
    import torch

    probe = _encoder(checkpoint, given, Pooled((), (), "", for_decoders=True))
    sizes = {"length": min(_FEW_TOKENS, given.max_length)}
    try:
        with torch.inference_mode():
            one, other = (probe(**given.make(1, sizes, seed)) for seed in (0, 1))
    except SourceError:
        return False
    return not torch.allclose(one, other, atol=1e-6)


def _pools_at_the_end(checkpoint: Checkpoint, given: TextInput) -> bool:
    """Whether the model has a pooled output of its own that is a fixed place's: SigLIP's texts by themselves."""
    probe = _encoder(checkpoint, given, Pooled((), (), "", for_decoders=True))
    try:
        return pools_at_the_end(checkpoint.architecture, probe, given)
    except SourceError:
        return False


def _unpadded(parts: Parts, given: TextInput) -> tuple[tuple[TensorSpec, ...], MakeInputs]:
    """Inputs without a mask. `SourceError` where it would read much padding in the shortest texts."""
    least, shortest = min(parts.sizes["length"]), max(1, len(given.prefix) + len(given.suffix))
    if least > max(shortest, _FEW_TOKENS):
        raise SourceError(
            f"padding changes the vectors of {parts.name}, and it fails on texts below {least} tokens without it",
            hint=f"pad every text alike: fixed_length = {given.max_length}, or the longest that your texts have",
        )
    plain = replace(given, masked=False)
    return plain.specs, plain.make


def _working_lengths(
    module: nn.Module, given: TextInput, sizes: Mapping[str, tuple[int, ...]]
) -> tuple[Mapping[str, tuple[int, ...]], str]:
    """The lengths without the smallest ones on which the model itself fails, and why it does; all where it never does.

    Models that pool or slide over a text need a few tokens. Where no length works the sizes stay: what is wrong then is
    not the length, and is said when the model is run.
    """
    import torch

    def failure(length: int) -> str:
        try:
            with torch.inference_mode():
                module(**given.make(1, {"length": length}, 0))
        except Exception as error:
            return first_line(error)
        return ""

    why = [failure(length) for length in itertools.takewhile(failure, sizes["length"])]
    if len(why) in (0, len(sizes["length"])):
        return sizes, ""
    low, high = sizes["length"][len(why) - 1], sizes["length"][len(why)]
    least = next(length for length in range(low + 1, high + 1) if not failure(length))
    return {**sizes, "length": tuple(sorted({least, *sizes["length"][len(why) :]}))}, why[0]
