import json
import re

import pytest

from deploykit import settings
from tests.pretrain import made


@pytest.fixture
def written(tmp_path):
    recipe = made.recipe(tmp_path / "run", made.pictures(tmp_path / "squares"))
    path = tmp_path / "recipe.toml"
    path.write_text(settings.dumps({"pretrain": recipe.to_data()}))
    return path


def test_a_run_tells_its_steps_and_its_figures(command, written, tmp_path):
    code, out, err = command("pretrain", str(written), "training.steps=2")
    assert code == 0
    assert "step 2/2" in err
    assert "data wait" in err
    assert "random initialisation" in out
    assert re.search(rf"encoder: {tmp_path / 'run'} \(trained in \d+ s, judged in \d+ s\)", out)
    assert "nothing to do" in command("pretrain", str(written), "training.steps=2")[1]


def test_json_is_one_document(command, written):
    code, out, _ = command("pretrain", str(written), "--json")
    assert code == 0
    assert json.loads(out)["card"]["format"] == "deploykit.pretrain/1"


def test_the_effective_recipe_is_shown_without_training(command, written, tmp_path):
    code, out, _ = command("pretrain", str(written), "seed=7", "--show-recipe")
    assert code == 0
    assert "seed = 7" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [("training.bacth=3", "batch"), ("encoder.name=resnt", "resnet"), ("objective.name=mach", "match"), ("x", "=")],
)
def test_wrong_changes_end_with_2_and_the_nearest(command, written, change, says):
    code, _, err = command("pretrain", str(written), change)
    assert code == 2
    assert says in err


def test_fine_tuning_is_told(command, written):
    code, out, _ = command("pretrain", str(written), "finetune.epochs=1", "finetune.batch=12")
    assert code == 0
    assert "fine-tuned, trained: " in out
    assert "% of the held-out part (n 12), after 3 steps" in out


def test_run_trains_first_and_tells_it(command, written, tmp_path):
    code, out, _ = command("run", str(written), "--dry-run")
    assert code == 0
    assert "to do     pretrain" in out
    code, _, err = command("run", str(written), "--until", "pretrain")
    assert code == 0
    assert "step 4 of 4" in err
    assert "in store  pretrain" in command("run", str(written), "--dry-run")[1]
