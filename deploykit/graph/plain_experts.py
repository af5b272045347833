"""Mixtures of experts written out while a model is traced: every expert computes every token, routing weighs the sum.

The ways that transformers has for them cannot be exported, or not well: a loop over the experts that were hit branches
on data, grouped products are an operator of its own, and batched ones copy the weights of an expert once for each
token. Written out they are two plain products, and an expert that a token was not routed to counts with weight 0. That
computes more than was asked for, by the number of experts over those that a token takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NAME, _UP, _DOWN = "deploykit_plain", "deploykit_up", "deploykit_down"
_SETTING = "_experts_implementation_internal"


@contextmanager
def plain_experts(module: torch.nn.Module) -> Iterator[None]:
    """Let the experts inside ``module`` compute with `experts` until the block ends; nothing where it has none."""
    try:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError:  # a module of somebody's own, and no transformers here
        yield
        return
    configs = {id(config): config for part in module.modules() if (config := getattr(part, "config", None)) is not None}
    held = [config for config in configs.values() if getattr(config, _SETTING, None) is not None]
    before = [getattr(config, _SETTING) for config in held]
    parts = [part for part in module.modules() if hasattr(part, "_is_expert_parallel") and hasattr(part, "down_proj")]
    ALL_EXPERTS_FUNCTIONS[_NAME] = experts
    for config in held:
        setattr(config, _SETTING, _NAME)
    for part in parts:
        _lay_side_by_side(part)
    try:
        yield
    finally:
        for part in parts:
            for name in (_UP, _DOWN):
                delattr(part, name)
        for config, value in zip(held, before, strict=True):
            setattr(config, _SETTING, value)
        del ALL_EXPERTS_FUNCTIONS[_NAME]


def experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts of transformers' ``module`` give: tokens [n, width], routed by index and weight [n, k]."""
    import torch

    count = module.down_proj.shape[0]
    inner = (hidden_states @ getattr(module, _UP)).unflatten(-1, (count, -1))  # [n, experts, inner]
    if module.has_bias:
        inner = inner + (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    numbers = torch.arange(count, device=top_k_index.device)
    routed = (top_k_index.unsqueeze(-1) == numbers).to(top_k_weights.dtype)  # [n, k, experts]
    weights = (routed * top_k_weights.unsqueeze(-1)).sum(dim=1)
    if module.has_post_expert_norm:
        each = (inner.unsqueeze(2) @ getattr(module, _DOWN).unflatten(0, (count, -1))).squeeze(2)
        each = module.post_expert_norm(each + module.down_proj_bias if module.has_bias else each)
        result: torch.Tensor = (each * weights.unsqueeze(-1)).sum(dim=1)
        return result.to(hidden_states.dtype)
    outer: torch.Tensor = (inner * weights.unsqueeze(-1)).flatten(1) @ getattr(
        module, _DOWN
    )  # the product sums the experts
    outer = outer + weights @ module.down_proj_bias if module.has_bias else outer
    return outer.to(hidden_states.dtype)


def _lay_side_by_side(part: Any) -> None:
    """The weights of all experts as one matrix [width, experts * inner] and one [experts * inner, width]."""
    up, down = part.gate_up_proj if part.has_gate else part.up_proj, part.down_proj
    if not part.is_transposed:
        up, down = up.transpose(1, 2), down.transpose(1, 2)
    part.register_buffer(_UP, up.detach().transpose(0, 1).flatten(1).contiguous(), persistent=False)
    part.register_buffer(_DOWN, down.detach().flatten(0, 1).contiguous(), persistent=False)
