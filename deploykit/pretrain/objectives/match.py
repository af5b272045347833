"""Views of one sample shall have one embedding and those of different samples shall not: VICReg, InfoNCE or SIGReg.

VICReg: Bardes et al. 2022, arXiv:2105.04906. InfoNCE: van den Oord et al. 2018, arXiv:1807.03748, in the form of
SimCLR, arXiv:2002.05709. SIGReg: LeJEPA, Balestriero and LeCun 2025, arXiv:2511.08544. Two views or more: many views
of a sample are worth more than many epochs (EMP-SSL, arXiv:2304.03977). Embeddings are ``z`` [views, batch, dim].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploykit.errors import RecipeError
from deploykit.pretrain.distributed import BatchNorm1d, gather
from deploykit.pretrain.draws import Draws
from deploykit.pretrain.elements import Input, Space


@dataclass(frozen=True)
class Options:
    """``loss`` and the number of ``views``; weights of its terms; the projector's widths.

    VICReg weighs ``invariance``, ``variance`` and ``covariance``; InfoNCE divides by ``temperature``; SIGReg takes
    ``sigreg`` of the test statistic, over ``directions`` random ones, and the rest of the distance between views.
    """

    loss: Literal["vicreg", "infonce", "sigreg"] = "vicreg"
    views: int = 2
    hidden: int = 512
    out: int = 256
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    temperature: float = 0.2
    sigreg: float = 0.05
    directions: int = 256


class Match(nn.Module):
    """Encoder and projector under one of the losses."""

    def __init__(self, encoder: nn.Module, options: Options) -> None:
        super().__init__()
        self.encoder, self.options = encoder, options
        dim: Any = encoder.dim
        self.projector = nn.Sequential(
            nn.Linear(dim, options.hidden, bias=False),
            BatchNorm1d(options.hidden),
            nn.ReLU(),
            nn.Linear(options.hidden, options.out),
        )

    def forward(self, views: list[Input], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the global batch."""
        valid = None if views[0].valid is None else torch.cat([v.valid for v in views if v.valid is not None])
        joined = Input(torch.cat([v.values for v in views]), valid)
        rows = self.projector(self.encoder(joined)).float()
        z = rows.reshape(len(views), -1, rows.shape[1])
        z = gather(z.transpose(0, 1)).transpose(0, 1)
        with torch.autocast(z.device.type, enabled=False):
            return self._loss(z, draws)

    def _loss(self, z: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.options
        if options.loss == "infonce":
            return info_nce(z, options.temperature), {}
        distance = invariance(z)
        if options.loss == "sigreg":
            directions = F.normalize(draws.shared_normal(z.shape[2], options.directions), dim=0)
            statistic = torch.stack([sigreg(view, directions) for view in z]).mean()
            loss = (1 - options.sigreg) * distance + options.sigreg * statistic
            return loss, {"invariance": distance, "sigreg": statistic}
        spread = torch.stack([variance(view) for view in z]).mean()
        shared = torch.stack([covariance(view) for view in z]).mean()
        loss = options.invariance * distance + options.variance * spread + options.covariance * 2 * shared
        return loss, {"invariance": distance, "variance": spread, "covariance": shared}


def invariance(z: Tensor) -> Tensor:
    """Mean over all pairs of views of their mean squared difference."""
    count = z.shape[0]
    return 2 * count / (count - 1) * ((z - z.mean(dim=0)) ** 2).mean()


def variance(view: Tensor) -> Tensor:
    """How far the standard deviations of ``view`` [batch, dim] fall below 1, on average."""
    return F.relu(1.0 - (view.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(view: Tensor) -> Tensor:
    """Sum of the squared covariances between different components of ``view`` [batch, dim], divided by dim."""
    centred = view - view.mean(dim=0)
    matrix = centred.T @ centred / (len(view) - 1)
    return (matrix.pow(2).sum() - matrix.diagonal().pow(2).sum()) / view.shape[1]


def info_nce(z: Tensor, temperature: float) -> Tensor:
    """Mean over anchors and their positives of -log(e^s+ / (e^s+ + sum of e^s over other samples)), all views.

    Similarities are cosines divided by ``temperature``.
    """
    count, batch = z.shape[:2]
    unit = F.normalize(z.reshape(count * batch, -1), dim=1)
    scores = unit @ unit.T / temperature
    sample = torch.arange(batch, device=z.device).repeat(count)
    same = sample[:, None] == sample[None, :]
    negatives = scores.masked_fill(same, float("-inf")).logsumexp(dim=1, keepdim=True)
    losses = torch.logaddexp(scores, negatives) - scores
    positive = same & ~torch.eye(len(sample), dtype=torch.bool, device=z.device)
    return losses[positive].mean()


def sigreg(view: Tensor, directions: Tensor, knots: int = 17, bound: float = 5.0) -> Tensor:
    """Epps and Pulley's test of ``view`` [batch, dim] against the standard normal, averaged over ``directions``.

    batch * ∫ |φ(t) - e^(-t²/2)|² e^(-t²/2) dt, φ being the empirical characteristic function of the projection, by the
    trapezoidal rule at ``knots`` points of [-bound, bound].
    """
    t = torch.linspace(-bound, bound, knots, device=view.device)
    normal = torch.exp(-(t**2) / 2)
    angles = (view @ directions).unsqueeze(-1) * t
    error = (angles.cos().mean(dim=0) - normal) ** 2 + angles.sin().mean(dim=0) ** 2
    return len(view) * torch.trapezoid(error * normal, t, dim=-1).mean()


def views(options: Options) -> int:
    """As many as were asked for."""
    return options.views


def build(space: Space, encoder: nn.Module, options: Options) -> Match:
    """The objective around an encoder; any encoder will do."""
    if options.views < 2:
        raise RecipeError(f"match has {options.views} views", hint="give 2 or more")
    return Match(encoder, options)
