"""The inputs that variants are calibrated on and judged by."""

import numpy as np
import pytest

from deploykit.errors import InputError
from deploykit.graph.prove import read_cases
from deploykit.pipeline import samples
from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
from tests import tiny


@pytest.fixture
def exported(tmp_path):
    """A folder as the export step leaves it, as far as preprocessing goes."""
    tiny.wordpiece(tmp_path / "model")
    (tmp_path / "preprocess").mkdir()
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "preprocess" / "tokenizer.json")
    return tmp_path


CARD = Card(
    name="text",
    modality="text",
    inputs=tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask")),
    outputs=(TensorSpec("y", "float32", ("batch", 4)),),
    embedding=Embedding("y", 4, "mean", False),
    preprocess={"kind": "text", "tokenizer": "preprocess/tokenizer.json", "max_length": 40, "pad_id": 0},
    limits=Limits({"length": (1, 40)}),
)


def reference(feeds):
    """A vector that depends on every token that is no padding, and on nothing else."""
    real = feeds["input_ids"] * feeds["attention_mask"]
    return np.stack([real.sum(1), (real**2).sum(1), feeds["attention_mask"].sum(1), real.max(1)], axis=1).astype("f4")


def write(exported, out, **options):
    out.mkdir(exist_ok=True)
    counts = {"calibration_samples": 20, "evaluation_samples": 50}
    chosen = {"calibration": "", "evaluation": "", "calibrates": True, **counts, **options}
    return samples.write(chosen, CARD, exported, reference, out)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(" ".join(["cat dog", *["the red house"] * (i % 9), f"{i}"]) for i in range(120)))
    return path


def test_calibration_is_one_input_a_case_at_its_real_length(exported, texts, tmp_path):
    facts = write(exported, tmp_path / "out", calibration=str(texts))
    cases = read_cases(tmp_path / "out", samples.CALIBRATION)
    assert len(cases) == 20
    assert all(case.feeds["input_ids"].shape[0] == 1 for case in cases)
    assert all(case.feeds["attention_mask"].all() for case in cases)  # nothing is padded
    assert len({case.at["length"] for case in cases}) > 5
    assert facts["calibration"]["samples"] == 20
    assert len(facts["calibration"]["digest"]) == 64


def test_nothing_is_judged_that_was_calibrated_on(exported, texts, tmp_path):
    write(exported, tmp_path / "out", calibration=str(texts))
    seen = {case.feeds["input_ids"].tobytes() for case in read_cases(tmp_path / "out", samples.CALIBRATION)}
    judged = read_cases(tmp_path / "out", samples.EVALUATION)
    rows = [row[mask > 0][None] for c in judged for row, mask in zip(*c.feeds.values(), strict=True)]
    assert len(rows) == 50
    assert not seen & {row.tobytes() for row in rows}


def test_rows_inputs_and_references_stand_in_one_order(exported, texts, tmp_path):
    write(exported, tmp_path / "out", calibration=str(texts))
    known = samples.read_inputs(tmp_path / "out")
    cases = read_cases(tmp_path / "out", samples.EVALUATION)
    references = np.concatenate([case.reference for case in cases])
    assert len(known["inputs"]) == len(known["sizes"]) == len(references) == 50
    assert list(references[:, 2]) == known["sizes"]  # its third component counts the tokens


def test_the_same_data_gives_the_same_choice_and_other_data_another_digest(exported, texts, tmp_path):
    first = write(exported, tmp_path / "a", calibration=str(texts))
    assert write(exported, tmp_path / "b", calibration=str(texts)) == first
    texts.write_text(texts.read_text().replace("red", "blue"))
    other = write(exported, tmp_path / "c", calibration=str(texts))
    assert other["calibration"]["digest"] != first["calibration"]["digest"]


def test_real_text_is_cut_to_every_length_that_holds_any_of_it(exported, texts, tmp_path):
    write(exported, tmp_path / "out", calibration=str(texts))
    cases = read_cases(tmp_path / "out", samples.LENGTHS)
    # [CLS] and [SEP] alone are no text.
    assert [case.at["length"] for case in cases] == list(range(3, 41))
    assert all(case.feeds["input_ids"].shape == (4, case.at["length"]) for case in cases)
    separator = cases[-1].feeds["input_ids"][0, -1]
    assert all((case.feeds["input_ids"][:, -1] == separator).all() for case in cases)


def test_without_data_a_builtin_set_stands_in_with_a_warning(exported, tmp_path):
    facts = write(exported, tmp_path / "out")
    assert facts["calibration"]["data"] == "builtin:sentences"
    assert "which is not your data" in facts["notes"][0]


def test_where_nothing_is_calibrated_all_is_judged_and_nothing_warned_of(exported, tmp_path):
    facts = write(exported, tmp_path / "out", calibrates=False, evaluation_samples=500)
    assert facts["notes"] == []
    assert "calibration" not in facts
    assert facts["evaluation"]["samples"] == facts["evaluation"]["of"] > 100
    assert read_cases(tmp_path / "out", samples.CALIBRATION) == []


def test_too_few_to_hold_some_out_is_said(exported, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(f"cat {i}" for i in range(30)))
    facts = write(exported, tmp_path / "out", calibration=str(few))
    assert "the 30 inputs that were calibrated on" in facts["notes"][0]


def test_labels_and_scored_pairs_come_along(exported, tmp_path):
    rows = tmp_path / "pairs.tsv"
    rows.write_text("".join(f"{i}\tcat number {i}\tdog number {i}\n" for i in range(40)))
    spec = f"{rows}#a=2,b=3,score=1"
    write(exported, tmp_path / "out", calibration=spec, evaluation=spec)
    known = samples.read_inputs(tmp_path / "out")
    assert len(known["pairs"]) == 40
    a, b, score = known["pairs"][7]
    assert (known["inputs"][a], known["inputs"][b]) == (f"cat number {score:.0f}", f"dog number {score:.0f}")


def test_pairs_of_which_inputs_are_calibrated_on_leave_whole_pairs_to_judge_by(exported, tmp_path):
    rows = tmp_path / "pairs.tsv"
    rows.write_text("".join(f"{i}\tcat number {i}\tthe red dog number {i}\n" for i in range(100)))
    facts = write(exported, tmp_path / "out", calibration=f"{rows}#a=2,b=3,score=1", calibration_samples=300)
    known = samples.read_inputs(tmp_path / "out")
    assert facts["calibration"]["samples"] == 100
    assert {score for _, _, score in known["pairs"]} == set(range(1, 100, 2))
    assert facts["notes"] == []


def test_where_no_pair_is_left_whole_that_is_said(exported, tmp_path):
    rows = tmp_path / "pairs.tsv"
    rows.write_text("".join(f"{i}\tthe one question\tdog number {i}\n" for i in range(60)))
    facts = write(exported, tmp_path / "out", calibration=f"{rows}#a=2,b=3,score=1", calibration_samples=20)
    known = samples.read_inputs(tmp_path / "out")
    taken = {case.feeds["input_ids"].tobytes() for case in read_cases(tmp_path / "out", samples.CALIBRATION)}
    assert len(taken) == 20
    assert ("pairs" in known) != any("no scored pair" in note for note in facts["notes"])
    assert known.get("pairs") != []


def test_data_of_another_modality_is_refused(exported, tmp_path):
    with pytest.raises(InputError, match="the encoder takes text, and 'builtin:tones' holds audio"):
        write(exported, tmp_path / "out", calibration="builtin:tones")


def test_only_blank_texts_are_refused(exported, tmp_path):
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n\n")
    with pytest.raises(InputError, match="blank"):
        write(exported, tmp_path / "out", calibration=str(blank))
