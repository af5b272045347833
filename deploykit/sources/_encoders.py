"""The torch modules that are exported: a loaded body, and what brings its output to one vector per input.

Importing this module imports torch. The arguments of each ``forward`` are the names of the graph's inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import SourceError
from deploykit.graph.pooling import Normalize, Pooling, Truncate
from deploykit.sources import Options


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


class TextEncoder(nn.Module):
    """Token ids to embeddings.

    ``pick`` takes the vectors out of the body's output. ``zero_types`` feeds zeros as token types where the tokenizer
    would: the graph then has one input less.
    """

    def __init__(
        self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head, *, zero_types: bool
    ) -> None:
        super().__init__()
        self.body, self.method, self.pick, self.head = body, method, pick, head
        self.zero_types = zero_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.head(self.tokens(input_ids, attention_mask), attention_mask)
        return out

    def tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What is pooled: [batch, length, width], or [batch, dim] where the body pools."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.zero_types:
            inputs["token_type_ids"] = torch.zeros_like(input_ids)
        tokens: Tensor = self.pick(getattr(self.body, self.method)(**inputs))
        return tokens


class ImageEncoder(nn.Module):
    """Pixels [batch, channels, height, width] to embeddings.

    ``ordered``: the number of patches of a model that draws their order at random, where it takes ``noise`` to sort by;
    it gets an order that is always the same.
    """

    def __init__(
        self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head, *, ordered: int | None = None
    ) -> None:
        super().__init__()
        self.body, self.method, self.pick, self.head = body, method, pick, head
        self.ordered = ordered

    def forward(self, pixel_values: Tensor) -> Tensor:
        inputs = {"pixel_values": pixel_values}
        if self.ordered is not None:
            order = torch.arange(self.ordered, dtype=torch.float32, device=pixel_values.device)
            inputs["noise"] = order.unsqueeze(0).expand(pixel_values.shape[0], -1)
        out: Tensor = self.head(self.pick(getattr(self.body, self.method)(**inputs)), None)
        return out


class WaveformEncoder(nn.Module):
    """Waveforms [batch, samples], or features under the same name, to embeddings.

    With ``attention_mask`` [batch, samples], pooling leaves out the frames that hold padding.
    """

    def __init__(self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head) -> None:
        super().__init__()
        self.body, self.method, self.pick, self.head = body, method, pick, head

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        call = getattr(self.body, self.method)
        if attention_mask is None:
            plain: Tensor = self.head(self.pick(call(input_values)), None)
            return plain
        tokens = self.pick(call(input_values, attention_mask=attention_mask))
        out: Tensor = self.head(tokens, self._frame_mask(attention_mask, tokens.shape[1]))
        return out

    def _frame_mask(self, attention_mask: Tensor, frames: int) -> Tensor:
        body: Any = self.body
        counts = body._get_feat_extract_output_lengths(attention_mask.sum(dim=-1))
        inside: Tensor = torch.arange(frames, device=counts.device).unsqueeze(0) < counts.unsqueeze(-1)
        return inside


class FeatureEncoder(nn.Module):
    """Spectrogram features of fixed size to embeddings."""

    def __init__(self, body: nn.Module, method: str, pick: Callable[[Any], Tensor], head: Head) -> None:
        super().__init__()
        self.body, self.method, self.pick, self.head = body, method, pick, head

    def forward(self, input_features: Tensor) -> Tensor:
        out: Tensor = self.head(self.pick(getattr(self.body, self.method)(input_features)), None)
        return out


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
    pooled = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if pooled is None:
        raise SourceError("the model has no pooled output of its own", hint="choose the pooling mean or cls")
    flat: Tensor = pooled.flatten(1)
    return flat


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


def stages(options: Options, normalize: bool) -> list[nn.Module]:
    """What follows the pooling: truncation, then normalisation."""
    modules: list[nn.Module] = [Truncate(options.dim)] if options.dim is not None else []
    return modules + ([Normalize()] if normalize else [])
