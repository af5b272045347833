import json
import math
import re

import numpy as np
import pytest

from deploykit.drift import compare, metrics, tasks
from deploykit.errors import CheckError, InputError


def values(drift):
    return {figure.name: figure.value for figure in drift.figures}


def test_equal_vectors_have_not_moved(vectors):
    reference, labels = vectors
    drift = compare(reference, reference.copy(), labels=labels)
    found = values(drift)
    assert (found["drift"], found["cosine_p1"], found["cosine_min"]) == (0, 1, 1)
    assert found["sqnr_db"] == math.inf
    assert (found["knn_overlap_10"], found["cross_overlap_10"]) == (1, 1)
    assert (found["knn_accuracy"], found["probe_frozen"], found["probe_refitted"]) == (0, 0, 0)
    json.dumps(drift.to_json(), allow_nan=False)


def test_cosine_and_sqnr_are_what_their_definitions_say(vectors, noisy):
    reference, candidate = vectors[0], noisy(0.1)
    found = values(compare(reference, candidate))
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(reference, candidate, strict=True)]
    assert found["drift"] == pytest.approx(1 - np.mean(cosine), rel=1e-4)
    assert found["cosine_p1"] == pytest.approx(np.quantile(cosine, 0.01), abs=1e-6)
    assert found["cosine_min"] == pytest.approx(min(cosine), abs=1e-6)
    power = np.square(reference).sum() / np.square(reference - candidate).sum()
    assert found["sqnr_db"] == pytest.approx(10 * math.log10(power), abs=1e-3)


def test_neighbours_are_those_of_a_plain_search(vectors, noisy):
    reference, candidate = vectors[0], noisy(0.5)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (reference, candidate)]

    def nearest(asking, index, i):
        similar = index @ asking[i]
        similar[i] = -2
        return set(np.argsort(-similar)[:10])

    own = [len(nearest(unit[0], unit[0], i) & nearest(unit[1], unit[1], i)) / 10 for i in range(600)]
    cross = [len(nearest(unit[0], unit[0], i) & nearest(unit[1], unit[0], i)) / 10 for i in range(600)]
    found = values(compare(reference, candidate))
    assert found["knn_overlap_10"] == pytest.approx(np.mean(own), abs=1e-9)
    assert found["cross_overlap_10"] == pytest.approx(np.mean(cross), abs=1e-9)
    assert found["cross_overlap_10"] > found["knn_overlap_10"]


def test_neighbours_in_blocks_are_the_same(vectors, noisy, monkeypatch):
    whole = compare(vectors[0], noisy(0.3)).to_json()
    monkeypatch.setattr(metrics, "_BLOCK", 600 * 7)
    assert compare(vectors[0], noisy(0.3)).to_json() == whole


def test_of_many_inputs_a_sample_asks_and_n_says_so(vectors, noisy, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_QUERIES", 100)
    drift = compare(vectors[0], noisy(0.3), labels=vectors[1])
    counts = {figure.name: figure.n for figure in drift.figures}
    assert (counts["knn_overlap_10"], counts["knn_accuracy"]) == (100, 100)
    assert (counts["drift"], counts["probe_frozen"]) == (600, 600)


def test_more_noise_moves_every_figure(vectors, noisy):
    little, much = (values(compare(vectors[0], noisy(a), labels=vectors[1])) for a in (0.05, 1.5))
    assert much["drift"] > little["drift"]
    assert much["sqnr_db"] < little["sqnr_db"]
    for name in ("cosine_p1", "cosine_min", "knn_overlap_10", "cross_overlap_10", "knn_accuracy", "probe_frozen"):
        assert much[name] < little[name]


def test_a_rotation_keeps_neighbours_and_a_refitted_probe_but_no_index_and_no_frozen_probe(vectors):
    reference, labels = vectors
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 24)))[0].astype(np.float32)
    found = values(compare(reference, reference @ rotation, labels=labels))
    assert found["knn_overlap_10"] > 0.99
    assert found["cross_overlap_10"] < 0.3
    assert found["probe_refitted"] == pytest.approx(0, abs=2)
    assert found["probe_frozen"] < -20


def test_the_probe_learns_what_can_be_separated(vectors):
    reference, labels = vectors
    assert compare(reference, reference, labels=labels).figure("probe_frozen").reference > 90
    shuffled = list(np.random.default_rng(0).permutation(labels))
    assert compare(reference, reference, labels=shuffled).figure("probe_frozen").reference < 40


def test_the_probe_is_tested_on_what_it_has_not_seen():
    rng = np.random.default_rng(1)
    chance = rng.normal(size=(200, 150)).astype(np.float32)
    found = compare(chance, chance, labels=list(rng.integers(0, 2, 200))).figure("probe_frozen")
    # As many weights as examples learn them by heart: seen before, nearly all would be right.
    assert 35 < found.reference < 65


def test_spearman_is_that_of_mean_ranks():
    first, second = np.array([1.0, 2, 2, 4, 9]), np.array([2.0, 1, 3, 3, 8])
    ones = np.ones(5)
    # By hand: ranks 1, 2.5, 2.5, 4, 5 and 2, 1, 3.5, 3.5, 5.
    expected = np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1]
    assert tasks._correlation(tasks._Ranked(first), tasks._Ranked(second), ones) == pytest.approx(expected)


def test_a_weighted_sample_ranks_as_the_sample_written_out():
    rng = np.random.default_rng(3)
    first, second, weights = rng.normal(size=30).round(1), rng.normal(size=30).round(1), rng.integers(0, 4, 30)
    rows = np.repeat(np.arange(30), weights)
    whole = tasks._correlation(tasks._Ranked(first[rows]), tasks._Ranked(second[rows]), np.ones(len(rows)))
    assert tasks._correlation(tasks._Ranked(first), tasks._Ranked(second), weights.astype(float)) == pytest.approx(
        whole
    )


def test_scored_pairs_show_what_noise_costs(vectors, noisy):
    reference = vectors[0]
    cosine = metrics.cosine(reference[:300], reference[300:])
    pairs = [(i, i + 300, float(score)) for i, score in enumerate(cosine)]
    figure = compare(reference, noisy(1.0), pairs=pairs).figure("spearman")
    assert (figure.reference, figure.n) == (pytest.approx(100), 300)
    assert figure.value == pytest.approx(figure.candidate - figure.reference)
    assert figure.low < figure.value < figure.high < 0


def test_the_worst_inputs_are_named(vectors):
    candidate = vectors[0].copy()
    candidate[[7, 500]] *= -1
    texts = [f"text\n  number {i} " + "long " * 40 for i in range(600)]
    worst = compare(vectors[0], candidate, inputs=texts).worst
    assert [w.index for w in worst[:2]] == [7, 500]
    assert worst[0].cosine == pytest.approx(-1)
    assert re.match(r"text number 7 long .*…$", worst[0].input)
    assert len(worst) == 10


def test_a_size_that_hides_in_its_bucket_is_named(vectors):
    candidate = vectors[0].copy()
    sizes = [3 + i % 120 for i in range(600)]
    odd = np.array(sizes) == 32
    candidate[odd] += 3
    drift = compare(vectors[0], candidate, sizes=sizes)
    assert [b.size for b in drift.buckets] == ["1 to 16", "17 to 32", "33 to 64", "65 to 128"]
    assert sum(b.n for b in drift.buckets) == 600
    assert (drift.odd_size.size, drift.odd_size.n) == ("32", odd.sum())
    assert compare(vectors[0], vectors[0], sizes=sizes).odd_size is None


def test_few_sizes_stand_one_by_one(vectors):
    sizes = [((32, 48), (16, 16), (64, 64))[i % 3] for i in range(600)]
    buckets = compare(vectors[0], vectors[0], sizes=sizes).buckets
    assert [(b.size, b.n) for b in buckets] == [("16 x 16", 200), ("32 x 48", 200), ("64 x 64", 200)]


@pytest.mark.parametrize("n", [1, 2, 10])
def test_a_handful_of_inputs_has_figures_without_intervals(vectors, n):
    drift = compare(vectors[0][:n], vectors[0][:n] + 0.01, labels=vectors[1][:n])
    assert drift.figure("drift").low is None
    assert drift.figure("knn_overlap_10") is None
    assert len(drift.worst) == n
    assert any("too few" in note for note in drift.notes)


def test_eleven_inputs_have_everything(vectors):
    drift = compare(vectors[0][:11], vectors[0][:11] + 0.01)
    assert drift.figure("knn_overlap_10").n == 11
    assert drift.figure("drift").low is not None


def test_zero_vectors_are_told_and_count_as_lost(vectors):
    candidate = vectors[0].copy()
    candidate[3] = 0
    drift = compare(vectors[0], candidate)
    assert (drift.worst[0].index, drift.worst[0].cosine) == (3, 0)
    assert any("candidate's vectors are zero, the first that of input 3" in note for note in drift.notes)
    both = compare(candidate, candidate)
    assert both.figure("drift").value == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_fails_the_check_and_is_named(vectors, bad):
    candidate = vectors[0].copy()
    candidate[[41, 99], 2] = bad
    with pytest.raises(CheckError, match=r"candidate's vector of input 41 is not finite .*, and 1 more"):
        compare(vectors[0], candidate)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(["a"] * 600, "all labels are the same"), (list(range(600)), "600 different labels for 600 inputs")],
)
def test_labels_that_teach_nothing_are_told(vectors, labels, says):
    drift = compare(vectors[0], vectors[0], labels=labels)
    assert drift.task is None
    assert any(says in note for note in drift.notes)


def test_what_does_not_fit_together_is_refused(vectors):
    reference, labels = vectors
    for given, says in (
        ({"candidate": reference[:, :5]}, "24 dimensions, the candidate's 5"),
        ({"candidate": reference[:5]}, "600 reference vectors and 5 candidate"),
        ({"candidate": reference[0]}, r"candidate's vectors are float32 \[24\]"),
        ({"labels": labels[:5]}, "5 labels for 600 inputs"),
        ({"labels": [None, *labels[1:]]}, "input 0 has no label"),
        ({"sizes": [1]}, "1 sizes for 600"),
        ({"pairs": [(0, 600, 1.0)]}, "outside 0 to 599"),
        ({"pairs": [(0, 1, math.nan)]}, "pair 0 has no score"),
        ({"pairs": []}, "no scored pairs"),
    ):
        with pytest.raises(InputError, match=says):
            compare(**{"reference": reference, "candidate": reference, **given})


def test_everything_is_the_same_twice(vectors, noisy):
    def once():
        pairs = [(i, i + 1, float(i % 7)) for i in range(0, 100, 2)]
        return compare(vectors[0], noisy(0.2), labels=vectors[1], pairs=pairs, sizes=list(range(600))).to_json()

    assert once() == once()


def test_of_equally_common_classes_the_one_with_the_smaller_sum_of_ranks_wins():
    # The nearest is of class 0, but its four others are the last; the five in between are of class 1.
    rows = np.array([[0, 1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 1, 1, 0, 1]])
    assert tasks._vote(rows).tolist() == [1, 0]
