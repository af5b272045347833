"""Mixtures of experts written out while a model is traced: every expert computes every token, routing weighs the sum.

The ways that transformers has for them cannot be exported, or not well: a loop over the experts that were hit branches
on data, grouped products are an operator of its own, and batched ones copy the weights of an expert once for each
token. Written out, an expert that a token was not routed to counts with weight 0. That computes more than was asked
for, by the number of experts over those that a token takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NAME = "deploykit_plain"
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
    ALL_EXPERTS_FUNCTIONS[_NAME] = experts
    for config in held:
        setattr(config, _SETTING, _NAME)
    try:
        yield
    finally:
        for config, value in zip(held, before, strict=True):
            setattr(config, _SETTING, value)
        del ALL_EXPERTS_FUNCTIONS[_NAME]


def experts(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts of transformers' ``module`` give: tokens [n, width], routed by index and weight [n, k]."""
    import torch

    up = module.gate_up_proj if module.has_gate else module.up_proj
    up_bias, down_bias = None, None
    if module.has_bias:
        up_bias = module.gate_up_proj_bias if module.has_gate else module.up_proj_bias
        down_bias = module.down_proj_bias
    inner = _each(hidden_states.unsqueeze(0), up, up_bias, module.is_transposed)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = _each(inner, module.down_proj, down_bias, module.is_transposed)
    if module.has_post_expert_norm:
        outer = module.post_expert_norm(outer)
    numbers = torch.arange(up.shape[0], device=top_k_index.device)
    routed = (top_k_index.unsqueeze(-1) == numbers).to(top_k_weights.dtype)  # [n, k, experts]
    weights = (routed * top_k_weights.unsqueeze(-1)).sum(dim=1).transpose(0, 1)
    return (outer * weights.unsqueeze(-1)).sum(dim=0).to(hidden_states.dtype)


def _each(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, is_transposed: bool) -> torch.Tensor:
    """[1 or experts, n, in] through each expert's own weight; [experts, n, out]."""
    product = tokens @ (weight if is_transposed else weight.transpose(1, 2))
    return product if bias is None else product + bias.unsqueeze(1)
