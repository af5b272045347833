"""What a training computes in on its device: the precision, and the memory format of its convolutions.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from deploykit.runtime import hardware

Precision = Literal["auto", "fp32", "bf16"]

_BF16_FEATURES = frozenset({"amx_bf16", "avx512_bf16"})
# oneDNN computes channels in blocks of eight with AVX2.
_CHANNEL_BLOCK = 8


def device_of(choice: str) -> torch.device:
    """The device that ``training.device`` stands for: the accelerator if there is one, unless it says cpu."""
    if choice != "cpu" and torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; others emulate it, which is many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type != "cpu" or not hardware.cpu_features().isdisjoint(_BF16_FEATURES)


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether autocast to bf16 is on; ``auto`` is bf16 on a device that computes in it, else fp32."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def precision_sentence(precision: Precision, device: torch.device) -> str:
    """``bf16 on cpu``, with a warning where it is emulated."""
    if not uses_bf16(precision, device):
        return f"fp32 on {device.type}"
    if has_bf16(device):
        return f"bf16 on {device.type}"
    return (
        f"bf16 on {device.type}, which has no bf16 arithmetic and emulates it, many times slower than fp32; "
        'precision = "auto" takes fp32 here'
    )


def memory_format(network: nn.Module) -> torch.memory_format:
    """The format that the network's weights and its inputs of rank 4 are trained in.

    That is channels_last, a third faster through convolutions, except for networks with a 1x1 convolution of stride 2
    and fewer than 8 input channels. For these oneDNN (in torch 2.13, on x86 CPUs with AVX2 and without AVX512) writes
    past its memory in the gradient of the weights, and the process dies at some later allocation.
    """
    narrow = any(isinstance(part, nn.Conv2d) and _is_narrow_projection(part) for part in network.modules())
    return torch.contiguous_format if narrow else torch.channels_last


def _is_narrow_projection(convolution: nn.Conv2d) -> bool:
    is_strided_projection = set(convolution.kernel_size) == {1} and max(convolution.stride) > 1
    return is_strided_projection and convolution.in_channels < _CHANNEL_BLOCK


def laid_out(values: Tensor, network: nn.Module) -> Tensor:
    """``values`` in the network's `memory_format` if they have rank 4, else as they are."""
    return values.contiguous(memory_format=memory_format(network)) if values.ndim == 4 else values
