"""Judging embeddings: kNN vote, closed-form linear probe, effective rank, rank correlation of scored pairs.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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


def linear(train: Tensor, labels: Tensor, test: Tensor, ridge: float) -> Tensor:
    """Classes by ridge regression of one-hot labels on standardised vectors with a bias, solved in closed form.

    ``ridge`` is the penalty per sample. float64, because embeddings may be nearly collinear.
    """
    mean, std = train.double().mean(dim=0), train.double().std(dim=0).clamp(min=1e-6)
    rows = (train.double() - mean) / std
    targets = F.one_hot(labels).double()
    bias = targets.mean(dim=0)
    gram = rows.T @ rows + ridge * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, rows.T @ (targets - bias))
    scores: Tensor = (test.double() - mean) / std @ weights + bias
    return scores.argmax(dim=1)


def effective_rank(vectors: Tensor) -> float:
    """e to the entropy of the normalised singular values of the centred vectors (Roy and Vetterli 2007).

    1 where all vectors lie on a line, up to the smaller of rows and columns.
    """
    values = torch.linalg.svdvals((vectors - vectors.mean(dim=0)).double())
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
