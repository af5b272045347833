"""Judging embeddings: kNN vote, closed-form linear probe, effective rank, rank correlation of scored pairs.

Importing this module imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 8192
"""Rows that are turned into float64 at once, and at most so many are left out in their turn to choose a ridge."""


def knn(train: Tensor, labels: Tensor, test: Tensor, neighbours: int, temperature: float = 0.07) -> Tensor:
    """Classes that the nearest ``train`` vectors vote for, weighted by e^(cosine / temperature) (arXiv:1805.01978)."""
    count = min(neighbours, len(train))
    classes = int(labels.max()) + 1
    bank, answers = F.normalize(train.float(), dim=1), []
    for rows in torch.split(F.normalize(test.float(), dim=1), 2048):
        close, places = (rows @ bank.T).topk(count, dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[places], (close / temperature).exp())
        answers.append(votes.argmax(dim=1))
    return torch.cat(answers)


@dataclass(frozen=True)
class Plane:
    """A fitted linear probe: ``weights`` float64 [dim, classes] of standardised vectors, and the ``ridge`` it took."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    bias: Tensor
    ridge: float

    def classes(self, vectors: Tensor) -> Tensor:
        """The class of each row of ``vectors`` [n, dim]."""
        parts = [((rows.double() - self.mean) / self.std) @ self.weights for rows in torch.split(vectors, _CHUNK)]
        return (torch.cat(parts) + self.bias).argmax(dim=1)


def linear(train: Tensor, labels: Tensor, ridges: Sequence[float]) -> Plane:
    """Ridge regression of one-hot labels on standardised vectors with a bias, solved in closed form.

    The penalty per sample is the one of ``ridges`` with the least squared error when each sample is left out in its
    turn, which the eigenvectors of the Gram matrix give for all of them at once: an error grows by 1 / (1 - h), h being
    the sample's own share in its prediction (PRESS, Allen 1974). Of many samples some at equal distances are left out:
    they tell as well which ridge is best, and wide rows take longer here than in the solution. float64, because
    embeddings may be nearly collinear.
    """
    count = len(train)
    mean, std = train.double().mean(dim=0), train.double().std(dim=0).clamp(min=1e-6)
    targets = F.one_hot(labels).double()
    bias = targets.mean(dim=0)

    def chunks(every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        taken = torch.split(train[::every], _CHUNK), torch.split(targets[::every], _CHUNK)
        for rows, wanted in zip(*taken, strict=True):
            yield (rows.double() - mean) / std, wanted - bias

    gram = torch.zeros(train.shape[1], train.shape[1], dtype=torch.float64)
    moment = torch.zeros(train.shape[1], targets.shape[1], dtype=torch.float64)
    for rows, wanted in chunks():
        gram += rows.T @ rows
        moment += rows.T @ wanted
    values, vectors = torch.linalg.eigh(gram)
    turned = vectors.T @ moment
    shrink = [1 / (values.clamp(min=0) + ridge * count) for ridge in ridges]
    errors = [0.0] * len(ridges)
    for rows, wanted in chunks(math.ceil(count / _CHUNK)) if len(ridges) > 1 else ():
        places = rows @ vectors
        for i, factors in enumerate(shrink):
            own = (places**2 @ factors + 1 / count).clamp(max=1 - 1e-9)
            missed = (wanted - (places * factors) @ turned) / (1 - own).unsqueeze(1)
            errors[i] += float((missed**2).sum())
    best = min(range(len(ridges)), key=errors.__getitem__)
    return Plane(mean, std, vectors @ (shrink[best].unsqueeze(1) * turned), bias, ridges[best])


def effective_rank(vectors: Tensor) -> float:
    """e to the entropy of the normalised singular values of the centred vectors (Roy and Vetterli 2007).

    1 where all vectors lie on a line, up to the smaller of rows and columns.
    """
    centred = (vectors - vectors.mean(dim=0)).double()
    rows = centred if len(centred) <= centred.shape[1] else centred.T
    values = (
        torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0).sqrt()
    )  # far faster than the singular values of wide rows
    if float(values.sum()) < 1e-12:
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def spearman(vectors: Tensor, pairs: Sequence[tuple[int, int, float]]) -> float:
    """Rank correlation of the cosines of pairs of rows with their scores."""
    unit = F.normalize(vectors.double(), dim=1)
    first = torch.tensor([a for a, _, _ in pairs])
    second = torch.tensor([b for _, b, _ in pairs])
    scores = torch.tensor([s for _, _, s in pairs], dtype=torch.float64)
    ranks = torch.stack([_ranks((unit[first] * unit[second]).sum(dim=1)), _ranks(scores)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts.double() + 1) / 2
    return ranks[inverse]
