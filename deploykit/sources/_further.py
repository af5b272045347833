"""Further outputs of an encoder, on request: token vectors, hidden layers, and what pools them.

``token_embeddings`` are the vectors that are pooled, ``hidden:N`` the hidden state N as transformers counts them (0
stands before the first layer; negative numbers count from the end), ``pooled:N`` that state pooled as the embedding is,
and ``pooler`` the model's own pooled output. In the graph the second and third are called ``hidden_N`` and
``pooled_N``, with N counted from the start. Token vectors are zero where the input is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError, nearest
from deploykit.runtime.manifest import TensorSpec

if TYPE_CHECKING:
    import torch

    from deploykit.sources._assemble import Parts
    from deploykit.sources._encoders import BodyEncoder

_PLAIN = ("token_embeddings", "pooler")
_LAYERED = ("hidden", "pooled")
_KNOWN = (*_PLAIN, *(f"{kind}:-2" for kind in _LAYERED))


@dataclass(frozen=True)
class Further:
    """One further output; ``layer`` is None where it is not that of a hidden state."""

    kind: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """What the output is called in the graph, once its layer is counted from the start."""
        return self.kind if self.layer is None else f"{self.kind}_{self.layer}"


def parse(requests: Sequence[str]) -> tuple[Further, ...]:
    """The outputs that are asked for; `SourceError` for a word that names none."""
    found = []
    for request in requests:
        kind, _, layer = request.partition(":")
        if request in _PLAIN:
            found.append(Further(kind))
        elif kind in _LAYERED and layer.removeprefix("-").isdecimal():
            found.append(Further(kind, int(layer)))
        else:
            raise SourceError(f"there is no further output '{request}'", hint=nearest(request, list(_KNOWN)))
    return tuple(dict.fromkeys(found))


def switch_on(parts: Parts, requests: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Let the module of ``parts`` give what is asked for behind its embedding, and say what that is.

    Raises `SourceError` where the model does not have it.
    """
    from deploykit.sources._encoders import BodyEncoder

    wanted = parse(requests)
    module = parts.module
    if not wanted:
        return ()
    if not isinstance(module, BodyEncoder):
        raise SourceError(f"{parts.name} gives its embedding alone", hint="leave outputs out")
    module.further = _counted(parts, module, wanted)
    one, other = _two_sizes(parts)
    first, second = _run(parts, one), _run(parts, other)
    _refuse_twins(parts, ["the embedding", *(f"'{further.name}'" for further in module.further)], first)
    return tuple(
        TensorSpec(further.name, "float32", _shape(parts, further, (a, b), (one, other)))
        for further, a, b in zip(module.further, first[1:], second[1:], strict=True)
    )


def _refuse_twins(parts: Parts, names: Sequence[str], answers: Sequence[torch.Tensor]) -> None:
    """`SourceError` where two outputs are the same: in a graph, one value cannot have two names."""
    import torch

    for i, name in enumerate(names):
        for twin, answer in zip(names[:i], answers[:i], strict=True):
            if torch.equal(answer, answers[i]):
                raise SourceError(f"{name} of {parts.name} is the same as {twin}", hint=f"leave {name} out")


def _counted(parts: Parts, module: BodyEncoder, wanted: Sequence[Further]) -> tuple[Further, ...]:
    """The same with layers counted from the start."""
    if all(further.layer is None for further in wanted):
        return tuple(wanted)
    seen: list[Any] = []
    pick = module.pick

    def look(output: Any) -> torch.Tensor:
        seen.append(output)
        return pick(output)

    module.pick, module.further = look, (Further("hidden", 0),)
    try:
        _run(parts, _two_sizes(parts)[0])
    finally:
        module.pick, module.further = pick, ()
    count = len(seen[0].hidden_states)
    found = []
    for further in wanted:
        layer = further.layer
        if layer is not None and not -count <= layer < count:
            raise SourceError(
                f"'{further.kind}:{layer}' was asked for, and {parts.name} has {count} hidden states",
                hint=f"give 0 to {count - 1}, or {-count} to -1 from the end",
            )
        found.append(further if layer is None else replace(further, layer=layer % count))
    return tuple(dict.fromkeys(found))


def _two_sizes(parts: Parts) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Two points of the proof that differ in every dynamic axis where they can, neither of them large."""
    from deploykit.sources._assemble import middle

    first = {axis: middle(sizes) for axis, sizes in parts.sizes.items()}
    second = {
        axis: min((n for n in sizes if n != first[axis]), key=lambda n: abs(n - first[axis]), default=first[axis])
        for axis, sizes in parts.sizes.items()
    }
    return first, second


def _run(parts: Parts, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """What the module gives for a batch of 2: the embedding first."""
    import torch

    from deploykit.sources._assemble import explained

    inputs = parts.make_inputs(2, sizes, 0)
    with explained(parts.name, inputs), torch.inference_mode():
        answer: tuple[torch.Tensor, ...] = parts.module(**inputs)
    return answer


def _shape(
    parts: Parts, further: Further, answers: tuple[torch.Tensor, torch.Tensor], sizes: tuple[Mapping[str, int], ...]
) -> tuple[int | str, ...]:
    """The axes of an output, from what it was at two sizes."""
    first, second = answers
    if first.ndim == 2:
        return ("batch", int(first.shape[1]))
    if first.ndim != 3 or first.shape[0] != 2:
        raise SourceError(
            f"'{further.name}' of {parts.name} is {list(first.shape)} for a batch of 2, not [2, tokens, width]",
            hint="ask for another output",
        )
    width, counts = int(first.shape[2]), (int(first.shape[1]), int(second.shape[1]))
    if parts.modality == "text":
        axis = parts.inputs[0].shape[1]
        if counts != tuple(axis if isinstance(axis, int) else size[axis] for size in sizes):
            raise SourceError(
                f"'{further.name}' of {parts.name} has {counts[0]} vectors for {sizes[0]}, not one for each token",
                hint="ask for another layer, or for pooled vectors",
            )
        return ("batch", axis, width)
    named = "frames" if parts.modality == "audio" else "tokens"
    return ("batch", counts[0] if counts[0] == counts[1] else named, width)


def take(further: Further, output: Any, pool: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    """What a body's output holds of it: tokens [batch, length, width], or vectors [batch, width].

    ``pool`` is the pooling of the embedding, None where the model pools by itself.
    """
    from deploykit.sources._encoders import last_hidden_state, pooler_output

    if further.kind == "pooler":
        return pooler_output(output)
    if further.layer is None:
        tokens = last_hidden_state(output)
    else:
        states = getattr(output, "hidden_states", None)
        if not states:
            raise SourceError("the model returns no hidden states", hint="token_embeddings may be there")
        tokens = states[further.layer]
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    if further.kind != "pooled":
        return tokens
    if pool is None:
        raise SourceError("the model pools by itself, and only its last layer", hint="ask for hidden:N instead")
    return pool(tokens)
