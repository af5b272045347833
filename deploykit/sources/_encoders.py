"""The torch modules that are exported: a loaded body, and what brings its output to one vector per input.

Importing this module imports torch. The arguments of each ``forward`` are the names of the graph's inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.graph.pooling import Normalize, Pooling, Truncate
from deploykit.sources import Options
from deploykit.sources._further import Further, take


class Head(nn.Module):
    """Token vectors [batch, length, width] and their mask to the embedding [batch, dim]."""

    def __init__(self, modes: Sequence[str], stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.pooling = Pooling(modes) if modes else None
        self.stages = nn.Sequential(*stages)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pooling is not None:
            tokens = self.pooling(tokens, torch.ones_like(tokens[..., 0]) if mask is None else mask)
        out: Tensor = self.stages(tokens)
        return out.float()


class BodyEncoder(nn.Module):
    """A transformers model with what brings its output to one vector per input.

    ``method`` of ``body`` is called, ``pick`` takes out of its output what ``head`` pools. ``further`` outputs follow
    the embedding where they are asked for (`deploykit.sources._further`): ``forward`` then gives a tuple.
    """

    def __init__(self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head) -> None:
        super().__init__()
        self.body, self.method, self.pick, self.head = body, method, pick, head
        self.further: tuple[Further, ...] = ()

    def call(self, *given: Tensor, **named: Tensor) -> Any:
        """The body's output; with its hidden states where a further output is one of them."""
        extra = {"output_hidden_states": True} if any(one.layer is not None for one in self.further) else {}
        return getattr(self.body, self.method)(*given, **named, **extra)

    def answer(self, output: Any, mask: Tensor | None, pooled: Tensor | None = None) -> Any:
        """The embedding [batch, dim], with the further outputs behind it; ``mask`` [batch, tokens] is 0 at padding, and
        ``pooled`` also at tokens that the embedding leaves out.
        """
        embedding = self.head(self.pick(output), mask if pooled is None else pooled)
        return (embedding, *(self._given(one, output, mask) for one in self.further)) if self.further else embedding

    def _given(self, one: Further, output: Any, mask: Tensor | None) -> Tensor:
        pooling = self.head.pooling

        def pool(tokens: Tensor) -> Tensor:
            assert pooling is not None
            pooled: Tensor = pooling(tokens, torch.ones_like(tokens[..., 0]) if mask is None else mask)
            return pooled

        found = take(one, output, None if pooling is None else pool).float()
        if found.ndim < 3 or mask is None:
            return found
        return torch.where(mask.unsqueeze(-1) > 0, found, torch.zeros_like(found))


class TextEncoder(BodyEncoder):
    """Token ids to embeddings.

    ``zero_types`` feeds zeros as token types where the tokenizer would: the graph then has one input less. Without
    ``attention_mask`` nothing is padded; ``pooling_mask`` is 0 also at tokens that the embedding leaves out.
    """

    def __init__(
        self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head, *, zero_types: bool
    ) -> None:
        super().__init__(body, method, pick, head)
        self.zero_types = zero_types

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pooling_mask: Tensor | None = None
    ) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.answer(self._output(input_ids, mask), mask, pooling_mask)

    def tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What is pooled: [batch, length, width], or [batch, dim] where the body pools."""
        return self.pick(self._output(input_ids, attention_mask))

    def _output(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        types = {"token_type_ids": torch.zeros_like(input_ids)} if self.zero_types else {}
        return self.call(input_ids=input_ids, attention_mask=attention_mask, **types)


class ImageEncoder(BodyEncoder):
    """Pixels [batch, channels, height, width] to embeddings.

    ``ordered``: the number of patches of a model that draws their order at random, where it takes ``noise`` to sort by;
    it gets an order that is always the same.
    """

    def __init__(
        self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head, *, ordered: int | None = None
    ) -> None:
        super().__init__(body, method, pick, head)
        self.ordered = ordered

    def forward(self, pixel_values: Tensor) -> Any:
        inputs = {"pixel_values": pixel_values}
        if self.ordered is not None:
            order = torch.arange(self.ordered, dtype=torch.float32, device=pixel_values.device)
            inputs["noise"] = order.unsqueeze(0).expand(pixel_values.shape[0], -1)
        return self.answer(self.call(**inputs), None)


class WaveformEncoder(BodyEncoder):
    """Waveforms [batch, samples], or features under the same name, to embeddings.

    With ``attention_mask`` [batch, samples], pooling leaves out the frames that hold padding.
    """

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Any:
        if attention_mask is None:
            return self.answer(self.call(input_values), None)
        output = self.call(input_values, attention_mask=attention_mask)
        return self.answer(output, self._frame_mask(attention_mask, self.pick(output).shape[1]))

    def _frame_mask(self, attention_mask: Tensor, frames: int) -> Tensor:
        body: Any = self.body
        counts = body._get_feat_extract_output_lengths(attention_mask.sum(dim=-1))
        inside: Tensor = torch.arange(frames, device=counts.device).unsqueeze(0) < counts.unsqueeze(-1)
        return inside


class FeatureEncoder(BodyEncoder):
    """Spectrogram features of fixed size to embeddings."""

    def forward(self, input_features: Tensor) -> Any:
        return self.answer(self.call(input_features), None)


class Named(nn.Module):
    """A module that takes tensors of any names, as one whose ``forward`` has exactly these and returns the embedding.

    The signature is made, because exporters read the names of the inputs from it. ``keywords`` are the inputs that the
    module takes by keyword; the others are handed over by position (a loaded program insists on its own way).
    """

    def __init__(self, body: nn.Module, names: Sequence[str], head: Head, keywords: Sequence[str] = ()) -> None:
        super().__init__()
        self.body, self.head = body, head
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])

        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            tensors = signature.bind(*args, **kwargs).arguments
            positional = [value for name, value in tensors.items() if name not in keywords]
            named = {name: value for name, value in tensors.items() if name in keywords}
            out: Tensor = self.head(only_tensor(self.body(*positional, **named)), tensors.get("attention_mask"))
            return out

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward
        self.training = False

    def train(self, mode: bool = True) -> Named:
        """The module came as it is to be run, and loaded programs refuse to be asked."""
        return self


class OnePositional(nn.Module):
    """A module that names its image input otherwise, called with ``pixel_values``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixel_values: Tensor) -> Any:
        return self.body(pixel_values)


class Picked(nn.Module):
    """A body whose output is one tensor: what ``pick`` takes out of it."""

    def __init__(self, body: nn.Module, pick: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.body, self.pick = body, pick

    def forward(self, **tensors: Tensor) -> Tensor:
        return self.pick(self.body(**tensors))


def last_hidden_state(output: Any) -> Tensor:
    """Token vectors of a transformers model; the last feature map of a backbone."""
    tokens: Tensor | None = getattr(output, "last_hidden_state", None)
    if tokens is None:
        maps = getattr(output, "feature_maps", None)
        if not maps:
            raise SourceError(
                "the model returns no token vectors", hint="its own pooled output may be: pooling = 'pooler'"
            )
        return maps[-1]  # type: ignore[no-any-return]
    return tokens


def feature_map(output: Any) -> Tensor:
    """Feature maps [batch, channels, height, width] as tokens [batch, height * width, channels]."""
    return last_hidden_state(output).flatten(2).transpose(1, 2)


def pooler_output(output: Any) -> Tensor:
    """What the model pools by itself, as [batch, dim]: convolutional models leave two axes of size 1."""
    pooled = output if isinstance(output, Tensor) else own_embedding(output)
    if pooled is None:
        raise SourceError("the model has no pooled output of its own", hint="choose the pooling mean or cls")
    flat: Tensor = pooled.flatten(1)
    return flat


def own_embedding(output: Any) -> Tensor | None:
    """The vector that a model makes by itself: projected into the common space if it is a tower, else pooled."""
    given = (getattr(output, name, None) for name in ("text_embeds", "image_embeds", "audio_embeds", "pooler_output"))
    return next((vector for vector in given if vector is not None), None)


def only_tensor(output: Any) -> Tensor:
    """The tensor that a module returned: alone, first of a sequence, or the likely one of a mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        for name in ("sentence_embedding", "embedding", "embeddings", "last_hidden_state"):
            if name in output:
                return only_tensor(output[name])
        return only_tensor(next(iter(output.values())))
    return only_tensor(output[0])


def renormalized(options: Options, encode: Callable[[], Tensor]) -> Options:
    """The options, with normalisation where vectors are cut that ``encode`` gives at length 1: cut, they are shorter.

    For models whose own normalisation cannot be seen from outside. What was asked for of it stays.
    """
    if options.dim is None or options.normalize is not None:
        return options
    with torch.inference_mode():
        vectors = encode()
    lengths = torch.linalg.vector_norm(vectors.float(), dim=-1)
    return replace(options, normalize=True) if torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3) else options


def stages(options: Options, normalize: bool) -> list[nn.Module]:
    """What follows the pooling: truncation, then normalisation."""
    modules: list[nn.Module] = [Truncate(options.dim)] if options.dim is not None else []
    return modules + ([Normalize()] if normalize else [])
