"""TorchScript inside a module: the tracing exporter takes it only as a part of a module that is traced itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def holds_script(module: nn.Module | None) -> bool:
    """Whether a part of it is TorchScript, of which dynamo sees only what it does at one size."""
    import torch

    return module is not None and any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def as_script(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """(module, positional inputs, inputs by name) for the exporter.

    With TorchScript inside, the whole is traced first: what is scripted stays as it is, with its branches and loops.
    """
    import torch

    if not holds_script(module):
        return module, (), dict(inputs)
    traced = torch.jit.trace(module, tuple(inputs.values()), check_trace=False)  # type: ignore[no-untyped-call]
    return traced, tuple(inputs.values()), {}
