"""Weights that a module computes from others at every call, as weight norm does, become what they come to.

Trained, they do not change. Left in the graph, engines compute them at load, and quantizers find no weight to quantize.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def plain_weights(module: torch.nn.Module) -> int:
    """Replace every parametrized weight inside ``module`` by its value, in place; returns how many there were."""
    from torch.nn.utils import parametrize, remove_weight_norm
    from torch.nn.utils.weight_norm import WeightNorm

    count = 0
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
                count += 1
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
                count += 1
    return count
