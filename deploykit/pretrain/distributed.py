"""Sums and batches over all processes, with gradients: what makes two processes equal one on the global batch.

Importing this module imports torch. The gradients that a process computes are averaged over processes afterwards (as
DDP does), so a loss here is the loss of the *global* batch on every process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is."""
    return dist.get_rank() if world() > 1 else 0


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: [rows, …] → [world * rows, …]."""
    if world() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def total(value: Tensor) -> Tensor:
    """The sum over all processes, with gradients."""
    if world() == 1:
        return value
    summed: Tensor = _Total.apply(value)  # type: ignore[no-untyped-call]
    return summed


def shard(task: nn.Module, device: torch.device) -> None:
    """Spread the weights over all processes, layer by layer where a module keeps a list of them (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    for part in task.modules():
        for layer in part if isinstance(part, nn.ModuleList) else ():
            fully_shard(layer, mesh=mesh)
    fully_shard(task, mesh=mesh)


def full(value: Tensor) -> Tensor:
    """A tensor that is spread over the processes as a whole; all of them must ask."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def spread_like(whole: Tensor, model: Tensor) -> Tensor:
    """This process's part of a tensor, spread and laid out in memory as ``model`` is.

    The layout counts: the fused optimizer walks through weights and moments by their places in memory alone, and a file
    holds none.
    """
    if not hasattr(model, "full_tensor"):
        return torch.empty_like(model).copy_(whole)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(model, DTensor)
    return distribute_tensor(whole.to(model.device), model.device_mesh, model.placements)


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of ``values`` over the global batch; 0 where all weights are."""
    weights = weights.to(values.dtype)
    return total((values * weights).sum()) / total(weights.sum()).clamp(min=1e-12)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


class _GlobalMoments(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose moments are those of the global batch; torch's own needs a GPU for that."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        count = float(values.numel() // values.shape[1] * world())
        average = total(values.sum(axes)) / count
        shape = [1, -1, *[1] * (values.ndim - 2)]
        centred = values - average.view(shape)
        variance = total((centred * centred).sum(axes)) / count
        with torch.no_grad():
            rate = 0.1 if self.momentum is None else self.momentum
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(average.detach(), rate)
            self.running_var.lerp_(variance.detach() * (count / (count - 1)), rate)
            self.num_batches_tracked.add_(1)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


class BatchNorm2d(_GlobalMoments, nn.BatchNorm2d):
    """Over [batch, channels, height, width]."""


class BatchNorm1d(_GlobalMoments, nn.BatchNorm1d):
    """Over [batch, channels]."""
