import numpy as np
import pytest

from deploykit.errors import InputError, ProofError
from deploykit.graph.prove import (
    Case,
    Tolerance,
    matrix,
    one_batch_a_size,
    prove,
    prove_outputs,
    read_cases,
    score,
    write_cases,
)

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
    long = matrix({"length": (128, 512)})
    assert [(at["batch"], at["length"]) for at in long] == [(1, 128), (1, 512), (2, 128), (2, 512), (5, 128)]


def test_every_length_and_every_batch_are_among_one_batch_a_size():
    some = one_batch_a_size(cases_over((1, 7, 32, 64)))
    assert [case.at["length"] for case in some] == [1, 7, 32, 64]
    assert {case.at["batch"] for case in some} == {1, 2, 5}
    fixed = [Case({"batch": batch}, {}, np.ones((batch, 3))) for batch in (1, 2, 5)]
    assert one_batch_a_size(fixed) == fixed


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


def test_an_axis_that_only_some_cases_name_decides_nothing():
    cases = [*cases_over((7,)), Case({"batch": 2}, {}, np.ones((2, 6)))]
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: at.get("length") == 7 and at["batch"] == 2), LOOSE, "model")
    assert caught.value.hint == "it fails at some combinations of axes only: batch 2, length 7"


def test_combinations_are_told_once_and_in_order():
    cases = cases_over((1, 7, 32))
    order = [cases[i] for i in (5, 1, 3, 8, 0, 2, 4, 6, 7)]
    wrong = [(5, 32), (2, 1), (1, 7)]
    with pytest.raises(ProofError) as caught:
        prove(
            [*order, *order],
            answers([*order, *order], lambda at: (at["batch"], at["length"]) in wrong),
            LOOSE,
            "model",
        )
    told = "batch 1, length 7; batch 2, length 1; batch 5, length 32"
    assert caught.value.hint == f"it fails at some combinations of axes only: {told}"


def test_sizes_at_which_other_inputs_are_right_do_not_decide():
    rng = np.random.default_rng(0)
    cases = [Case({"batch": 1 + i % 2}, {"i": np.array([i])}, rng.standard_normal((1 + i % 2, 6))) for i in range(8)]

    def run(feeds):
        place = int(feeds["i"][0])
        return cases[place].reference * (-1 if place in (1, 2, 4) else 1)

    with pytest.raises(ProofError) as caught:
        prove(cases, run, LOOSE, "model")
    assert caught.value.hint.startswith("no size decides: other inputs of the same sizes are right (batch 1; batch 2)")


def test_everything_wrong_points_at_an_operator():
    cases = cases_over((1, 7))
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: True), STRICT, "model")
    assert "every shape is wrong, so an operator is" in caught.value.hint


def test_everything_wrong_after_quantization_points_at_ranges():
    cases = cases_over((1, 7))
    with pytest.raises(ProofError) as caught:
        prove(cases, answers(cases, lambda at: True), Tolerance(cosine=0.9, relative_error=0.5), "model")
    assert "calibrate on your own data" in caught.value.hint


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


def test_an_engine_that_fails_at_some_lengths_fails_the_proof_there():
    cases = cases_over((1, 7))
    table = answers(cases)

    def run(feeds):
        if feeds["x"].shape[1] == 7:
            raise InputError("onnxruntime failed: Reshape", hint="look")
        return {"e": table(feeds)}

    with pytest.raises(
        ProofError, match=r"model fails in 3 of 6 cases, first at batch 1, length 7: .* Reshape"
    ) as caught:
        prove_outputs(cases, run, "e", STRICT, "model")
    assert "axis 'length' decides: wrong at 7" in caught.value.hint
    assert {at["length"] for at in caught.value.wrong_at} == {7}


def with_tokens(lengths=(2, 7)):
    """Cases that have token vectors beside the embedding, and what answers them."""
    draw = np.random.default_rng(1)
    cases = [
        Case(case.at, case.feeds, case.reference, {"tokens": draw.normal(size=(*case.feeds["x"].shape, 4))})
        for case in cases_over(lengths)
    ]
    return cases, {id(case.feeds): {"e": case.reference, **case.further} for case in cases}


def test_further_outputs_have_a_proof_of_their_own():
    cases, table = with_tokens()
    proof = prove_outputs(cases, lambda feeds: table[id(feeds)], "e", STRICT, "model")
    assert proof["cases"] == proof["outputs"]["tokens"]["cases"] == 6
    assert proof["outputs"]["tokens"]["cosine_min"] == pytest.approx(1.0)
    assert "outputs" not in prove_outputs(
        cases_over((2,)), answers_by_name(cases_over((2,)), cases_over((2,))), "e", STRICT, "model"
    )


def answers_by_name(cases, same):
    given = iter(same)
    return lambda feeds: {"e": next(given).reference}


@pytest.mark.parametrize(
    "spoil", [lambda tokens: -tokens, lambda tokens: tokens[:, :1], lambda tokens: tokens * np.nan]
)
def test_a_wrong_further_output_fails_by_its_name(spoil):
    cases, table = with_tokens()
    bad = id(cases[-1].feeds)
    table[bad] = {"e": table[bad]["e"], "tokens": spoil(table[bad]["tokens"])}
    with pytest.raises(ProofError, match="the output 'tokens' of model disagrees with the original model in 1 of 6"):
        prove_outputs(cases, lambda feeds: table[id(feeds)], "e", STRICT, "model")


def test_a_case_that_was_asked_for_the_embedding_alone_is_judged_by_it():
    cases, table = with_tokens()
    alone = Case(cases[0].at, {"x": np.zeros((1, 2))}, np.ones((1, 6)))
    table[id(alone.feeds)] = {"e": np.ones((1, 6))}
    proof = prove_outputs([*cases, alone], lambda feeds: table[id(feeds)], "e", STRICT, "model")
    assert (proof["cases"], proof["outputs"]["tokens"]["cases"]) == (7, 6)


def test_further_outputs_survive_the_way_through_files(tmp_path):
    cases, _ = with_tokens()
    write_cases(cases, tmp_path)
    again = read_cases(tmp_path)
    np.testing.assert_array_equal(again[3].further["tokens"], cases[3].further["tokens"])
    np.testing.assert_array_equal(again[3].feeds["x"], cases[3].feeds["x"])
