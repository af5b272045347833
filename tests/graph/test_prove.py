import numpy as np
import pytest

from deploykit.errors import ProofError
from deploykit.graph.prove import Case, Tolerance, matrix, prove, read_cases, score, write_cases

STRICT, LOOSE = Tolerance(0.99999, 2e-3), Tolerance(0.995, 0.15)


def cases_over(lengths):
    draw = np.random.default_rng(0)
    points = matrix({"length": lengths})
    return [
        Case(at, {"x": draw.normal(size=(at["batch"], at["length"]))}, draw.normal(size=(at["batch"], 6)))
        for at in points
    ]


def answers(cases, wrong=lambda at: False):
    table = {id(case.feeds): (-case.reference if wrong(case.at) else case.reference) for case in cases}
    return lambda feeds: table[id(feeds)]


def test_the_matrix_has_every_batch_at_every_length():
    assert len(matrix({"length": (1, 7, 64)})) == 9
    assert {"batch": 5, "length": 64} in matrix({"length": (1, 7, 64)})


def test_equal_answers_pass_with_cosine_one():
    cases = cases_over((1, 7))
    assert prove(cases, answers(cases), STRICT, "model")["cosine_min"] == pytest.approx(1.0)


def test_one_wrong_length_fails_and_is_named():
    cases = cases_over((1, 7, 32, 64))
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: at["length"] == 32), LOOSE, "openvino-bf16")
    assert "3 of 12 cases" in caught.value.message
    assert "axis 'length' decides: wrong at 32" in caught.value.hint


def test_wrong_batches_are_named():
    cases = cases_over((1, 7))
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: at["batch"] > 1), STRICT, "model")
    assert "axis 'batch' decides: wrong at 2, 5" in caught.value.hint


def test_everything_wrong_points_at_an_operator():
    cases = cases_over((1, 7))
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: True), STRICT, "model")
    assert "every shape is wrong" in caught.value.hint


@pytest.mark.parametrize("bad", [np.full((2, 6), np.nan), np.zeros((2, 6)), np.ones((1, 6)), np.full((2, 6), np.inf)])
def test_nan_zero_wrong_shape_and_infinity_never_pass(bad):
    case = Case({"batch": 2}, {}, np.ones((2, 6)))
    with pytest.raises(ProofError):
        prove([case], lambda feeds: bad, LOOSE, "model")


def test_a_zero_reference_is_met_by_zero():
    assert score(Case({"batch": 1}, {}, np.zeros((1, 4))), np.zeros((1, 4))).cosine == 1.0


def test_a_right_direction_with_a_wrong_length_fails():
    case = Case({"batch": 1}, {}, np.ones((1, 4)))
    with pytest.raises(ProofError):
        prove([case], lambda feeds: case.reference * 1.5, STRICT, "model")


def test_cases_survive_the_files(tmp_path):
    cases = cases_over((1, 7))
    write_cases(cases, tmp_path)
    for before, after in zip(cases, read_cases(tmp_path), strict=True):
        assert before.at == after.at
        np.testing.assert_array_equal(before.feeds["x"], after.feeds["x"])
        np.testing.assert_array_equal(before.reference, after.reference)
