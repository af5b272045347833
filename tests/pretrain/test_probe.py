import numpy as np
import pytest
import torch

from deploykit.pretrain import probe


def test_the_rank_of_equal_directions_is_their_number():
    vectors = torch.cat([torch.eye(4), -torch.eye(4)])
    assert probe.effective_rank(vectors) == pytest.approx(4)
    assert probe.effective_rank(vectors[:, :1]) == pytest.approx(1)
    assert probe.effective_rank(torch.ones(5, 3)) == 0


def test_neighbours_vote_by_cosine():
    bank = torch.tensor([[1.0, 0], [2, 0.1], [0, 1], [0.1, 3]])
    answers = probe.knn(bank, torch.tensor([0, 0, 1, 1]), torch.tensor([[9.0, 1], [1, 9]]), 3)
    assert answers.tolist() == [0, 1]


def test_the_linear_probe_solves_the_ridge_problem():
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 3
    test = torch.randn(20, 4, generator=generator)
    rows = ((train - train.mean(0)) / train.std(0)).double().numpy()
    targets = np.eye(3)[labels.numpy()]
    stacked = np.vstack([rows, np.sqrt(0.1 * 60) * np.eye(4)])
    weights = np.linalg.lstsq(stacked, np.vstack([targets - targets.mean(0), np.zeros((4, 3))]), rcond=None)[0]
    scores = ((test - train.mean(0)) / train.std(0)).double().numpy() @ weights + targets.mean(0)
    assert probe.linear(train, labels, test, 0.1).tolist() == scores.argmax(1).tolist()


def test_rank_correlation_is_that_of_spearman():
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [1, 1], [0, 1], [-1, 0]])
    pairs = [(0, 1, 5.0), (0, 2, 4.0), (0, 3, 2.0), (0, 4, 2.0)]
    assert probe.spearman(vectors, pairs) == pytest.approx(np.corrcoef([3, 2, 1, 0], [3, 2, 0.5, 0.5])[0, 1])
