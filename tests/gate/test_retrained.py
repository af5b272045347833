"""A model that was trained again: other vectors on purpose, and the task of each side in its own space."""

import numpy as np
import pytest

from deploykit.drift.comparison import compare_tasks
from deploykit.errors import InputError, RecipeError
from tests.gate import made
from tests.gate.conftest import row


def side(text):
    return int(sum(made.TABLE[made.WORDS.index(word), 0] for word in text.split()) > 0)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Texts, whose class is on which side of a plane the baseline has them."""
    path = tmp_path_factory.mktemp("labelled") / "texts.csv"
    texts = made.texts(600)
    path.write_text("text,label\n" + "".join(f"{t},{side(t)}\n" for t in texts))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Pairs, whose score is how many words they share."""
    path = tmp_path_factory.mktemp("scored") / "pairs.csv"
    texts = made.texts(1200)
    shared = [len({*a.split()} & {*b.split()}) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    lines = [f"{a},{b},{s}" for a, b, s in zip(texts[::2], texts[1::2], shared, strict=True)]
    path.write_text("text1,text2,score\n" + "\n".join(lines) + "\n")
    return f"{path}#a=text1,b=text2,score=score"


def test_other_vectors_of_the_same_worth_pass(bundles, judged, labelled):
    """All vectors turned by one rotation: no cosine to the baseline's is left, and nothing is lost."""
    new = bundles("turned", turned=True)
    plain = judged(new, data=str(labelled))
    assert (row(plain, "drift").status, row(plain, "task").status) == ("FAIL", "FAIL")
    result = judged(new, data=str(labelled), retrained=True, budget="task<=5")
    found = {r.name: r.status for r in result.rows}
    assert found["task"] == "PASS"
    assert result.status == "PASS"
    assert not {"drift", "p1", "drift to fp32"} & set(found)
    assert "fitted on each side" in row(result, "task").sentence
    assert "the weights differ" in result.notes[0]
    assert not any("pooling" in r.look for r in result.rows)


def test_a_task_that_is_done_less_well_fails(bundles, judged, labelled):
    result = judged(bundles("last", pooling="last"), data=str(labelled), retrained=True)
    found = row(result, "task")
    assert (result.status, found.status) == ("FAIL", "FAIL")
    assert "pooling" not in found.look
    assert "training" in found.look


def test_scored_pairs_are_judged_by_each_sides_own_cosines(bundles, judged, scored):
    result = judged(bundles("turned", turned=True), data=str(scored), retrained=True)
    assert row(result, "task").status == "PASS"
    assert "Spearman" in row(result, "task").sentence


def test_equal_weights_missing_labels_and_limits_on_drift_are_refused(bundles, judged, data, labelled):
    with pytest.raises(InputError, match="the same fp32 weights"):
        judged(bundles("lowered-with-noise", lowering_noise=0.01), data=str(labelled), retrained=True)
    with pytest.raises(InputError, match="neither labels nor scored pairs"):
        judged(bundles("turned", turned=True), data=str(data), retrained=True)
    with pytest.raises(RecipeError, match="leaves drift out"):
        judged(bundles("turned", turned=True), data=str(labelled), retrained=True, budget="drift<=0.5")


def test_labels_that_are_no_classes_leave_it_undecided(bundles, judged, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"{t},7\n" for t in made.texts(60)))
    found = row(judged(bundles("turned", turned=True), data=str(path), retrained=True), "task")
    assert found.status == "INCONCLUSIVE"
    assert "all labels are the same" in found.sentence


def test_the_two_spaces_may_have_other_dimensions():
    rng = np.random.default_rng(0)
    classes = np.arange(400) % 4
    before = np.eye(4)[classes] + 0.1 * rng.normal(size=(400, 4))
    after = np.concatenate([before @ rng.normal(size=(4, 4)), rng.normal(size=(400, 3))], axis=1)
    found = compare_tasks(before, after, labels=list(classes)).task
    assert (found.name, found.reference, found.candidate) == ("probe_refitted", 100.0, 100.0)
