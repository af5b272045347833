import json

import pytest
import torch
from safetensors.torch import load_file

from deploykit.errors import InputError, SourceError
from deploykit.pretrain import run
from deploykit.pretrain.recipe import PretrainRecipe
from tests.pretrain import made

TEXT = {"modality": "text", "encoder": "transformer"}


@pytest.fixture
def data(tmp_path):
    return made.texts(tmp_path / "texts.csv")


@pytest.fixture
def first(tmp_path, data):
    return run.pretrain(made.recipe(tmp_path / "first", data, objective="predict", **TEXT)).folder


def second(tmp_path, data, first, **changes):
    """A recipe of matching that starts from the folder ``first``."""
    table = made.recipe(tmp_path / "second", data, **TEXT).to_data()
    for name, keys in changes.items():
        table[name] |= keys
    return PretrainRecipe.from_data({**table, "start": str(first)})


def pairs(path):
    """Pairs of sentences: alike where both are about the sea, or both about the farm."""
    sea, farm = ["the ship and wave is here", "the storm sail is here"], ["the cow barn is here", "the field is here"]
    rows = [(a, b, 5.0 if (a in sea) == (b in sea) else 0.0) for a in sea + farm for b in sea + farm if a < b]
    path.write_text("a,b,score\n" + "".join(f"{a},{b},{s}\n" for a, b, s in rows))
    return path


def test_a_run_starts_from_the_encoder_and_the_vocabulary_of_another(tmp_path, data, first):
    other = made.texts(tmp_path / "other.csv", 64)
    other.write_text(other.read_text().replace("cow", "goat"))
    card = run.pretrain(second(tmp_path, other, first, training={"lr": 1e-12})).card
    mine, theirs = (load_file(folder / run.WEIGHTS) for folder in (tmp_path / "second", first))
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in theirs)
    assert card["modality"]["facts"] == json.loads((first / run.CARD).read_text())["modality"]["facts"]
    assert list(card["probes"]) == ["trained", "start", "random initialisation", "raw input"]
    assert card["probes"]["start"] != card["probes"]["random initialisation"]


def test_another_start_is_another_run(tmp_path, data, first):
    recipe = second(tmp_path, data, first)
    assert not run.pretrain(recipe).unchanged
    assert run.pretrain(recipe).unchanged
    (first / run.WEIGHTS).write_bytes((tmp_path / "second" / run.WEIGHTS).read_bytes())
    with pytest.raises(run.BusyError, match="over other data"):
        run.pretrain(recipe)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"encoder": {"heads": 2}}, "encoder.heads is 4, the recipe's 2"),
        ({"encoder": {"width": 64}}, "encoder.width is 32, the recipe's 64"),
        ({"modality": {"length": 16}}, "'positions' has shape"),
    ],
)
def test_another_architecture_is_refused(tmp_path, data, first, change, fact):
    with pytest.raises(SourceError, match=fact) as caught:
        run.pretrain(second(tmp_path, data, first, **change))
    assert "architecture" in str(caught.value)


def test_dropout_is_no_other_architecture(tmp_path, data, first):
    assert run.pretrain(second(tmp_path, data, first, encoder={"dropout": 0.3})).card["start"] == str(first)


def test_a_start_of_another_modality_is_refused(tmp_path, first):
    table = made.recipe(tmp_path / "second", made.pictures(tmp_path / "squares"), encoder="transformer").to_data()
    with pytest.raises(SourceError, match="is an encoder of text, the recipe's modality is image"):
        run.pretrain(PretrainRecipe.from_data({**table, "start": str(first)}))


def test_an_unfinished_run_is_no_start(tmp_path, data, first):
    (first / run.CARD).unlink()
    with pytest.raises(SourceError, match="no finished run"):
        run.pretrain(second(tmp_path, data, first))
    with pytest.raises((SourceError, InputError), match="gone"):
        run.pretrain(second(tmp_path, data, tmp_path / "gone"))


def test_scored_pairs_judge_during_training_and_at_the_end(tmp_path, data):
    spec = f"{pairs(tmp_path / 'pairs.csv')}#a=a,b=b,score=score"
    recipe = made.recipe(tmp_path / "run", data, **TEXT, data={"probe": spec, "test": spec}, probe={"every": 2})
    card = run.pretrain(recipe).card
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["probe"]["n"] for line in lines if "probe" in line] == [6]
    for row in card["probes"].values():
        assert row["held_out"]["spearman"] == row["test"]["spearman"]
        assert -100 <= row["test"]["spearman"] <= 100
    assert card["probes"]["raw input"]["test"]["n"] == 6
