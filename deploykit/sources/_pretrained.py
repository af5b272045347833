"""The torch module that a pretrained encoder is exported as. Importing this module imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from deploykit.pretrain.elements import Input


class Pretrained(nn.Module):
    """An encoder whose ``forward`` takes tensors named as the graph's inputs; ``stages`` follow the pooling."""

    def __init__(self, encoder: nn.Module, stages: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.stages = encoder, nn.Sequential(*stages)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])

        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            tensors = list(signature.bind(*args, **kwargs).arguments.values())
            out: Tensor = self.stages(self.encoder(Input(tensors[0], tensors[1] if len(tensors) > 1 else None)))
            return out.float()

        forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward
