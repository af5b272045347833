import pytest
import torch

from deploykit.cli.pretrain import _line
from deploykit.errors import CheckError, RecipeError
from deploykit.pipeline.training import line_text
from deploykit.pretrain import run
from deploykit.pretrain.recipe import PretrainRecipe
from tests.pretrain import made


@pytest.fixture
def squares(tmp_path):
    return made.pictures(tmp_path / "squares")


def tuned(output, data, finetune, /, **sections):
    table = made.recipe(output, data, **sections).to_data()
    return PretrainRecipe.from_data({**table, "finetune": finetune})


SHORT = {"epochs": 10, "batch": 12, "lr": 0.01}


def test_fine_tuning_is_judged_beside_the_random_initialisation(tmp_path, squares):
    test = made.pictures(tmp_path / "test", 10)
    card = run.pretrain(tuned(tmp_path / "run", squares, SHORT, data={"test": str(test)})).card
    assert list(card["finetuned"]) == ["trained", "random initialisation"]
    for row in card["finetuned"].values():
        assert row["steps"] == 30
        assert (row["held_out"]["n"], row["test"]["n"]) == (12, 10)
        assert row["test"]["accuracy"] == 100.0  # left or right: anything that learns finds it


@pytest.mark.parametrize(("begin", "row"), [("trained", "trained"), ("untrained", "random initialisation")])
def test_one_of_both_alone_can_be_fine_tuned(tmp_path, squares, begin, row):
    both = run.pretrain(tuned(tmp_path / "both", squares, SHORT)).card["finetuned"]
    alone = run.pretrain(tuned(tmp_path / "run", squares, {**SHORT, "begin": begin})).card["finetuned"]
    assert alone == {row: both[row]}


def test_fine_tuning_tells_a_line_per_so_many_steps_of_each_encoder(tmp_path, squares):
    lines = []
    recipe = tuned(tmp_path / "run", squares, {**SHORT, "log_every": 12})
    run.pretrain(recipe, on_line=lines.append)
    told = [line for line in lines if "finetune" in line]
    assert [(line["finetune"], line["step"]) for line in told] == [
        (name, step) for name in ("trained", "random initialisation") for step in (12, 24, 30)
    ]
    assert told[0]["epoch"] == 4
    assert told[2]["loss"] < told[0]["loss"]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "finetune" not in metrics  # they are the encoder's; a resumed run cuts them by its steps
    for text in (line_text, _line):
        assert "fine-tuning, trained: epoch 4.00" in text(told[0])


def test_the_exported_encoder_is_the_one_before_fine_tuning(tmp_path, squares):
    plain = run.pretrain(made.recipe(tmp_path / "plain", squares))
    with_labels = run.pretrain(tuned(tmp_path / "tuned", squares, SHORT))
    assert (plain.folder / run.WEIGHTS).read_bytes() == (with_labels.folder / run.WEIGHTS).read_bytes()
    assert "finetuned" not in plain.card


def test_fine_tuning_without_labels_is_refused_before_the_training(tmp_path):
    text = tmp_path / "plain.txt"
    text.write_text("\n".join(f"a line {i}" for i in range(60)))
    recipe = tuned(tmp_path / "run", text, SHORT, modality="text", encoder="transformer")
    with pytest.raises(RecipeError, match="nothing to fine-tune on"):
        run.pretrain(recipe)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_batch_larger_than_the_labelled_data_is_refused(tmp_path, squares):
    with pytest.raises(RecipeError, match="batch is 64, and there are 36 labelled"):
        run.pretrain(tuned(tmp_path / "run", squares, {"epochs": 1, "batch": 64}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_loss_of_fine_tuning_that_is_no_number_is_told(tmp_path, squares):
    with pytest.raises(CheckError, match=r"loss of fine-tuning is (nan|inf) at step \d+"):
        run.pretrain(tuned(tmp_path / "run", squares, {**SHORT, "lr": 1e30}))


@pytest.mark.parametrize("part", ["probe", "finetune"])
def test_judging_and_fine_tuning_in_bfloat16_see_other_vectors_and_say_the_same(tmp_path, squares, part, monkeypatch):
    seen, plain = set(), torch.autocast.__enter__
    monkeypatch.setattr(torch.autocast, "__enter__", lambda self: seen.add(self._enabled) or plain(self))
    recipe = tuned(tmp_path / "run", squares, SHORT).to_data()
    recipe[part]["precision"] = "bf16"
    card = run.pretrain(PretrainRecipe.from_data(recipe)).card
    assert True in seen
    assert card["probes"]["trained"]["held_out"]["linear"] == 100.0
    assert card["finetuned"]["trained"]["held_out"]["accuracy"] == 100.0
