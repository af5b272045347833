"""Augmentation of whole batches of pictures, with one draw per sample, on whatever device trains.

Importing this module imports torch. Pictures are floats [batch, channels, height, width] in 0…1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from deploykit.pretrain.draws import Draws

_LUMA = (0.299, 0.587, 0.114)


def crop(
    pictures: Tensor,
    draws: Draws,
    *,
    scale: tuple[float, float],
    ratio: float,
    flip: bool,
    degrees: float,
    size: int = 0,
) -> Tensor:
    """A random part of each picture, perhaps mirrored and turned, by one bilinear sampling, at full size or ``size``.

    The part has ``scale`` (least, most) of the area and an aspect between 1 / ``ratio`` and ``ratio``, as in
    torchvision's RandomResizedCrop.
    """
    draw = draws.uniform(6)
    area = scale[0] + (scale[1] - scale[0]) * draw[:, 0]
    aspect = torch.exp((2 * draw[:, 1] - 1) * math.log(ratio))
    wide, tall = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    left, top = (1 - wide) * (2 * draw[:, 2] - 1), (1 - tall) * (2 * draw[:, 3] - 1)
    mirror = torch.where(draw[:, 4] < 0.5, -1.0, 1.0) if flip else torch.ones_like(area)
    angle = (2 * draw[:, 5] - 1) * math.radians(degrees)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([wide * cos * mirror, -wide * sin, left], dim=1),
            torch.stack([tall * sin * mirror, tall * cos, top], dim=1),
        ],
        dim=1,
    )
    shape = [*pictures.shape[:2], size or pictures.shape[2], size or pictures.shape[3]]
    grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def window(pictures: Tensor, draws: Draws, tall: tuple[float, float], wide: tuple[float, float]) -> Tensor:
    """A random window of each picture at the picture's size; beyond the edges the outermost values go on.

    The window's height and width are drawn by themselves, from ``tall`` and ``wide`` (least, most) as shares of the
    picture's; a window larger than the picture lies anywhere around it.
    """
    draw = draws.uniform(4)
    height, width = (low + (high - low) * draw[:, i] for i, (low, high) in enumerate((tall, wide)))
    top, left = (1 - height) * (2 * draw[:, 2] - 1), (1 - width) * (2 * draw[:, 3] - 1)
    none = torch.zeros_like(top)
    theta = torch.stack([torch.stack([width, none, left], dim=1), torch.stack([none, height, top], dim=1)], dim=1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour(pictures: Tensor, draws: Draws, strength: float, chance: float) -> Tensor:
    """Brightness, contrast, saturation and hue by up to 0.8, 0.8, 0.8 and 0.2 times ``strength`` (SimCLR).

    Pictures of one channel change brightness and contrast alone. The hue is turned in the YIQ plane, which is one
    3 x 3 matrix per picture.
    """
    draw = draws.uniform(5)
    change = 1 + 0.8 * strength * (2 * draw[:, :3] - 1)
    out = pictures * change[:, 0].view(-1, 1, 1, 1)
    middle = out.mean(dim=(1, 2, 3), keepdim=True)
    out = (out - middle) * change[:, 1].view(-1, 1, 1, 1) + middle
    if pictures.shape[1] == 3:
        grey = _grey(out)
        out = (out - grey) * change[:, 2].view(-1, 1, 1, 1) + grey
        out = _turn_hue(out, (2 * draw[:, 3] - 1) * 0.2 * strength)
    return torch.where(draw[:, 4].view(-1, 1, 1, 1) < chance, out.clamp(0, 1), pictures)


def greyscale(pictures: Tensor, draws: Draws, chance: float) -> Tensor:
    """Some pictures without colour."""
    if pictures.shape[1] != 3:
        return pictures
    chosen = draws.uniform(1).view(-1, 1, 1, 1) < chance
    return torch.where(chosen, _grey(pictures).expand_as(pictures), pictures)


def blur(pictures: Tensor, draws: Draws, sigma: float, chance: float) -> Tensor:
    """Some pictures through a Gaussian of up to ``sigma`` pixels: two one-dimensional passes, a kernel per picture."""
    draw = draws.uniform(2)
    width = 0.1 + draw[:, 0] * (sigma - 0.1)
    reach = max(1, math.ceil(2 * sigma))
    offsets = torch.arange(-reach, reach + 1, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * width[:, None] ** 2))
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    batch, channels, height, wide = pictures.shape
    kernels = kernel.repeat_interleave(channels, dim=0)
    flat = F.pad(pictures, (reach, reach, reach, reach), mode="reflect").reshape(
        1, batch * channels, -1, wide + 2 * reach
    )
    flat = F.conv2d(flat, kernels.view(-1, 1, 1, 2 * reach + 1), groups=batch * channels)
    flat = F.conv2d(flat, kernels.view(-1, 1, 2 * reach + 1, 1), groups=batch * channels)
    blurred = flat.reshape(batch, channels, height, wide)
    return torch.where(draw[:, 1].view(-1, 1, 1, 1) < chance, blurred, pictures)


def _grey(pictures: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, device=pictures.device, dtype=pictures.dtype).view(1, 3, 1, 1)
    return (pictures * weights).sum(dim=1, keepdim=True)


def _turn_hue(pictures: Tensor, turns: Tensor) -> Tensor:
    """Rotation of the chroma plane by ``turns`` of a full circle [batch]."""
    to_yiq = torch.tensor(
        [_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], device=pictures.device, dtype=pictures.dtype
    )
    angle = turns * 2 * math.pi
    rows = torch.zeros(len(turns), 3, 3, device=pictures.device, dtype=pictures.dtype)
    rows[:, 0, 0] = 1
    rows[:, 1, 1] = rows[:, 2, 2] = angle.cos()
    rows[:, 1, 2], rows[:, 2, 1] = -angle.sin(), angle.sin()
    turn = torch.linalg.inv(to_yiq) @ rows @ to_yiq
    return torch.einsum("bij,bjhw->bihw", turn, pictures)


def many(count: int, augment: Callable[[], Tensor]) -> list[Tensor]:
    """``count`` independent results of an augmentation."""
    return [augment() for _ in range(count)]
