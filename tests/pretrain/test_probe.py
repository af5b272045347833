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
    assert probe.linear(train, labels, (0.1,)).classes(test).tolist() == scores.argmax(1).tolist()


def test_rank_correlation_is_that_of_spearman():
    vectors = torch.tensor([[1.0, 0], [1, 0.1], [1, 1], [0, 1], [-1, 0]])
    pairs = [(0, 1, 5.0), (0, 2, 4.0), (0, 3, 2.0), (0, 4, 2.0)]
    assert probe.spearman(vectors, pairs) == pytest.approx(np.corrcoef([3, 2, 1, 0], [3, 2, 0.5, 0.5])[0, 1])


def test_the_ridge_is_the_one_that_does_best_when_each_sample_is_left_out():
    generator = torch.Generator().manual_seed(3)
    train, labels = torch.randn(30, 12, generator=generator, dtype=torch.float64), torch.arange(30) % 3
    train[:, 0] += labels
    rows, ridges = (train - train.mean(0)) / train.std(0), (1e-4, 1e-1, 1.0, 30.0)
    targets, found = torch.eye(3, dtype=torch.float64)[labels], []
    for ridge in ridges:
        # The bias is no more than a column that is not penalised.
        wide = torch.cat([rows, torch.ones(30, 1, dtype=torch.float64)], dim=1)
        penalty = torch.diag(torch.tensor([ridge * 30] * 12 + [0.0], dtype=torch.float64))
        total = 0.0
        for i in range(30):
            kept = torch.arange(30) != i
            weights = torch.linalg.solve(wide[kept].T @ wide[kept] + penalty, wide[kept].T @ targets[kept])
            total += float(((targets[i] - wide[i] @ weights) ** 2).sum())
        found.append(total)
    best = ridges[int(np.argmin(found))]
    assert best not in (ridges[0], ridges[-1])
    assert probe.linear(train, labels, ridges).ridge == best
    assert probe.linear(train, labels, ridges[:1]).ridge == ridges[0]


def test_of_many_samples_some_tell_which_ridge_is_best(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    train, labels = torch.randn(400, 20, generator=generator), torch.arange(400) % 4
    train[torch.arange(400), labels] += 1.0
    whole = probe.linear(train, labels, (1e-4, 1e-1, 100.0))
    monkeypatch.setattr(probe, "_CHUNK", 150)
    part = probe.linear(train, labels, (1e-4, 1e-1, 100.0))
    assert part.ridge == whole.ridge
    torch.testing.assert_close(part.weights, whole.weights)


def test_the_rank_of_wide_rows_is_that_of_their_singular_values():
    vectors = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals((vectors - vectors.mean(dim=0)).double())
    shares = values / values.sum()
    expected = float(torch.exp(-(shares * shares.log()).sum()))
    assert probe.effective_rank(vectors) == pytest.approx(expected, rel=1e-5)
    assert probe.effective_rank(vectors.T) == pytest.approx(probe.effective_rank(vectors.T.double()), rel=1e-5)


def test_more_features_than_samples_are_no_trouble():
    train, labels = torch.randn(10, 40), torch.arange(10) % 2
    assert probe.linear(train, labels, (1e-4, 1.0)).classes(train).tolist() == labels.tolist()
